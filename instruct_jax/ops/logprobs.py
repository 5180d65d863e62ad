"""Log-probabilities of tokens from hidden states, without an array [..., V] that outlives its
chunk.
"""

from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np

from instruct_jax.records import Array


def softcap(x: jax.Array, cap: float | None) -> jax.Array:
    """cap tanh(x / cap), which lies in (-cap, cap); x where there is no cap (Gemma 2,
    arXiv:2408.00118).
    """
    return x if cap is None else cap * jnp.tanh(x / cap)


def token_logprobs(
    hidden: jax.Array,
    unembed: jax.Array,
    targets: Array,
    *,
    temperature: float = 1.0,
    chunk: int,
    vocab: int | None = None,
    never: Sequence[int] = (),
    cap: float | None = None,
) -> tuple[jax.Array, jax.Array]:
    """log p(target) and entropy in nats of p = softmax(hidden unembed^T / temperature); (f32 [...],
    f32 [...]).

    hidden [..., D] of any float type, unembed [V, D], targets [...] int32 in [0, V).  The matmul
    runs in the type of hidden, logits and everything after them are f32.  Gradients reach hidden
    and unembed; those of unembed are summed over chunks in its own type. Rows of unembed from
    `vocab` on, which only make its size rounder, have probability 0, and so have the tokens
    `never`.  Logits are softly capped at +-cap.

    At most `chunk` positions have their [V] logits at one time: the positions are cut into equal
    chunks that run one after the other, and the backward pass computes each chunk's logits again.
    Where all positions fit in one chunk, nothing is computed twice. Chunk i takes the positions i,
    i + n, i + 2n, ...: where the positions are sharded, every device has its share of every chunk.
    """
    chex.assert_rank(unembed, 2)
    chex.assert_shape(hidden, (*targets.shape, unembed.shape[1]))
    chex.assert_type([hidden, unembed, targets], [float, float, int])

    def read(part: tuple[jax.Array, Array]) -> tuple[jax.Array, jax.Array]:
        states, target = part
        logits = jnp.einsum(
            "nd,vd->nv", states, unembed.astype(states.dtype), preferred_element_type=jnp.float32
        )
        logits = softcap(logits, cap) / temperature
        token = jax.lax.broadcasted_iota(target.dtype, logits.shape, 1)
        if vocab is not None and vocab < unembed.shape[0]:
            logits = jnp.where(token < vocab, logits, jnp.finfo(jnp.float32).min)
        if never:
            possible = np.ones(unembed.shape[0], bool)
            possible[list(never)] = False
            logits = jnp.where(possible[None], logits, jnp.finfo(jnp.float32).min)
        logp = jax.nn.log_softmax(logits)
        is_target = token == target[:, None]  # no gather: V may be sharded
        return jnp.where(is_target, logp, 0.0).sum(axis=1), -(jnp.exp(logp) * logp).sum(axis=1)

    count = targets.size
    chunks = max(1, -(-count // chunk))
    size = -(-count // chunks)

    def split(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, ((0, chunks * size - count),) + ((0, 0),) * (x.ndim - 1))
        return x.reshape(size, chunks, *x.shape[1:]).swapaxes(0, 1)

    def join(x: jax.Array) -> jax.Array:
        return x.swapaxes(0, 1).reshape(chunks * size)[:count].reshape(targets.shape)

    flat = hidden.reshape(count, hidden.shape[-1]), targets.reshape(count)
    if chunks == 1:
        logp, entropy = read(flat)
        return logp.reshape(targets.shape), entropy.reshape(targets.shape)
    logp, entropy = jax.lax.map(jax.checkpoint(read, prevent_cse=False), jax.tree.map(split, flat))
    return join(logp), join(entropy)
