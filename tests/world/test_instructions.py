"""Prompts: format, limits, splits, determinism."""

import collections
import re

import pytest

from instruct_jax.world import vocabulary as v
from instruct_jax.world.demonstrations import good_answer
from instruct_jax.world.dice import Dice
from instruct_jax.world.instructions import (
    MAX_ANSWER_TOKENS,
    MAX_PROMPT_TOKENS,
    SHARES,
    SPLITS,
    prompts,
    split_of,
)

NAME, PAST, THING, PLACE, FEELING, ADJECTIVE = (
    "(?:" + "|".join(words) + ")"
    for words in (v.NAMES, v.PAST.values(), v.THINGS, v.PLACES, v.FEELINGS, v.ADJECTIVES)
)
FACT = (
    f"the (?:{'|'.join(v.ANIMALS)}) (?:is|eats|lives in the)"
    f" (?:{'|'.join((*v.COLORS, *v.FOODS, *v.HOMES))}) \\."
)
GRAMMAR = {  # what a good answer looks like, written without the code under test
    "generation": (
        f"{NAME} {PAST} the (?:{ADJECTIVE} )?{THING}(?: in the {PLACE})? \\.(?: {NAME} was"
        f" {FEELING} \\.)?"
    ),
    "open_qa": f"{FACT}|i do not know \\.",
    "closed_qa": f"{NAME} has the {THING} \\.",
    "brainstorming": r"\w+(?: , \w+){1,3} \.",
    "rewrite": f"{NAME} {PAST} the (?:{ADJECTIVE} )?{THING}(?: in the {PLACE})? \\.",
    "classification": r"it is (?:good|bad) \.",
    "extract": f"{NAME}(?: , {NAME}){{1,2}} \\.",
    "summarization": f"{NAME} went to the {PLACE} and was {FEELING} \\.",
}


def test_facts_are_balanced():
    assert len(v.ANIMALS) * 3 == 48
    for column, relation in enumerate(v.RELATIONS):
        counts = collections.Counter(row[column] for row in v.ANIMALS.values())
        assert counts == dict.fromkeys(relation["values"], 4)


@pytest.mark.parametrize("split", SPLITS)
def test_prompts_keep_format_and_limits(split):
    dice = Dice(0, "answers")
    for record in prompts(0, 300, split):
        assert re.fullmatch("task : .+ reply :", record["prompt"])
        assert split_of(record["prompt"]) == split
        assert len(record["prompt"].split()) + 1 <= MAX_PROMPT_TOKENS
        assert len(good_answer(record["task"], dice).split()) + 1 <= MAX_ANSWER_TOKENS


def test_splits_are_disjoint_for_all_seeds():
    texts = {
        split: {record["prompt"] for seed in (0, 1) for record in prompts(seed, 300, split)}
        for split in SPLITS
    }
    assert sum(len(group) for group in texts.values()) == len(set().union(*texts.values()))
    assert sum(SPLITS.values()) == pytest.approx(1)


def test_repetitions_are_confined_to_small_use_cases():
    records = prompts(0, 512, "report")
    counts = collections.Counter(record["prompt"] for record in records)
    repeated = {record["use_case"] for record in records if counts[record["prompt"]] > 1}
    assert repeated <= {"open_qa", "brainstorming"}
    assert len({record["id"] for record in records}) == 512


@pytest.mark.parametrize("use_case", SHARES)
def test_good_answers_follow_the_grammar(use_case):
    dice = Dice(0, "answers")
    for record in prompts(0, 200, "ppo", use_case):
        assert record["use_case"] == record["task"]["use_case"] == use_case
        answer = good_answer(record["task"], dice)
        assert re.fullmatch(GRAMMAR[use_case], answer), (record["prompt"], answer)


def test_use_cases_come_by_their_shares():
    counts = collections.Counter(record["use_case"] for record in prompts(0, 4000, "ppo"))
    assert all(abs(counts[use_case] / 4000 - share) < 0.03 for use_case, share in SHARES.items())
    assert sum(SHARES.values()) == pytest.approx(1)


def test_prompts_are_a_function_of_the_seed():
    assert prompts(3, 50, "ppo") == prompts(3, 50, "ppo")
    assert prompts(3, 50, "ppo") == prompts(3, 80, "ppo")[:50]
    assert prompts(3, 50, "ppo") != prompts(4, 50, "ppo")


def test_unknown_split_is_refused():
    with pytest.raises(ValueError, match="split='training' must be one of corpus"):
        prompts(0, 1, "training")
