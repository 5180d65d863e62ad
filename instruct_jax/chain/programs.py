"""The jitted functions of a stage on abstract arrays, and what each computes: what `plan` asks of a
kind.  All arrays here are jax.ShapeDtypeStruct with shardings.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from instruct_jax.models.lm import LanguageModel
from instruct_jax.records import PromptBatch, RankingBatch, TokenBatch, TrainState
from instruct_jax.sharding import Layout


class Reads(NamedTuple):
    """A forward pass; rows and positions are those of all devices together."""

    model: LanguageModel
    rows: int
    length: int
    positions: int = 0  # at which logits are made


class Learns(NamedTuple):
    """A forward and a backward pass, in `parts` micro-batches."""

    model: LanguageModel
    rows: int
    length: int
    positions: int = 0
    parts: int = 1


class Samples(NamedTuple):
    """`tokens` tokens for each row after a prompt, one after the other."""

    model: LanguageModel
    rows: int
    prompt: int
    tokens: int


class Adam(NamedTuple):
    """Steps of the optimizer, and the sums of the gradients of micro-batches."""

    model: LanguageModel
    parameters: int  # that are trained
    parts: int = 1
    steps: int = 1


Operation = Reads | Learns | Samples | Adam


class Program(NamedTuple):
    """One jitted function, and what lies on the devices while it runs.

    An array that is named twice is the same object, and is counted once.
    """

    stage: str
    step: str
    run: Any  # of jax.jit
    arguments: tuple[Any, ...]
    here: Mapping[str, Any]  # the large ones among its arguments, by name
    elsewhere: Mapping[str, Any]  # no arguments, but on the devices meanwhile
    parameters: int  # of the models that it reads
    operations: tuple[Operation, ...]


def large_parts(state: TrainState) -> dict[str, Any]:
    """What is large in a state, by name."""
    found: dict[str, Any] = {}
    for what, tree in (("weights", state.params), ("Adam", state.opt_state)):
        if isinstance(tree, dict) and "policy" in tree:
            for model, part in tree.items():
                found[f"{what} of {model}"] = part
        else:
            found[what] = tree
    if state.ema is not None:
        found["average of the policy"] = state.ema
    return found


def split(layout: Layout, tree: Any, *, axis: int = 0) -> Any:
    """The shapes with their place where one axis is the batch."""
    before = (None,) * axis
    return _placed(tree, layout.sharding(*before, "batch"))


def replicated(layout: Layout, tree: Any) -> Any:
    """The shapes with their place where every device has a copy."""
    return _placed(tree, layout.sharding())


def _placed(tree: Any, where: Any) -> Any:
    def placed(x: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)

    return jax.tree.map(placed, tree)


def texts(layout: Layout, *shape: int) -> TokenBatch:
    """[rows, length], or [updates, rows, length]"""
    batch = TokenBatch(_ints(*shape), _ints(*shape), _floats(*shape))
    return split(layout, batch, axis=len(shape) - 2)


def rankings(layout: Layout, rows: int, k: int, length: int) -> RankingBatch:
    batch = RankingBatch(
        _ints(rows, k, length),
        _bools(rows, k, length),
        _ints(rows, k),
        _floats(rows),
    )
    return split(layout, batch)


def prompts(layout: Layout, rows: int, length: int) -> PromptBatch:
    batch = PromptBatch(_ints(rows, length), _bools(rows, length))
    return split(layout, batch)


def scores(layout: Layout, *shape: int) -> Any:
    """[rows] or [rows, k] f32"""
    return split(layout, _floats(*shape))


def _ints(*shape: int) -> Any:
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def _bools(*shape: int) -> Any:
    return jax.ShapeDtypeStruct(shape, jnp.bool)


def _floats(*shape: int) -> Any:
    return jax.ShapeDtypeStruct(shape, jnp.float32)
