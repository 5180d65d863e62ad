"""Mesh, logical axis rules, states born sharded, and the one place where a step is jitted."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from instruct_jax.config import MeshConfig
from instruct_jax.records import Params, TrainState

# logical axis -> mesh axis.  What is not named here is replicated.
RULES = {
    "batch": ("data", "fsdp"),
    "embed": "fsdp",
    "vocab": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
}


def make_mesh(config: MeshConfig) -> Mesh:
    """A (data, fsdp, tensor) mesh over the first devices that it needs; ValueError where there are too few."""
    shape = config.shape(jax.device_count())
    size = shape[0] * shape[1] * shape[2]
    return jax.make_mesh(shape, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3, devices=jax.devices()[:size])


def spec(axes: tuple[str | None, ...]) -> PartitionSpec:
    """The partition of an array with these logical axis names."""
    return PartitionSpec(*(RULES.get(a) if a else None for a in axes))


def constrain(mesh: Mesh) -> Callable[[jax.Array, tuple[str | None, ...]], jax.Array]:
    """The function with which a model pins its activations to the mesh."""
    return lambda x, axes: jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec(axes)))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Batches are split over data and fsdp along one axis."""
    return NamedSharding(mesh, spec((None,) * axis + ("batch",)))


def shardings_of(boxed: Any, mesh: Mesh) -> Any:
    """Shardings of a tree whose arrays carry logical axis names; an axis that the mesh does not divide is an error that names it."""

    def one(path, leaf):
        axes = leaf.names if isinstance(leaf, nn.LogicallyPartitioned) else ()
        sharding = NamedSharding(mesh, spec(axes))
        shape = leaf.value.shape if isinstance(leaf, nn.LogicallyPartitioned) else leaf.shape
        try:
            sharding.shard_shape(shape)
        except ValueError as error:
            raise ValueError(f"mesh {dict(mesh.shape)} does not divide {jax.tree_util.keystr(path)} {shape} with axes {axes}") from error
        return sharding

    return jax.tree_util.tree_map_with_path(one, boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))


def unboxed(tree: Any) -> Any:
    """The tree without its logical axis names."""
    return nn.unbox(tree)


def create_sharded(create: Callable[..., Any], mesh: Mesh, *args: Any) -> Any:
    """create(*args) -> a tree with boxed weights, born on the mesh: no device ever holds the whole of it.  Returns it unboxed."""
    shardings = shardings_of(jax.eval_shape(create, *args), mesh)
    return jax.jit(lambda *a: nn.unbox(create(*a)), out_shardings=shardings)(*args)


def create_state(
    mesh: Mesh,
    boxed: Params,
    params: Params,
    init_optimizer: Callable[[Params], Any],
    key: jax.Array,
    *,
    averaged: Callable[[Params], Params] | None = None,
    kl_coef: float = 0.0,
) -> TrainState:
    """The state of a stage before its first step: a copy of `params` on the mesh, optimizer state and average laid out like them.

    boxed: the abstract tree of `params` with logical axis names, from jax.eval_shape(model.init, key).  averaged picks the part of the
    params of which a moving average is kept.
    """

    def create(params: Params, key: jax.Array) -> TrainState:
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=init_optimizer(params),
            ema=None if averaged is None else averaged(params),
            key=key,
            kl_coef=jnp.full((), kl_coef, jnp.float32),
        )

    layout = shardings_of(jax.eval_shape(create, boxed, key), mesh)
    return jax.jit(create, out_shardings=layout)(params, key)


def compile_step(step: Callable, mesh: Mesh, state: TrainState, *batches: NamedSharding) -> Callable:
    """jit of (state, *batches) -> (state, metrics): the state keeps its layout and its memory, metrics are replicated.

    batches: the layout of each further argument; by default one, split along its first axis.
    """
    layout = jax.tree.map(lambda x: x.sharding, state)
    return jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(layout, *(batches or (batch_sharding(mesh),))),
        out_shardings=(layout, replicated(mesh)),
    )


def ahead_of_time(step: Callable, state: TrainState, examples: Iterable[Any]) -> Callable:
    """A jitted step compiled for the shapes of all example batches before the first step, so that nothing compiles later on."""
    shape_of = lambda batch: tuple(x.shape for x in jax.tree.leaves(batch))  # noqa: E731
    compiled = {shape: step.lower(state, batch).compile() for shape, batch in {shape_of(b): b for b in examples}.items()}
    return lambda state, batch: compiled[shape_of(batch)](state, batch)
