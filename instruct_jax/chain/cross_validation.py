"""How much worse is a reward model on the rankings of people it has not learned from?  (paper 4.1:
72.4 % within, 69.6 % across groups)
"""

import collections
import hashlib
from typing import Any

import numpy as np

from instruct_jax.chain import measure
from instruct_jax.chain.train import reward_training
from instruct_jax.chain.workspace import Workspace
from instruct_jax.data.schemas import Record
from instruct_jax.errors import require
from instruct_jax.models.lora import join, scalar_base


def cross_validation(ws: Workspace) -> dict[str, Any]:
    """One reward model for each group of labelers, trained on the rankings of the others; all are
    measured on held-out prompts, `within` on rankings of the groups that it learned from, `across`
    on those of the group that it did not.
    """
    train, held_out = (
        measure.read_compared(ws.folder / "compare", name) for name in ("train", "held_out_prompts")
    )
    groups = labeler_groups(train, ws.config.cross_validation.groups, ws.config.seed)
    folds = []
    for number, group in enumerate(groups, 1):
        name = f"cross_validation/fold_{number}"
        training = reward_training(
            ws, name, [record for record in train if record["labeler_id"] not in group]
        )
        params = join(scalar_base(ws.base), training.run(ws.folder / name).params)
        parts = {
            "within": [record for record in held_out if record.get("labeler_id") not in group],
            "across": [record for record in held_out if record.get("labeler_id") in group],
        }
        scores = {
            part: measure.pair_accuracy(ws, params, records) for part, records in parts.items()
        }
        folds.append({"labelers": sorted(group)} | scores)
    return {"folds": folds} | {
        part: _over_folds([fold[part]["accuracy"] for fold in folds])
        for part in ("within", "across")
    }


def labeler_groups(rankings: list[Record], count: int, seed: int) -> list[set[str]]:
    """`count` groups of labelers with about as many rankings each: the one with the most goes to
    the smallest group, and so on.
    """
    sizes = collections.Counter(
        record["labeler_id"] for record in rankings if record.get("labeler_id") is not None
    )
    require(
        len(sizes) >= count and sum(sizes.values()) == len(rankings),
        f"cross_validation.groups={count}, but the rankings name {len(sizes)} labelers"
        f" ({len(rankings) - sum(sizes.values())} of {len(rankings)} name none); write labeler_id"
        " in each, or lower cross_validation.groups",
    )
    lot = {who: hashlib.sha256(f"{seed} {who}".encode()).digest() for who in sizes}
    groups, load = [set[str]() for _ in range(count)], [0] * count
    for who in sorted(sizes, key=lambda who: (-sizes[who], lot[who])):
        smallest = load.index(min(load))
        groups[smallest].add(who)
        load[smallest] += sizes[who]
    return groups


def _over_folds(values: list[float | None]) -> dict[str, float]:
    """Mean over the folds that have pairs to measure, and its standard error."""
    known = np.array([value for value in values if value is not None])
    return {"mean": float(known.mean()), "se": float(known.std(ddof=1) / len(known) ** 0.5)}
