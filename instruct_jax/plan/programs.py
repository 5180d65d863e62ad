"""The programs of the stages of a config on abstract arrays, and what they compute and move."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from instruct_jax.chain.context import Run
from instruct_jax.chain.kinds import KINDS
from instruct_jax.chain.programs import Adam, Learns, Operation, Program, Reads, Samples
from instruct_jax.chain.run import picked
from instruct_jax.chain.settings import RunConfig
from instruct_jax.config import MESH
from instruct_jax.models.attention import make_attention
from instruct_jax.models.lm import LanguageModel
from instruct_jax.plan.costs import Costs, Work


def with_programs(config: RunConfig, stages: Sequence[str] | None) -> list[str]:
    """The stages of those that are asked for (None: all) that have programs of their own."""
    found = []
    for name in picked(config, stages):
        kind = KINDS[config.stages[name].kind]
        if kind.programs is not None:
            found.append(name)
    return found


def programs(config: RunConfig, stages: Sequence[str], devices: Sequence[Any]) -> Iterator[Program]:
    """Of the stages, on these devices, in the order in which they run.  No array is made, and
    neither data nor weights are read.
    """
    run = Run(config, Path(config.out), devices=devices, abstract=True)
    for name in stages:
        make = KINDS[config.stages[name].kind].programs
        if make is not None:
            yield from make(run.stage(name))


def work_of(program: Program) -> Work:
    """What one run of the program computes and moves."""
    total = Work(0, 0, 0)
    for operation in program.operations:
        total += _work(operation)
    return total


def _work(operation: Operation) -> Work:
    costs = costs_of(operation.model)
    sizes = operation[1:]
    match operation:
        case Reads():
            return costs.forward(*sizes)
        case Learns():
            return costs.training(*sizes)
        case Samples():
            return costs.decoding(*sizes)
        case Adam():
            return costs.learning(*sizes)


def costs_of(lm: LanguageModel) -> Costs:
    """Of a model on the mesh of its layout."""
    assert lm.layout is not None
    sizes = {axis: lm.layout.mesh.shape[axis] for axis in MESH}
    fused = make_attention(lm.config, lm.layout).kind != "xla"
    return Costs(lm.config, sizes, fused)
