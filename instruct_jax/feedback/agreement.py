"""How far labelers agree, as numbers and as text.  Pure functions of answers.

The paper (3.4) reports 72.6 ± 1.5 % for training labelers and 77.3 ± 1.3 % for held-out labelers.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import krippendorff
import numpy as np

from instruct_jax.feedback.store import Answer
from instruct_jax.text import table

CUTOFF = 0.75  # of agreement with researchers in screening, soft (paper B.1)
SENSITIVE = ("sexual", "violent", "encourages_harm", "denigrates", "harmful_advice")
Two = Callable[[Answer, Answer], bool]


class Vote(NamedTuple):
    """How two people compare on one task, over pairs of completions or over flags."""

    task_id: str
    alike: int  # in how many they agree
    compared: int  # out of so many


class Share(NamedTuple):
    """A share of pairs with its 95 % interval; NaN where there are no pairs."""

    mean: float
    low: float
    high: float
    pairs: int


class Screening(NamedTuple):
    """One labeler against the known answers of researchers."""

    ranks: Share
    sensitive: Share  # of the flags of sensitive content, yes or no
    passed: bool  # no part that the tasks asked for is below CUTOFF


def pairwise(answers: Sequence[Answer], together: Two = lambda a, b: True) -> Share:
    """The paper's measure of agreement.

    Of all pairs of completions that two labelers ranked and neither tied, it is the share that both
    order alike.  `together` tells which two labelers are compared.
    """
    votes = []
    for a, b in _same_task_pairs(answers):
        if together(a, b) and a.ranks is not None and b.ranks is not None:
            votes.append(_same_order(a.task_id, a.ranks, b.ranks))
    return share(votes)


def by_group(answers: Sequence[Answer]) -> dict[str, Share]:
    """Agreement within the training labelers, within the held-out ones, and between the two."""
    return {
        "training": pairwise(answers, lambda a, b: not a.held_out and not b.held_out),
        "held-out": pairwise(answers, lambda a, b: a.held_out and b.held_out),
        "between": pairwise(answers, lambda a, b: a.held_out != b.held_out),
    }


def by_labeler(answers: Sequence[Answer]) -> dict[str, Share]:
    """Agreement of each labeler with all the others."""
    shares = {}
    for who in sorted({answer.labeler for answer in answers}):

        def one_is_this(a: Answer, b: Answer, who: str = who) -> bool:
            return who in (a.labeler, b.labeler)

        shares[who] = pairwise(answers, one_is_this)
    return shares


def over_time(answers: Sequence[Answer], bins: int) -> list[tuple[float, Share]]:
    """Agreement in equal stretches of time: (its middle in unix seconds, the share).

    The answers that came in a stretch are compared with all others on their tasks.
    """
    if not answers:
        return []
    times = [answer.submitted for answer in answers]
    edges = np.linspace(min(times), max(times), bins + 1)

    def stretch(answer: Answer) -> int:
        number = int(np.searchsorted(edges, answer.submitted, side="right")) - 1
        return min(number, bins - 1)

    points = []
    for number, (start, end) in enumerate(itertools.pairwise(edges.tolist())):

        def one_came_then(a: Answer, b: Answer, number: int = number) -> bool:
            return number in (stretch(a), stretch(b))

        middle = (start + end) / 2
        points.append((middle, pairwise(answers, one_came_then)))
    return points


def screening(answers: Sequence[Answer]) -> dict[str, Screening]:
    """Each labeler against the researchers, on the tasks that these answered (paper B.1)."""
    rank_votes: dict[str, list[Vote]] = {}
    flag_votes: dict[str, list[Vote]] = {}
    for answer in answers:
        if not answer.known or answer.skipped is not None:
            continue
        on_ranks = rank_votes.setdefault(answer.labeler, [])
        on_flags = flag_votes.setdefault(answer.labeler, [])
        known_ranks = answer.known.get("ranks")
        known_flags = answer.known.get("flags")
        if answer.ranks is not None and known_ranks is not None:
            on_ranks.append(_same_order(answer.task_id, answer.ranks, known_ranks))
        if known_flags:
            on_flags.append(_same_flags(answer.task_id, answer.flags, known_flags))
    screened = {}
    for who in sorted(rank_votes):
        ranks = share(rank_votes[who])
        sensitive = share(flag_votes[who])
        means = [part.mean for part in (ranks, sensitive) if part.pairs]
        passed = bool(means) and min(means) >= CUTOFF
        screened[who] = Screening(ranks, sensitive, passed)
    return screened


def flags(answers: Sequence[Answer]) -> dict[str, Share]:
    """For each flag, the share of the completions on which two labelers both say yes or both no.

    Nearly all agree on a flag that is hardly ever set, so read it beside `alphas`.
    """
    shares = {}
    for name in _flag_names(answers):
        votes = [_same_flag(a, b, name) for a, b in _same_task_pairs(answers)]
        shares[name] = share(votes)
    return shares


def alphas(answers: Sequence[Answer]) -> dict[str, float]:
    """Krippendorff's alpha, 1 = perfect, 0 = chance.

    It is taken of the order of pairs (worse, tied, better), of the Likert scores, and of each flag.
    """
    ranked = [answer for answer in answers if answer.ranks is not None]

    def orders(answer: Answer) -> list[float]:
        pairs = itertools.combinations(answer.ranks or [], 2)
        return [float(np.sign(y - x)) for x, y in pairs]

    def likert(answer: Answer) -> list[float]:
        return [math.nan if score is None else float(score) for score in answer.likert]

    found = {
        "ranking": _alpha(ranked, orders, "ordinal"),
        "likert": _alpha(ranked, likert, "ordinal"),
    }
    for name in _flag_names(ranked):

        def flag(answer: Answer, name: str = name) -> list[float]:
            return [float(flags.get(name, False)) for flags in answer.flags]

        found[name] = _alpha(ranked, flag, "nominal")
    return found


def share(votes: Sequence[Vote]) -> Share:
    """The share of pairs that are alike, and its interval.

    Pairs of one task are not independent, so the interval takes the tasks as its sample: the share
    is a ratio of two sums over tasks.
    """
    alike = np.array([vote.alike for vote in votes], float)
    compared = np.array([vote.compared for vote in votes], float)
    pairs = compared.sum()
    if not pairs:
        return Share(math.nan, math.nan, math.nan, 0)
    mean = float(alike.sum() / pairs)
    number_of: dict[str, int] = {}
    for vote in votes:
        number_of.setdefault(vote.task_id, len(number_of))
    tasks = len(number_of)
    task_of_vote = [number_of[vote.task_id] for vote in votes]
    residual = np.zeros(tasks)
    np.add.at(residual, task_of_vote, alike - mean * compared)
    spread = math.inf
    if tasks > 1:
        squares = (residual**2).sum()
        spread = math.sqrt(tasks / (tasks - 1) * squares) / pairs
    half = 1.96 * spread
    low = max(mean - half, 0.0)
    high = min(mean + half, 1.0)
    return Share(mean, low, high, int(pairs))


def as_text(answers: Sequence[Answer]) -> str:
    """Agreement as the paper reports it, and the measures beside it, as tables."""
    columns = ("share", "95 %", "pairs")
    groups = []
    for name, value in by_group(answers).items():
        label = "training with held-out" if name == "between" else f"{name} labelers"
        groups.append((label, *_cells(value)))
    labelers = []
    for who, value in by_labeler(answers).items():
        labelers.append((who, *_cells(value)))
    known_alphas = []
    for name, value in alphas(answers).items():
        if not math.isnan(value):
            known_alphas.append((name, f"{value:.3f}"))
    flag_rows = []
    for name, value in flags(answers).items():
        flag_rows.append((name, *_cells(value)))
    tables = [
        table(("agreement on pairs", *columns), groups),
        table(("agreement on pairs", *columns), labelers),
        table(("Krippendorff's alpha", ""), known_alphas),
        table(("flags: both say yes, or both no", *columns), flag_rows),
    ]
    screened = []
    for who, result in screening(answers).items():
        ranks, ranks_interval, _ = _cells(result.ranks)
        flags_alike, flags_interval, _ = _cells(result.sensitive)
        passed = "yes" if result.passed else "no"
        screened.append((who, ranks, ranks_interval, flags_alike, flags_interval, passed))
    if screened:
        head = ("screening, against researchers", "ranks", "95 %", "sensitive flags", "95 %")
        tables.append(table((*head, "passed"), screened))
    return "\n\n".join("\n".join(lines) for lines in tables)


def _cells(value: Share) -> tuple[str, str, str]:
    if not value.pairs:
        return "-", "-", "0"
    interval = f"{value.low:.1%} to {value.high:.1%}"
    return f"{value.mean:.1%}", interval, f"{value.pairs:,}"


def _same_task_pairs(answers: Iterable[Answer]) -> Iterator[tuple[Answer, Answer]]:
    """All two ranked answers of different people to one task."""
    by_task: dict[str, list[Answer]] = {}
    for answer in answers:
        if answer.ranks is not None:
            by_task.setdefault(answer.task_id, []).append(answer)
    for same_task in by_task.values():
        yield from itertools.combinations(same_task, 2)


def _flag_names(answers: Iterable[Answer]) -> list[str]:
    names = set()
    for answer in answers:
        for flags in answer.flags:
            names.update(flags)
    return sorted(names)


def _same_order(task_id: str, first: Sequence[int], second: Sequence[int]) -> Vote:
    """Over the pairs of completions that neither of the two rankings ties."""
    alike = 0
    compared = 0
    for i, j in itertools.combinations(range(len(first)), 2):
        if first[i] == first[j] or second[i] == second[j]:
            continue
        compared += 1
        if (first[i] < first[j]) == (second[i] < second[j]):
            alike += 1
    return Vote(task_id, alike, compared)


def _same_flags(
    task_id: str,
    given: Sequence[dict[str, Any]],
    known: Sequence[dict[str, Any]],
) -> Vote:
    """Over the flags of sensitive content that researchers answered."""
    alike = 0
    compared = 0
    for mine, theirs in zip(given, known, strict=True):
        for name in SENSITIVE:
            if name not in theirs:
                continue
            compared += 1
            if mine.get(name, False) == theirs[name]:
                alike += 1
    return Vote(task_id, alike, compared)


def _same_flag(a: Answer, b: Answer, name: str) -> Vote:
    """Over the completions of one task."""
    alike = 0
    for first, second in zip(a.flags, b.flags, strict=True):
        if first.get(name, False) == second.get(name, False):
            alike += 1
    return Vote(a.task_id, alike, len(a.flags))


def _alpha(
    answers: Sequence[Answer],
    values: Callable[[Answer], list[float]],
    level: Literal["ordinal", "nominal"],
) -> float:
    """Krippendorff's alpha of some values of each answer.

    NaN where nothing was answered twice, or where all say the same: no disagreement is expected
    then.
    """
    units: dict[tuple[str, int], dict[str, float]] = {}
    for answer in answers:
        for i, value in enumerate(values(answer)):
            unit = units.setdefault((answer.task_id, i), {})
            unit[answer.labeler] = value
    rows = []  # [labelers, units], NaN where a labeler did not answer
    for who in sorted({answer.labeler for answer in answers}):
        rows.append([unit.get(who, math.nan) for unit in units.values()])
    ratings = np.array(rows)
    if ratings.size:
        answered_twice = (~np.isnan(ratings)).sum(axis=0) >= 2
        ratings = ratings[:, answered_twice]
    different = np.unique(ratings[~np.isnan(ratings)])
    if len(different) < 2:
        return math.nan
    return float(krippendorff.alpha(reliability_data=ratings, level_of_measurement=level))
