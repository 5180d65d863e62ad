"""How far do people agree?  (paper 3.4: training labelers 72.6 ± 1.5 %, held-out labelers 77.3 ±
1.3 %)  Pure functions of answers.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

import krippendorff
import numpy as np

from instruct_jax.feedback.store import Answer

CUTOFF = 0.75  # of agreement with researchers in screening, soft (paper B.1)
SENSITIVE = ("sexual", "violent", "encourages_harm", "denigrates", "harmful_advice")
# (task, pairs that two people order alike, pairs that neither of them ties)
Votes = list[tuple[str, int, int]]
Two = Callable[[Answer, Answer], bool]


class Share(NamedTuple):
    """A share of pairs, with its 95 % interval; nan where there are none."""

    mean: float
    low: float
    high: float
    pairs: int


class Screening(NamedTuple):
    """One labeler against the known answers of researchers."""

    ranks: Share
    sensitive: Share  # of the flags of sensitive content, yes or no
    passed: bool  # no part that was asked is below CUTOFF


def pairwise(answers: Sequence[Answer], together: Two = lambda a, b: True) -> Share:
    """The paper's measure: of all pairs of completions that two labelers ranked and neither tied,
    the share that both order alike. `together`: which two labelers are compared."""
    return share(
        [
            vote
            for a, b in _doubles(answers)
            if together(a, b) and (vote := _vote(a, a.ranks, b.ranks))
        ]
    )


def by_group(answers: Sequence[Answer]) -> dict[str, Share]:
    """Among the screened labelers who make the training data, among the held-out ones, and between
    the two.
    """
    return {
        "training": pairwise(answers, lambda a, b: not a.held_out and not b.held_out),
        "held-out": pairwise(answers, lambda a, b: a.held_out and b.held_out),
        "between": pairwise(answers, lambda a, b: a.held_out != b.held_out),
    }


def by_labeler(answers: Sequence[Answer]) -> dict[str, Share]:
    """Each labeler against all the others."""
    names = sorted({answer.labeler for answer in answers})
    return {
        who: pairwise(answers, lambda a, b, who=who: who in (a.labeler, b.labeler)) for who in names
    }


def over_time(answers: Sequence[Answer], bins: int) -> list[tuple[float, Share]]:
    """(middle in unix seconds, agreement of the answers that came then with all others on their
    tasks), for equal stretches of time.
    """
    if not answers:
        return []
    times = [answer.submitted for answer in answers]
    edges = np.linspace(min(times), max(times), bins + 1)

    def when(answer: Answer) -> int:
        return min(int(np.searchsorted(edges, answer.submitted, side="right")) - 1, bins - 1)

    found = []
    for number, (start, end) in enumerate(itertools.pairwise(edges.tolist())):
        found.append(
            ((start + end) / 2, pairwise(answers, lambda a, b, n=number: n in (when(a), when(b))))
        )
    return found


def screening(answers: Sequence[Answer]) -> dict[str, Screening]:
    """Each labeler against the researchers, on the tasks whose answers they know (paper B.1)."""
    known = [answer for answer in answers if answer.known and answer.skipped is None]
    found = {}
    for who in sorted({answer.labeler for answer in known}):
        mine = [answer for answer in known if answer.labeler == who]
        ranks = share(
            [vote for a in mine if a.known and (vote := _vote(a, a.ranks, a.known.get("ranks")))]
        )
        flags = share(
            [
                vote
                for a in mine
                if a.known and (vote := _same_flags(a, a.flags, a.known.get("flags")))
            ]
        )
        asked = [part.mean for part in (ranks, flags) if part.pairs]
        found[who] = Screening(ranks, flags, bool(asked) and min(asked) >= CUTOFF)
    return found


def flags(answers: Sequence[Answer]) -> dict[str, Share]:
    """Of each flag: on which share of the completions that two labelers saw do they both say yes or
    both say no?  A flag that is hardly ever set is agreed on by nearly all: read it beside
    `alphas`."""
    names = sorted({name for answer in answers for flag in answer.flags for name in flag})
    return {name: share([_one_flag(a, b, name) for a, b in _doubles(answers)]) for name in names}


def alphas(answers: Sequence[Answer]) -> dict[str, float]:
    """Krippendorff's alpha, 1 = perfect, 0 = chance: of the order of pairs (worse, tied, better),
    of the Likert scores, of each flag.
    """
    ranked = [answer for answer in answers if answer.ranks is not None]
    names = sorted({name for answer in ranked for flag in answer.flags for name in flag})
    found = {
        "ranking": _alpha(
            ranked,
            lambda a: [float(np.sign(y - x)) for x, y in itertools.combinations(a.ranks or [], 2)],
            "ordinal",
        ),
        "likert": _alpha(
            ranked, lambda a: [math.nan if x is None else float(x) for x in a.likert], "ordinal"
        ),
    }
    return found | {
        name: _alpha(ranked, lambda a, n=name: [float(f.get(n, False)) for f in a.flags], "nominal")
        for name in names
    }


def share(votes: Votes) -> Share:
    """Pairs of one task are not independent, so the interval takes the tasks as its sample (a ratio
    of two sums over tasks).
    """
    alike, pairs = (np.array([vote[i] for vote in votes], float) for i in (1, 2))
    if not pairs.sum():
        return Share(math.nan, math.nan, math.nan, 0)
    mean = float(alike.sum() / pairs.sum())
    tasks = {task: number for number, task in enumerate(dict.fromkeys(vote[0] for vote in votes))}
    off = np.zeros(len(tasks))
    np.add.at(off, [tasks[vote[0]] for vote in votes], alike - mean * pairs)
    spread = (
        math.inf
        if len(tasks) < 2
        else math.sqrt(len(tasks) / (len(tasks) - 1) * (off**2).sum()) / pairs.sum()
    )
    return Share(
        mean, max(mean - 1.96 * spread, 0.0), min(mean + 1.96 * spread, 1.0), int(pairs.sum())
    )


def _doubles(answers: Iterable[Answer]) -> Iterator[tuple[Answer, Answer]]:
    """All two answers of different people to one task."""
    tasks: dict[str, list[Answer]] = {}
    for answer in answers:
        if answer.ranks is not None:
            tasks.setdefault(answer.task_id, []).append(answer)
    return (two for group in tasks.values() for two in itertools.combinations(group, 2))


def _vote(
    answer: Answer, first: Sequence[int] | None, second: Sequence[int] | None
) -> tuple[str, int, int] | None:
    if first is None or second is None:
        return None
    pairs = [
        (i, j)
        for i, j in itertools.combinations(range(len(first)), 2)
        if first[i] != first[j] and second[i] != second[j]
    ]
    return (
        answer.task_id,
        sum((first[i] < first[j]) == (second[i] < second[j]) for i, j in pairs),
        len(pairs),
    )


def _same_flags(
    answer: Answer, first: Sequence[dict], second: Sequence[dict] | None
) -> tuple[str, int, int] | None:
    if not second:
        return None
    asked = [
        (a.get(name, False), b[name])
        for a, b in zip(first, second, strict=True)
        for name in SENSITIVE
        if name in b
    ]
    return answer.task_id, sum(a == b for a, b in asked), len(asked)


def _one_flag(a: Answer, b: Answer, name: str) -> tuple[str, int, int]:
    both = [(x.get(name, False), y.get(name, False)) for x, y in zip(a.flags, b.flags, strict=True)]
    return a.task_id, sum(x == y for x, y in both), len(both)


def _alpha(
    answers: Sequence[Answer],
    values: Callable[[Answer], list[float]],
    level: Literal["ordinal", "nominal"],
) -> float:
    """nan where nothing was answered twice, or all say the same: there is no disagreement to expect
    then.
    """
    units: dict[tuple[str, int], dict[str, float]] = {}
    for answer in answers:
        for i, value in enumerate(values(answer)):
            units.setdefault((answer.task_id, i), {})[answer.labeler] = value
    people = sorted({answer.labeler for answer in answers})
    table = np.array([[unit.get(who, math.nan) for unit in units.values()] for who in people])
    seen = table[:, (~np.isnan(table)).sum(axis=0) >= 2] if table.size else table
    if seen.size == 0 or len(np.unique(seen[~np.isnan(seen)])) < 2:
        return math.nan
    return float(krippendorff.alpha(reliability_data=seen, level_of_measurement=level))
