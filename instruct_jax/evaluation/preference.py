"""Win rates with their intervals, and best-of-n without drawing n times over."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def win_rate(
    ours: Sequence[float] | np.ndarray,
    theirs: np.ndarray,
    *,
    tie: float = 1e-6,
) -> dict[str, Any]:
    """Share of comparisons in which `ours` scores higher, ties one half, with the 95 % normal
    interval of the mean over prompts.

    ours [prompts]; theirs [prompts, draws]: several answers of the rival to each prompt take the
    luck of one draw out of the result. The paper does not say how it counts ties (4.1); one half
    makes a model against itself 0.5.
    """
    ours = np.asarray(ours, np.float64)[:, None]
    theirs = np.asarray(theirs, np.float64)
    difference = ours - theirs
    tied = np.abs(difference) <= tie
    wins = np.where(tied, 0.5, difference > 0).mean(axis=1)
    mean = float(wins.mean())
    n = len(wins)
    half = float(1.96 * wins.std() / math.sqrt(n))
    return {
        "mean": mean,
        "ci95": [mean - half, mean + half],
        "n": n,
    }


def best_of_n(proxy: np.ndarray, value: np.ndarray, n: int) -> float:
    """Expected `value` of the sample with the highest `proxy` among n, from N >= n samples per
    prompt; both [prompts, N].

    Every subset of n counts the same: with samples sorted by proxy, sample i is the best of C(i -
    1, n - 1) of the C(N, n) subsets (Nakano et al. 2021, arXiv:2112.09332, appendix I).
    """
    total = proxy.shape[1]
    if not 1 <= n <= total:
        raise ValueError(f"n={n} must lie in [1, {total}]")
    subsets = math.comb(total, n)
    best_in = [math.comb(i, n - 1) for i in range(total)]
    weight = np.array(best_in, np.float64) / subsets
    order = np.argsort(proxy, axis=1, kind="stable")
    ranked = np.take_along_axis(value, order, axis=1)
    expected = (ranked * weight[None, :]).sum(axis=1)
    return float(expected.mean())


def best_of_n_kl(n: int) -> float:
    """log n - (n - 1) / n nats: an upper bound of KL(best-of-n || one sample), reached where no two
    samples tie (Beirami et al. 2024).
    """
    return math.log(n) - (n - 1) / n


def use_case(record: Mapping[str, Any]) -> str:
    """What the scores are reported by: the use case, or the data set that the prompt is from."""
    for key in ("use_case", "source"):
        if record.get(key) is not None:
            return str(record[key])
    return "all"


def by_use_case(
    records: Sequence[Mapping[str, Any]], scores: Mapping[str, np.ndarray]
) -> dict[str, dict[str, dict[str, float]]]:
    """Use case -> model -> mean score and its standard error over prompts, from the score [n] of
    each prompt.
    """
    cases = [use_case(record) for record in records]
    found = {}
    for case in sorted(set(cases)):
        rows = [i for i, name in enumerate(cases) if name == case]
        found[case] = {}
        for model, score in scores.items():
            here = score[rows]
            error = here.std() / len(rows) ** 0.5
            found[case][model] = {
                "mean": float(here.mean()),
                "se": float(error),
                "n": len(here),
            }
    return found


def in_turns(cases: Sequence[str]) -> list[int]:
    """Positions, one of each case in turn, in the order of their first appearance.

    a a b a b -> 0 2 1 4 3
    """
    rows: dict[str, list[int]] = {}
    for i, case in enumerate(cases):
        rows.setdefault(case, []).append(i)
    longest = max(map(len, rows.values()), default=0)
    order = []
    for k in range(longest):
        for positions in rows.values():
            if k < len(positions):
                order.append(positions[k])
    return order
