"""A checksum of each array of a tree.

It depends on names, places and bits only, not on devices, layout or files, so what was saved on one
mesh can be checked on another.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp


def named_leaves(tree: Any) -> dict[str, Any]:
    """Dotted name -> leaf, such as "params.block.w".

    A typed random key is given as the integers that it is stored as.
    """
    named = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        named[name] = _stored(leaf)
    return named


def digests(tree: Any) -> dict[str, int]:
    """Name -> checksum, an integer of 32 bits.

    Where one element of an array changed, its checksum certainly changes; where several did, all
    but certainly.
    """
    fetched = jax.device_get(_digests(named_leaves(tree)))
    return {name: int(value) for name, value in fetched.items()}


def _stored(leaf: Any) -> Any:
    is_array = isinstance(leaf, jax.Array | jax.ShapeDtypeStruct)
    if not is_array or not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return leaf
    if isinstance(leaf, jax.Array):
        return jax.random.key_data(leaf)
    return jax.eval_shape(jax.random.key_data, leaf)


@jax.jit
def _digests(leaves: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {name: _digest(leaf) for name, leaf in leaves.items()}


@jax.jit  # arrays of one shape are traced once
def _digest(x: jax.Array) -> jax.Array:
    """The sum, modulo 2^32, of a hash of each element's bits and place; x has any shape and dtype.

    Integers add up to the same in any order, on any mesh.
    """
    bits = x
    if x.dtype != bool:
        bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}"))
    place = jnp.zeros(x.shape, jnp.uint32)
    for axis in range(x.ndim):
        stride = math.prod(x.shape[axis + 1 :]) % 2**32
        place += jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * jnp.uint32(stride)
    mixed = bits.astype(jnp.uint32) + place * jnp.uint32(0x9E3779B9)
    # the finalizer of MurmurHash3 is one-to-one, so no change of bits is lost
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        mixed = (mixed ^ (mixed >> shift)) * jnp.uint32(factor)
    return (mixed ^ (mixed >> 16)).sum(dtype=jnp.uint32)
