"""Win rates with their intervals, and best-of-n without drawing n times over."""

import math
from collections.abc import Sequence

import numpy as np


def win_rate(
    ours: Sequence[float] | np.ndarray, theirs: np.ndarray, *, tie: float = 1e-6
) -> dict[str, float | list[float] | int]:
    """Share of comparisons in which `ours` scores higher, ties one half, with the 95 % normal
    interval of the mean over prompts.

    ours [prompts]; theirs [prompts, draws]: several answers of the rival to each prompt take the
    luck of one draw out of the result. The paper does not say how it counts ties (4.1); one half
    makes a model against itself 0.5.
    """
    difference = np.asarray(ours, np.float64)[:, None] - np.asarray(theirs, np.float64)
    wins = np.where(np.abs(difference) <= tie, 0.5, difference > 0).mean(axis=1)
    mean, half = wins.mean(), 1.96 * wins.std() / math.sqrt(len(wins))
    return {"mean": float(mean), "ci95": [float(mean - half), float(mean + half)], "n": len(wins)}


def best_of_n(proxy: np.ndarray, value: np.ndarray, n: int) -> float:
    """Expected `value` of the sample with the highest `proxy` among n, from N >= n samples per
    prompt; both [prompts, N].

    Every subset of n counts the same: with samples sorted by proxy, sample i is the best of C(i -
    1, n - 1) of the C(N, n) subsets (Nakano et al. 2021, arXiv:2112.09332, appendix I).
    """
    total = proxy.shape[1]
    if not 1 <= n <= total:
        raise ValueError(f"n={n} must lie in [1, {total}]")
    weight = np.array([math.comb(i, n - 1) for i in range(total)], np.float64) / math.comb(total, n)
    ranked = np.take_along_axis(value, np.argsort(proxy, axis=1, kind="stable"), axis=1)
    return float((ranked * weight[None, :]).sum(axis=1).mean())


def best_of_n_kl(n: int) -> float:
    """log n - (n - 1) / n nats: an upper bound of KL(best-of-n || one sample), reached where no two
    samples tie (Beirami et al. 2024).
    """
    return math.log(n) - (n - 1) / n
