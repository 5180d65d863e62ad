"""Simulated people who rank replies: they see what the gold score sees, have tastes of their own,
and are noisy.

    utility = gold + fluff * phrases + length * tokens - rude * [a rude word] + sigma * N(0, 1)

The tastes of the training labelers and of the held-out labelers come from different distributions
(TASTES): the first like polite phrases and longer replies a little, the second dislike both and
take rudeness harder.  The noise is the same for both groups, so a reward model that does worse on
held-out labelers does so because of taste.  sigma is found by bisection so that two training
labelers agree on as many pairs as the paper's do.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from .dice import Dice
from .gold import gold_parts
from .instructions import Task

AGREEMENT = 0.726  # between two training labelers, paper 3.4
TIE = 0.05  # replies closer than this in utility share a rank
MAX_SIGMA = 2.0
BISECTIONS = 14  # sigma to about 1e-4

# group -> (mean, standard deviation over labelers) of each weight; rude is folded to be positive
TASTES = {
    "train": {"fluff": (0.035, 0.0175), "length": (0.002, 0.0014), "rude": (0.0, 0.1)},
    "held_out": {"fluff": (-0.09, 0.04), "length": (-0.009, 0.004), "rude": (0.2, 0.1)},
}
GROUP_SIZE = {"train": 8, "held_out": 4}


@dataclasses.dataclass(frozen=True)
class Labeler:
    labeler_id: str
    group: str
    fluff: float  # utility of one fluff phrase
    length: float  # utility of one token
    rude: float  # disutility of a rude word, beyond what gold takes

    def utility(self, parts: dict[str, Any]) -> float:
        """What this person thinks of a reply on a day without noise."""
        return (
            parts["score"]
            + self.fluff * parts["fluff"]
            + self.length * parts["length"]
            - self.rude * parts["rude"]
        )


def labelers(seed: int, group: str = "train") -> list[Labeler]:
    """The people of a group."""
    generator = Dice(seed, f"labelers {group}").generator
    people = []
    for i in range(GROUP_SIZE[group]):
        taste = {
            key: float(generator.normal(mean, spread))
            for key, (mean, spread) in TASTES[group].items()
        }
        person = Labeler(
            labeler_id=f"{group}-{i}",
            group=group,
            fluff=taste["fluff"],
            length=taste["length"],
            rude=abs(taste["rude"]),
        )
        people.append(person)
    return people


def rank(
    labeler: Labeler,
    task: Task,
    completions: Sequence[str],
    ended: Sequence[bool],
    sigma: float,
    generator: np.random.Generator,
) -> list[int]:
    """Ranks of K replies, 1 = best, equal = tie.  The same reply twice gets the same rank."""
    views = _views(task, completions, ended)
    noise = generator.standard_normal(len(completions))
    utilities = _utilities(labeler, views, sigma, noise)
    return to_ranks(utilities)


def to_ranks(utilities: Sequence[float], tie: float = TIE) -> list[int]:
    """Ranks without gaps; a rank takes in all that is within `tie` of its best."""
    best_first = sorted(range(len(utilities)), key=lambda i: -utilities[i])
    ranks = [0] * len(utilities)
    current = 0
    best = float("inf")
    for i in best_first:
        if best - utilities[i] > tie:
            current += 1
            best = utilities[i]
        ranks[i] = current
    return ranks


def rankings(
    seed: int,
    samples: Sequence[dict[str, Any]],
    people: Sequence[Labeler],
    sigma: float,
) -> list[dict[str, Any]]:
    """Records `prompt, completions, ended, ranks, likert, flags, labeler_id`; each prompt is ranked
    by one labeler.

    samples: `prompt, task, completions: [K], ended: [K]`; their other fields but `task` are kept.
    """
    dice = Dice(seed, "rankings")
    records = []
    for sample in samples:
        labeler = dice.pick(people)
        views = _views(sample["task"], sample["completions"], sample["ended"])
        noise = dice.generator.standard_normal(len(views))
        utilities = _utilities(labeler, views, sigma, noise)
        record = {key: value for key, value in sample.items() if key != "task"}
        labels = {
            "ranks": to_ranks(utilities),
            "likert": [_likert(u) for u in utilities],
            "flags": [_flags(parts) for _, parts in views],
            "labeler_id": labeler.labeler_id,
        }
        records.append(record | labels)
    return records


def agreement(first: Sequence[Sequence[int]], second: Sequence[Sequence[int]]) -> float:
    """Share of the pairs that two labelers order alike, over all pairs that neither of
    them ties.
    """
    alike = 0
    pairs = 0
    for a, b in zip(first, second, strict=True):
        for i, j in itertools.combinations(range(len(a)), 2):
            if a[i] == a[j] or b[i] == b[j]:
                continue
            pairs += 1
            if (a[i] < a[j]) == (b[i] < b[j]):
                alike += 1
    return alike / max(pairs, 1)


def group_agreement(
    seed: int,
    samples: Sequence[dict[str, Any]],
    people: Sequence[Labeler],
    sigma: float,
    others: Sequence[Labeler] | None = None,
) -> float:
    """Agreement when each prompt is ranked by two different people: of one group, or one of
    `people` and one of `others`.
    """
    return _Double(seed, samples, people, others).agreement(sigma)


def calibrate_sigma(
    seed: int,
    samples: Sequence[dict[str, Any]],
    people: Sequence[Labeler],
    target: float = AGREEMENT,
) -> float:
    """The noise at which two people of the group agree on `target` of the pairs of these samples; 0
    if they differ more without any.
    """
    double = _Double(seed, samples, people, None)
    low = 0.0
    high = MAX_SIGMA
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if double.agreement(middle) > target:
            low = middle
        else:
            high = middle
    return low


class _Double:
    """Samples labeled twice: who ranks what and with which noise is fixed, so that agreement is a
    smooth function of sigma.
    """

    def __init__(
        self,
        seed: int,
        samples: Sequence[dict[str, Any]],
        people: Sequence[Labeler],
        others: Sequence[Labeler] | None,
    ):
        dice = Dice(seed, "double labels")
        self.rows = []
        for sample in samples:
            views = _views(sample["task"], sample["completions"], sample["ended"])
            if others is None:
                both = dice.sample(people, 2)
            else:
                both = [dice.pick(people), dice.pick(others)]
            noise = dice.generator.standard_normal((2, len(views)))
            self.rows.append((views, both, noise))

    def agreement(self, sigma: float) -> float:
        first = []
        second = []
        for views, both, noise in self.rows:
            utilities = _utilities(both[0], views, sigma, noise[0])
            first.append(to_ranks(utilities))
            utilities = _utilities(both[1], views, sigma, noise[1])
            second.append(to_ranks(utilities))
        return agreement(first, second)


View = tuple[tuple[str, bool], dict[str, Any]]  # a reply and its gold parts


def _views(task: Task, completions: Sequence[str], ended: Sequence[bool]) -> list[View]:
    views = []
    for reply in zip(completions, ended, strict=True):
        parts = gold_parts(task, *reply)
        views.append((reply, parts))
    return views


def _utilities(
    labeler: Labeler,
    views: Sequence[View],
    sigma: float,
    noise: np.ndarray,
) -> list[float]:
    """One utility per reply; equal replies share their noise."""
    drawn: dict[tuple[str, bool], float] = {}
    utilities = []
    for (reply, parts), z in zip(views, noise, strict=True):
        own = drawn.setdefault(reply, float(z))
        utilities.append(labeler.utility(parts) + sigma * own)
    return utilities


def _likert(utility: float) -> int:
    """1 worst .. 7 best."""
    share = min(max(utility, 0.0), 1.0)
    return round(1 + 6 * share)


def _flags(parts: dict[str, Any]) -> dict[str, bool]:
    """The paper's Table 3, as far as it applies here."""
    wrong = parts["task"] < 0.5 and parts["truth"] == 0.0
    return {
        "fails_task": not parts["on_task"],
        "inappropriate": parts["rude"],
        "hallucination": parts["on_task"] and wrong,
        "satisfies_constraints": parts["truth"] == 1.0,
    }
