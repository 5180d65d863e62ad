"""Win rates against a hand table, best-of-n against all subsets."""

import itertools

import numpy as np
import pytest

from instruct_jax.evaluation.preference import (
    best_of_n,
    best_of_n_kl,
    by_use_case,
    in_turns,
    win_rate,
)


def test_win_rate_counts_wins_and_half_of_the_ties():
    found = win_rate([1.0, 0.5, 0.2], np.array([[0.0, 1.0], [0.9, 0.9], [0.1, 0.1]]))
    assert found["mean"] == pytest.approx((0.75 + 0.0 + 1.0) / 3) and found["n"] == 3
    low, high = found["ci95"]
    assert high - low == pytest.approx(2 * 1.96 * np.std([0.75, 0.0, 1.0]) / 3**0.5)


def test_a_model_against_itself_is_a_half_and_sides_swap():
    scores = np.random.default_rng(0).random(50)
    assert win_rate(scores, scores[:, None])["mean"] == 0.5
    other = np.random.default_rng(1).random(50)
    assert win_rate(scores, other[:, None])["mean"] == pytest.approx(
        1 - win_rate(other, scores[:, None])["mean"]
    )


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_best_of_n_is_the_mean_over_all_subsets(n):
    proxy, value = np.random.default_rng(0).random((2, 4, 5))
    subsets = list(itertools.combinations(range(5), n))
    slow = np.mean(
        [
            [value[row, max(s, key=lambda i, r=row: proxy[r, i])] for s in subsets]
            for row in range(4)
        ]
    )
    assert best_of_n(proxy, value, n) == pytest.approx(slow)


def test_best_of_n_refuses_more_than_there_are_and_its_kl():
    with pytest.raises(ValueError, match="n=6"):
        best_of_n(np.zeros((1, 5)), np.zeros((1, 5)), 6)
    assert best_of_n_kl(1) == 0.0 and best_of_n_kl(4) == pytest.approx(0.6363, abs=1e-4)


def test_scores_by_use_case_by_hand():
    records = [{"use_case": "a"}, {"use_case": "b"}, {"use_case": "a"}, {"source": "hh"}, {}]
    scores = {"sft": np.array([0.0, 1.0, 0.5, 0, 0]), "ppo": np.array([1.0, 1.0, 1.0, 0, 0])}
    found = by_use_case(records, scores)
    assert list(found) == ["a", "all", "b", "hh"]
    assert found["a"]["sft"] == {"mean": 0.25, "se": pytest.approx(0.25 / 2**0.5), "n": 2}
    assert found["b"]["ppo"] == {"mean": 1.0, "se": 0.0, "n": 1}


def test_positions_in_turns():
    assert in_turns(["a", "a", "b", "a", "b"]) == [0, 2, 1, 4, 3]
    assert in_turns([]) == []
