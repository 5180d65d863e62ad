"""Rotary positions: frequencies, once per model, and the rotation."""

import math

import jax
import jax.numpy as jnp
import numpy as np


def frequencies(width: int, base: float) -> np.ndarray:
    """base^(-2i/width), f32 [width / 2], in radians per token (Su et al.

    2021, arXiv:2104.09864).
    """
    return (base ** -(np.arange(0, width, 2, dtype=np.float32) / width)).astype(np.float32)


def stretch_llama3(
    frequency: np.ndarray, factor: float, context: int, low: float, high: float
) -> np.ndarray:
    """Fewer than `low` waves in `context` tokens: divided by factor; more than `high`: kept; a
    blend in between (Llama 3.1).
    """
    waves = context * frequency / (2 * math.pi)
    kept = np.clip((waves - low) / (high - low), 0, 1)
    return (kept * frequency + (1 - kept) * frequency / factor).astype(np.float32)


def stretch_yarn(
    frequency: np.ndarray, base: float, factor: float, context: int, fast: float, slow: float
) -> np.ndarray:
    """Dimensions that turn more than `fast` times in `context` tokens are kept, less than `slow`
    times divided by factor, a ramp over the dimensions in between (Peng et al. 2023,
    arXiv:2309.00071, 3.2).
    """
    width = 2 * len(frequency)
    turns = lambda n: width * math.log(context / (n * 2 * math.pi)) / (2 * math.log(base))  # noqa: E731  dimension that turns n times
    first, last = max(math.floor(turns(fast)), 0), min(math.ceil(turns(slow)), width - 1)
    divided = np.clip((np.arange(len(frequency)) - first) / max(last - first, 1e-3), 0, 1)
    return (frequency * (1 - divided) + frequency / factor * divided).astype(np.float32)


def rotate(
    x: jax.Array, positions: jax.Array, frequency: jax.Array, factor: float = 1.0
) -> jax.Array:
    """Rotates the halves of the first 2 * len(frequency) numbers of each head by position *
    frequency, in float32; they grow by `factor`.

    x [B, L, H, C], positions [B, L] int32, frequency f32 [at most C / 2] -> the type of x.
    """
    angle = positions.astype(jnp.float32)[:, :, None, None] * frequency[None, None, None, :]
    cos, sin = jnp.cos(angle) * factor, jnp.sin(angle) * factor
    half = frequency.shape[0]
    a, b, rest = jnp.split(x.astype(jnp.float32), (half, 2 * half), axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1).astype(x.dtype)
