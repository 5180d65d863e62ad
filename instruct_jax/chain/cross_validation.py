"""Kind cross_validation: how much worse is a reward model on the rankings of people it has not
learned from?  (paper 4.1: 72.4 % within, 69.6 % across groups)
"""

import collections
import dataclasses
import hashlib
from typing import Any, ClassVar

import numpy as np

from instruct_jax.chain import parameters, rankings, reward
from instruct_jax.chain.context import Stage
from instruct_jax.chain.kind import Kind, Line
from instruct_jax.chain.reward import RewardStage
from instruct_jax.chain.settings import Leaves
from instruct_jax.data.schemas import Record
from instruct_jax.errors import require
from instruct_jax.evaluation import reward_accuracy
from instruct_jax.models.lora import merge, scalar_base
from instruct_jax.runtime.loop import train


@dataclasses.dataclass(frozen=True)
class CrossValidationStage(RewardStage):
    """Settings of a stage of kind cross_validation: those of the reward models that it trains."""

    leaves: ClassVar[Leaves] = "findings"

    groups: int = 5  # of labelers, with about as many rankings each

    def __post_init__(self):
        super().__post_init__()
        require(self.groups >= 2, f"groups={self.groups} must be at least 2")


def run(stage: Stage) -> dict[str, Any]:
    """One reward model for each group of labelers, trained on the rankings of the others; all are
    measured on held-out prompts, `within` on rankings of the groups that it learned from, `across`
    on those of the group that it did not.
    """
    given = rankings.gathered(stage)
    net = stage.network
    base = scalar_base(parameters.base(stage.run, net))
    folds = []
    groups = labeler_groups(given.train, stage.settings.groups, stage.seed, stage.name)
    for number, group in enumerate(groups, 1):
        name = f"{stage.name}/fold_{number}"
        others = [record for record in given.train if record["labeler_id"] not in group]
        ready = reward.training_on(stage, others, name)
        trained = train(ready, stage.run.folder / name).params
        params = merge(base, trained)
        fold: dict[str, Any] = {"labelers": sorted(group)}
        for part, inside in (("within", False), ("across", True)):
            records = []
            for record in given.held_out_prompts:
                in_group = record.get("labeler_id") in group
                if in_group is inside:
                    records.append(record)
            scored = rankings.scored(net, params, records) if records else []
            fold[part] = reward_accuracy.pair_accuracy(scored)
        folds.append(fold)
    means = {}
    for part in ("within", "across"):
        accuracies = [fold[part]["accuracy"] for fold in folds]
        means[part] = _over_folds(accuracies)
    return {"folds": folds} | means


def labeler_groups(
    records: list[Record], count: int, seed: int, stage: str = "cross_validation"
) -> list[set[str]]:
    """`count` groups of labelers with about as many rankings each: the one with the most goes to
    the smallest group, and so on.
    """
    sizes: collections.Counter[str] = collections.Counter()
    for record in records:
        labeler = record.get("labeler_id")
        if labeler is not None:
            sizes[labeler] += 1
    unnamed = len(records) - sizes.total()
    require(
        len(sizes) >= count and unnamed == 0,
        f"stages.{stage}.groups={count}, but the rankings name {len(sizes)} labelers ({unnamed} of"
        f" {len(records)} name none); write labeler_id in each, or lower {stage}.groups",
    )

    def place(who: str) -> tuple[int, bytes]:
        """The one with the most first; those with as many by a hash of the seed."""
        name = f"{seed} {who}"
        return -sizes[who], hashlib.sha256(name.encode()).digest()

    groups = [set[str]() for _ in range(count)]
    load = [0] * count
    for who in sorted(sizes, key=place):
        smallest = load.index(min(load))
        groups[smallest].add(who)
        load[smallest] += sizes[who]
    return groups


def _over_folds(values: list[float | None]) -> dict[str, float]:
    """Mean over the folds that have pairs to measure, and its standard error."""
    known = np.array([value for value in values if value is not None])
    standard_error = known.std(ddof=1) / len(known) ** 0.5
    return {"mean": float(known.mean()), "se": float(standard_error)}


def line(stage: Stage, facts: Any) -> Line:
    one = reward.line(stage, facts)
    return Line(f"{stage.settings.groups} x {one.steps}", one.batch)


KIND = Kind(
    settings=CrossValidationStage,
    run=run,
    reads=reward.reads,
    records=rankings.content,
    run_keys=("text",),
    check=reward.check,
    rows=reward.KIND.rows,
    line=line,
)
