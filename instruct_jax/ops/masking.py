"""Masks and segments: what counts, what may see what, and statistics over what counts.

What a mask hides may be anything, NaN too.
"""

import chex
import jax
import jax.numpy as jnp

from instruct_jax.records import Array


def masked_sum(x: Array, mask: Array, axis: int | tuple[int, ...] | None = None) -> jax.Array:
    """Sum of x over the True entries of mask, f32; 0 where there are none.

    x, mask: one shape, mask bool.
    """
    chex.assert_equal_shape([x, mask])
    chex.assert_type(mask, bool)
    return jnp.where(mask, jnp.asarray(x, jnp.float32), 0.0).sum(axis)


def masked_mean(x: Array, mask: Array, axis: int | tuple[int, ...] | None = None) -> jax.Array:
    """Mean of x over the True entries of mask, f32; 0 where there are none.

    x, mask: one shape, mask bool.
    """
    count = jnp.sum(mask, axis, dtype=jnp.float32)
    return masked_sum(x, mask, axis) / jnp.maximum(count, 1.0)


def whiten(x: Array, mask: Array, *, eps: float = 1e-8) -> jax.Array:
    """(x - mean) / sqrt(variance + eps) over the True entries of the whole array, 0 elsewhere; f32,
    the shape of x.

    The variance is biased (divided by the count, not by count - 1).  Source: Ziegler et al. 2019,
    arXiv:1909.08593, its code.
    """
    chex.assert_equal_shape([x, mask])
    x = jnp.where(mask, jnp.asarray(x, jnp.float32), 0.0)
    centred = x - masked_mean(x, mask)
    variance = masked_mean(jnp.square(centred), mask)
    return jnp.where(mask, centred * jax.lax.rsqrt(variance + eps), 0.0)


def positions(segments: Array) -> jax.Array:
    """Position of each token within its own run of equal segments [..., L] -> int32 [..., L].

    Left-padded, right-padded and packed rows alike: 0 0 1 1 1 2 2 -> 0 1 0 1 2 0 1.
    """
    chex.assert_type(segments, int)
    index = jax.lax.broadcasted_iota(jnp.int32, segments.shape, segments.ndim - 1)
    begins = jnp.ones_like(segments, bool).at[..., 1:].set(segments[..., 1:] != segments[..., :-1])
    return index - jax.lax.cummax(jnp.where(begins, index, 0), axis=segments.ndim - 1)


def attention_mask(segments: Array, window: int | None = None) -> jax.Array:
    """Who may see whom: segments [B, L] -> bool [B, 1, L, L], query before key; the 1 stands for
    the heads.

    Query q sees key k if k <= q, both belong to the same segment, it is not padding (segment 0),
    and, with a window, q - k < window.  A padding query sees nothing.
    """
    chex.assert_rank(segments, 2)
    segments = jnp.asarray(segments)
    query, key = segments[:, :, None], segments[:, None, :]
    causal = jnp.tril(jnp.ones((1, segments.shape[1], segments.shape[1]), bool))
    if window is not None:
        causal &= jnp.triu(causal, 1 - window)
    return ((query == key) & (key > 0) & causal)[:, None]


def last_index(mask: Array) -> jax.Array:
    """Index of the last True of each row, 0 where there is none: bool [..., L] -> int32 [...]."""
    chex.assert_type(mask, bool)
    index = jax.lax.broadcasted_iota(jnp.int32, mask.shape, mask.ndim - 1)
    return jnp.where(mask, index, 0).max(axis=-1)
