"""A checksum of each array of a tree.  It depends on names, places and bits only, not on devices,
layout or files, so what was saved on one mesh can be checked on another."""

import math
from typing import Any

import jax
import jax.numpy as jnp


def named_leaves(tree: Any) -> dict[str, Any]:
    """Dotted name -> leaf, such as "params.block.w"; a typed key as the integers that it is stored
    as.
    """
    named = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): _stored(leaf)
        for path, leaf in named
    }


def digests(tree: Any) -> dict[str, int]:
    """Name -> checksum.

    An array of which one element changed has another one for certain, any other array all but
    certainly.
    """
    return {
        name: int(value) for name, value in jax.device_get(_digests(named_leaves(tree))).items()
    }


def _stored(leaf: Any) -> Any:
    if not isinstance(leaf, jax.Array | jax.ShapeDtypeStruct) or not jnp.issubdtype(
        leaf.dtype, jax.dtypes.prng_key
    ):
        return leaf
    return (
        jax.random.key_data(leaf)
        if isinstance(leaf, jax.Array)
        else jax.eval_shape(jax.random.key_data, leaf)
    )


@jax.jit
def _digests(leaves: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {name: _digest(leaf) for name, leaf in leaves.items()}


def _digest(x: jax.Array) -> jax.Array:
    """The sum, modulo 2^32, of a hash of each element's bits and place.

    Whole numbers add up in any order, on any mesh.
    """
    bits = (
        x
        if x.dtype == bool
        else jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}"))
    )
    place = jnp.zeros(x.shape, jnp.uint32)
    for axis in range(x.ndim):
        stride = math.prod(x.shape[axis + 1 :]) % 2**32
        place += jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * jnp.uint32(stride)
    mixed = bits.astype(jnp.uint32) + place * jnp.uint32(0x9E3779B9)
    for shift, factor in (
        (16, 0x85EBCA6B),
        (13, 0xC2B2AE35),
    ):  # the finish of MurmurHash3: one-to-one, so no change of bits is lost
        mixed = (mixed ^ (mixed >> shift)) * jnp.uint32(factor)
    return (mixed ^ (mixed >> 16)).sum(dtype=jnp.uint32)
