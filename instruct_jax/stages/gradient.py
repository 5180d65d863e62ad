"""The gradient step that every supervised stage shares."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from instruct_jax.records import Metrics, Params, TrainState

# (params, batch, key) -> (loss [] f32, metrics); both are weighted sums over the batch (see
# records.py), so micro-batches add.
LossFn = Callable[[Params, Any, jax.Array], tuple[jax.Array, Metrics]]


def split_rows(batch: Any, parts: int) -> Any:
    """Arrays [B, ...] as [parts, B / parts, ...]; part i has rows i, i + parts, i + 2 parts, ...:
    every device keeps its own rows.
    """

    def split(x):
        rows = x.shape[0] // parts
        x = x.reshape(rows, parts, *x.shape[1:])
        return x.swapaxes(0, 1)

    return jax.tree.map(split, batch)


def map_rows(fn: Callable[[Any], Any], batch: Any, parts: int) -> Any:
    """fn(batch) for an fn that treats every row by itself, computed in parts one after
    the other.
    """
    if parts == 1:
        return fn(batch)
    done = jax.lax.map(fn, split_rows(batch, parts))

    def join(x):
        x = x.swapaxes(0, 1)
        return x.reshape(-1, *x.shape[2:])

    return jax.tree.map(join, done)


def accumulate(
    loss_fn: LossFn,
    params: Params,
    batch: Any,
    key: jax.Array,
    micro_batches: int,
) -> tuple[Params, Metrics]:
    """Gradients and metrics of one batch, computed in `micro_batches` parts one after the other and
    summed.

    Saves memory, and on a CPU time: the activations of a small part stay in the cache.
    """
    gradient = jax.grad(loss_fn, has_aux=True)
    if micro_batches == 1:
        return gradient(params, batch, key)

    def add_part(total, part):
        micro_batch, index = part
        part_key = jax.random.fold_in(key, index)
        more = gradient(params, micro_batch, part_key)
        return jax.tree.map(jnp.add, total, more), None

    parts = split_rows(batch, micro_batches)
    numbers = jnp.arange(micro_batches)
    first = jax.tree.map(lambda x: x[0], parts)
    shapes = jax.eval_shape(gradient, params, first, key)
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    total, _ = jax.lax.scan(add_part, zero, (parts, numbers))
    return total


def make_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    micro_batches: int = 1,
) -> Callable[[TrainState, Any], tuple[TrainState, Metrics]]:
    """The pure step (state, batch) -> (state, metrics) of a supervised stage."""

    def step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(state.key, state.step)
        grads, metrics = accumulate(loss_fn, state.params, batch, key, micro_batches)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = metrics | {"optim/grad_norm": optax.tree.norm(grads)}
        state = dataclasses.replace(
            state,
            step=state.step + 1,
            params=params,
            opt_state=opt_state,
        )
        return state, metrics

    return step
