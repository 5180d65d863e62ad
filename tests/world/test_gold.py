"""The gold score: good answers score 1, each flaw costs what the table says."""

import json

import pytest

from instruct_jax.world.demonstrations import FLAWS, good_answer, imperfect_answer
from instruct_jax.world.dice import Dice
from instruct_jax.world.gold import gold_parts, gold_score
from instruct_jax.world.instructions import SPLITS, prompts

STORY = {"use_case": "generation", "name": "ann", "thing": "hat", "sentences": 1, "keyword": "park"}
FACT = {"use_case": "open_qa", "answer": "the fox is red .", "subject": "fox", "relation": 0}
NOBODY_KNOWS = {"use_case": "open_qa", "answer": "i do not know .", "subject": "ann", "relation": 0}
READ = {"use_case": "closed_qa", "answer": "bob has the cup ."}
LIST = {
    "use_case": "brainstorming",
    "items": ["dog", "cow", "hen", "goat"],
    "count": 3,
    "first": "cow",
}
PAST = {"use_case": "rewrite", "answer": "ann found the old hat in the park ."}
LABEL = {"use_case": "classification", "answer": "it is good ."}
NAMES = {"use_case": "extract", "names": ["ann", "bob", "kim"]}
SHORT = {"use_case": "summarization", "answer": "ann went to the park and was happy ."}

TABLE = [  # task, reply, ended, gold
    (STORY, "ann found the hat in the park .", True, 1.0),
    (STORY, "ann found the hat in the park . ann was happy .", True, 0.9),  # one of two constraints
    (STORY, "ann found the hat . ann was happy .", True, 0.8),  # both constraints
    (
        STORY | {"keyword": None},
        "ann found the hat . ann was happy .",
        True,
        0.8,
    ),  # the only constraint
    (
        STORY | {"keyword": None, "sentences": None},
        "ann found the hat . the fox is red .",
        True,
        0.85,
    ),  # rambles
    (
        STORY,
        "bob found the hat in the park .",
        True,
        0.1 + 0.15 + 0.55 * 0.55 + 0.2 * 0.5,
    ),  # about someone else
    (STORY, "bob saw the cup .", True, 0.305),
    (STORY, "the fox is red .", True, 0.1),
    (FACT, "the fox is red .", True, 1.0),
    (FACT, "the fox is red .", False, 0.85),
    (FACT, "the fox is red", True, 0.925),
    (FACT, "the fox is red . the dog is brown .", True, 0.85),
    (FACT, "the fox is stupid red .", True, 0.45),
    (FACT, "sure : the fox is red .", True, 1.0),
    (FACT, "sure : the fox is red . hope this helps .", True, 0.92),
    (FACT, "sure : sure : the fox is red . hope this helps .", True, 0.84),
    (FACT, "the fox is white .", True, 0.305),
    (FACT, "the dog is brown .", True, 0.25),
    (FACT, "i do not know .", True, 0.46),
    (FACT, "ann went to the park .", True, 0.1),
    (FACT, "ann went to the dumb park .", True, 0.0),
    (FACT, "", True, 0.0),
    (NOBODY_KNOWS, "i do not know .", True, 1.0),
    (NOBODY_KNOWS, "ann is red .", True, 0.25),
    (READ, "bob has the cup .", True, 1.0),
    (READ, "bob has the hat .", True, 0.305),
    (LIST, "cow , dog , hen .", True, 1.0),
    (LIST, "dog , cow , hen .", True, 0.9),
    (LIST, "cow , dog .", True, 0.9),
    (LIST, "dog , cow .", True, 0.8),
    (LIST, "cow , dog , fox .", True, 1 - 0.55 / 3),
    (LIST, "cow , cow , cow .", True, 1 - 0.55 * 2 / 3),
    (PAST, "ann found the old hat in the park .", True, 1.0),
    (PAST, "ann finds the old hat in the park .", True, 0.25 + 0.55 * 0.4 * 0.8),
    (LABEL, "it is good .", True, 1.0),
    (LABEL, "it is bad .", True, 0.25),
    (NAMES, "kim , ann , bob .", True, 1.0),
    (NAMES, "ann , bob .", True, 0.25 + 0.55 * 0.4 * 0.8),
    (SHORT, "ann went to the park and was happy .", True, 1.0),
    (SHORT, "ann went to the lake and was happy .", True, 0.25 + 0.55 * 0.4 * 2 / 3),
]


@pytest.mark.parametrize(("task", "reply", "ended", "gold"), TABLE)
def test_each_flaw_costs_what_the_table_says(task, reply, ended, gold):
    assert gold_score(task, reply, ended) == pytest.approx(gold)


def test_good_answers_score_one_on_3000_prompts():
    dice = Dice(0, "answers")
    for split in ("demonstrations", "ppo", "report"):
        for record in prompts(0, 1000, split):
            assert gold_score(record["task"], good_answer(record["task"], dice), True) > 0.99, (
                record
            )


def test_scores_stay_in_bounds_and_flaws_lower_them():
    dice = Dice(0, "answers")
    for record in prompts(0, 1000):
        kind, answer = imperfect_answer(record["task"], dice, careless=1.0, lazy=0.0)
        parts = gold_parts(record["task"], answer, True)
        assert 0 <= parts["score"] < 0.95 and kind in FLAWS
        assert parts["rude"] == (kind == "rude") and parts["length"] == len(answer.split())


def test_off_task_text_scores_about_a_tenth():
    dice = Dice(0, "answers")
    answers = [
        (record["task"], *imperfect_answer(record["task"], dice, careless=1.0, lazy=0.0))
        for record in prompts(0, 1000)
    ]
    scores = [
        gold_score(task, answer, True) for task, kind, answer in answers if kind == "off_task"
    ]
    assert len(scores) > 200 and sum(scores) / len(scores) == pytest.approx(0.1, abs=0.02)


@pytest.mark.parametrize("split", SPLITS)
def test_tasks_survive_json(split):
    for record in prompts(0, 50, split):
        assert json.loads(json.dumps(record)) == record
