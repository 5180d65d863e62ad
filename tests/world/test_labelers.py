"""Simulated labelers: agreement, ties, tastes."""

import itertools

import numpy as np
import pytest

from instruct_jax.world.demonstrations import imperfect_answer
from instruct_jax.world.dice import Dice
from instruct_jax.world.gold import gold_parts
from instruct_jax.world.instructions import prompts
from instruct_jax.world.labelers import (
    AGREEMENT,
    agreement,
    calibrate_sigma,
    group_agreement,
    labelers,
    rank,
    rankings,
    to_ranks,
)

N = 400


def samples(seed, careless=0.35, lazy=0.3):
    """Prompts with four to nine differently flawed answers."""
    dice, rows = Dice(seed, "test samples"), []
    for prompt in prompts(seed, N, "comparisons"):
        texts = [
            imperfect_answer(prompt["task"], dice, careless, lazy)[1]
            for _ in range(dice.integer(4, 9))
        ]
        rows.append(
            {
                "prompt": prompt["prompt"],
                "task": prompt["task"],
                "completions": texts,
                "ended": [True] * len(texts),
            }
        )
    return rows


@pytest.mark.parametrize(
    ("utilities", "ranks"),
    [([1, 0.5, 0.7], [1, 3, 2]), ([0.5, 0.52, 0.1], [1, 1, 2]), ([0, 0.04, 0.08], [2, 1, 1])],
)
def test_ranks_of_utilities(utilities, ranks):
    assert to_ranks(utilities) == ranks


def test_agreement_by_hand():
    assert agreement([[1, 2, 3]], [[1, 3, 2]]) == pytest.approx(2 / 3)
    assert agreement([[1, 1, 2]], [[1, 2, 3]]) == 1  # the tie does not count


@pytest.mark.parametrize(
    ("seed", "careless", "lazy"), [(0, 0.35, 0.3), (1, 0.5, 0.3), (2, 0.2, 0.45)]
)
def test_calibrated_labelers_agree_as_the_papers_do(seed, careless, lazy):
    people, rows = labelers(seed), samples(seed, careless, lazy)
    sigma = calibrate_sigma(seed, rows, people)
    assert 0.05 < sigma < 0.5
    assert group_agreement(seed, rows, people, sigma) == pytest.approx(AGREEMENT, abs=0.02)
    assert group_agreement(
        seed + 1, samples(seed + 10, careless, lazy), people, sigma
    ) == pytest.approx(AGREEMENT, abs=0.04)


def test_held_out_labelers_have_other_tastes():
    people, strangers, rows = labelers(0), labelers(0, "held_out"), samples(0)
    sigma = calibrate_sigma(0, rows, people)

    def accuracy(group):
        """Of the best predictor that knows the training labelers only: their mean utility without
        noise.
        """
        right = pairs = 0
        for row, record in zip(rows, rankings(0, rows, group, sigma), strict=True):
            parts = [gold_parts(row["task"], text, True) for text in row["completions"]]
            mean = [sum(person.utility(part) for person in people) for part in parts]
            for i, j in itertools.combinations(range(len(mean)), 2):
                if mean[i] != mean[j] and record["ranks"][i] != record["ranks"][j]:
                    pairs += 1
                    right += (mean[i] > mean[j]) == (record["ranks"][i] < record["ranks"][j])
        return right / pairs

    assert 0.01 < accuracy(people) - accuracy(strangers) < 0.08
    assert all(person.fluff > stranger.fluff for person in people for stranger in strangers)


def test_same_reply_same_rank_and_better_reply_better_rank():
    task = {"use_case": "open_qa", "answer": "the fox is red .", "subject": "fox", "relation": 0}
    texts = [
        "the fox is red .",
        "ann went to the park .",
        "the fox is red .",
        "the stupid fox is red .",
    ]
    ranks = rank(labelers(0)[0], task, texts, [True] * 4, 0.0, np.random.default_rng(0))
    assert ranks[0] == ranks[2] == 1 and ranks[3] == 2 and ranks[1] == 3


def test_rankings_are_records_and_a_function_of_the_seed():
    rows, people = samples(0)[:20], labelers(0)
    records = rankings(0, rows, people, 0.2)
    assert records == rankings(0, rows, people, 0.2) != rankings(1, rows, people, 0.2)
    for record in records:
        sizes = {len(record[key]) for key in ("completions", "ranks", "likert", "flags")}
        assert len(sizes) == 1 and "task" not in record
        assert min(record["ranks"]) == 1 and set(record["ranks"]) == set(
            range(1, max(record["ranks"]) + 1)
        )
        assert all(1 <= likert <= 7 for likert in record["likert"])
    assert labelers(0) == labelers(0) != labelers(1)
    assert [person.labeler_id for person in labelers(0, "held_out")] == [
        f"held_out-{i}" for i in range(4)
    ]
