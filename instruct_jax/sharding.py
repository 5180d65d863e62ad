"""Mesh, logical axis rules, states born sharded, and the one place where a step is jitted."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from instruct_jax.config import MESH, MeshConfig
from instruct_jax.records import Metrics, Params, TrainState

# logical axis -> mesh axes.  What is not named here is replicated.
TRAINING: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "sequence": ("context",),
    "rows": ("data", "fsdp", "context"),  # the batch, where the sequence is one token
    "embed": ("fsdp",),
    "vocab": ("tensor",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
}
# every token reads all weights, so no token should wait for them
SAMPLING = TRAINING | {"embed": ()}


class Layout(NamedTuple):
    """Where the logical axes of arrays lie on a mesh."""

    mesh: Mesh
    rules: Mapping[str, tuple[str, ...]] = TRAINING

    def sharding(self, *axes: str | None) -> NamedSharding:
        """Of an array with these logical axes; none = replicated."""
        return NamedSharding(
            self.mesh,
            PartitionSpec(*(self.rules.get(axis) or None if axis else None for axis in axes)),
        )

    def constrain(self, x: jax.Array, *axes: str | None) -> jax.Array:
        """Pins an activation to the mesh."""
        return jax.lax.with_sharding_constraint(x, self.sharding(*axes))

    def parts(self, logical: str) -> int:
        """Into how many parts a logical axis is cut."""
        return math.prod(self.mesh.shape[axis] for axis in self.rules[logical])


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh over the first devices (of all of them) that it needs; ValueError where there are too
    few.
    """
    devices = jax.devices() if devices is None else devices
    shape = config.shape(len(devices))
    # mesh axes may share an axis of the torus: 32 x 2 on 4 x 4 x 4
    grid = mesh_utils.create_device_mesh(
        shape, devices[: math.prod(shape)], allow_split_physical_axes=True
    )
    return Mesh(grid, MESH, axis_types=(AxisType.Auto,) * len(MESH))


def layouts(config: MeshConfig, mesh: Mesh) -> tuple[Layout, Layout]:
    """(for training, for sampling)"""
    return Layout(mesh, TRAINING | config.training), Layout(mesh, SAMPLING | config.sampling)


def shardings_of(boxed: Any, layout: Layout) -> Any:
    """Shardings of a tree whose arrays carry logical axis names; an axis that the mesh does not
    divide is an error that names it.
    """

    def one(path, leaf):
        axes = leaf.names if isinstance(leaf, nn.LogicallyPartitioned) else ()
        sharding = layout.sharding(*axes)
        shape = leaf.value.shape if isinstance(leaf, nn.LogicallyPartitioned) else leaf.shape
        try:
            sharding.shard_shape(shape)
        except ValueError as error:
            sizes, name = dict(layout.mesh.shape), jax.tree_util.keystr(path)
            raise ValueError(
                f"mesh {sizes} does not divide {name} {shape} with axes {axes}"
            ) from error
        return sharding

    return jax.tree_util.tree_map_with_path(
        one, boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned)
    )


def abstract(boxed: Any, layout: Layout) -> Any:
    """The tree as jax.ShapeDtypeStruct with shardings: what to restore, or to compile for."""
    shardings = shardings_of(boxed, layout)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), nn.unbox(boxed), shardings
    )


def rows_here(sharding: NamedSharding, size: int, axis: int = 0) -> np.ndarray:
    """Which of `size` rows the devices of this process hold, ascending."""
    shape = (1,) * axis + (size,)
    starts = sharding.addressable_devices_indices_map(shape).values()
    return np.unique(np.concatenate([np.arange(size)[index[axis]] for index in starts]))  # pyright: ignore


def put(batch: Any, sharding: NamedSharding, size: int, axis: int = 0) -> Any:
    """The rows that this process holds, as rows_here names them, made part of a batch of `size`
    rows on the mesh.
    """

    def one(x: np.ndarray) -> jax.Array:
        return jax.make_array_from_process_local_data(
            sharding, x, (*x.shape[:axis], size, *x.shape[axis + 1 :])
        )

    return jax.tree.map(one, batch)


def fetch(tree: Any) -> Any:
    """The whole of every array, as numpy, on every process."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)


def reshard(params: Params, boxed: Params, layout: Layout) -> Params:
    """The same parameters in another layout of the same mesh; nothing moves where it is
    the same.
    """
    return jax.device_put(params, shardings_of(boxed, layout))


def create_sharded(create: Callable[..., Any], layout: Layout, *args: Any) -> Any:
    """create(*args) -> a tree with boxed weights, born on the mesh: no device ever holds the whole
    of it.  Returns it unboxed.
    """
    shardings = shardings_of(jax.eval_shape(create, *args), layout)
    return jax.jit(lambda *a: nn.unbox(create(*a)), out_shardings=shardings)(*args)


def new_state(
    params: Params,
    key: jax.Array,
    *,
    init_optimizer: Callable[[Params], Any],
    averaged: Callable[[Params], Params] | None = None,
    kl_coef: float = 0.0,
) -> TrainState:
    """The state of a stage before its first step.

    averaged picks the part of the params of which a moving average is kept.
    """
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=init_optimizer(params),
        ema=None if averaged is None else averaged(params),
        key=key,
        kl_coef=jnp.full((), kl_coef, jnp.float32),
    )


def create_state(
    layout: Layout,
    boxed: Params,
    params: Params,
    init_optimizer: Callable[[Params], Any],
    key: jax.Array,
    **options,
) -> TrainState:
    """new_state on the mesh: a copy of `params`, optimizer state and average laid out like them.

    boxed: the abstract tree of `params` with logical axis names, from jax.eval_shape(model.init,
    key).
    """
    create = functools.partial(new_state, init_optimizer=init_optimizer, **options)
    return jax.jit(create, out_shardings=shardings_of(jax.eval_shape(create, boxed, key), layout))(
        params, key
    )


def compile_step(
    step: Callable, layout: Layout, state: TrainState, *batches: Any
) -> jax.stages.Wrapped:
    """jit of only_finite(step): the state keeps its layout and its memory, metrics are replicated.

    batches: the layout of each further argument, a sharding or a tree of them; by default there is
    one argument, split along its first axis.
    """
    own = jax.tree.map(lambda x: x.sharding, state)
    return jax.jit(
        only_finite(step),
        donate_argnums=0,
        in_shardings=(own, *(batches or (layout.sharding("batch"),))),
        out_shardings=(own, layout.sharding()),
    )


def only_finite(step: Callable) -> Callable:
    """The step (state, *batches) -> (state, metrics), but one with a metric that is not finite
    leaves the state as it was and halts it.

    A halted state has ~n as its step, n being the steps completed, and no step changes it: the loop
    sees metrics late, when the next step is on its way already.
    """

    def run(state: TrainState, *batches: Any) -> tuple[TrainState, Metrics]:
        after, metrics = step(state, *batches)
        good = jnp.stack([jnp.isfinite(value) for value in jax.tree.leaves(metrics)]).all() & (
            state.step >= 0
        )
        # steps never change it, and to choose between keys would use them
        same_key = dataclasses.replace(after, key=state.key)
        kept = jax.tree.map(
            lambda new, old: old if new is old else jnp.where(good, new, old), same_key, state
        )
        halted = jnp.minimum(state.step, ~state.step)  # the negative one of the two
        return dataclasses.replace(kept, step=jnp.where(good, after.step, halted)), metrics

    return run


def ahead_of_time(
    step: jax.stages.Wrapped, state: TrainState, base: Params, examples: Iterable[Any]
) -> Callable:
    """A jitted step (state, base, batch), on its base and compiled for the shapes of all example
    batches before the first step, so that nothing compiles later on.
    """
    shape_of = lambda batch: tuple(x.shape for x in jax.tree.leaves(batch))  # noqa: E731
    compiled = {
        shape: step.lower(state, base, batch).compile()
        for shape, batch in {shape_of(b): b for b in examples}.items()
    }
    return lambda state, batch: compiled[shape_of(batch)](state, base, batch)
