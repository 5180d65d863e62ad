"""From logits to a token."""

import chex
import jax
import jax.numpy as jnp

BLOCK = 64  # tokens


def filter_logits(
    logits: jax.Array, *, temperature: float, top_k: int = 0, top_p: float = 1.0
) -> jax.Array:
    """Normalised log-probs f32 [B, V] of the distribution that is really sampled from; -inf where a
    token cannot be drawn.

    log softmax(logits / temperature), logits [B, V], cut to the top_k likeliest tokens (0 = all)
    and then to the smallest set of likeliest tokens whose probabilities reach top_p (1 = all), and
    normalised again.  Tokens as likely as the last one kept are kept too. temperature 0 is greedy:
    all mass on the likeliest token, the first of equals. Sources: Fan et al. 2018, arXiv:1805.04833
    (top-k); Holtzman et al. 2020, arXiv:1904.09751 (top-p).
    """
    chex.assert_rank(logits, 2)
    vocab = logits.shape[1]
    if temperature == 0:
        best = jnp.argmax(logits, axis=1, keepdims=True)
        return jnp.where(
            jax.lax.broadcasted_iota(best.dtype, logits.shape, 1) == best, 0.0, -jnp.inf
        )
    logp = jax.nn.log_softmax(logits.astype(jnp.float32) / temperature)
    if 0 < top_k < vocab:
        logp = keep_from(logp, jax.lax.top_k(logp, top_k)[0][:, -1:])
    if top_p < 1:
        likeliest_first = jnp.sort(logp, axis=1, descending=True)
        p = jnp.exp(likeliest_first)
        kept = jnp.cumsum(p, axis=1) - p < top_p  # those before it do not reach top_p yet
        logp = keep_from(logp, jnp.where(kept, likeliest_first, jnp.inf).min(axis=1, keepdims=True))
    return logp


def keep_from(logp: jax.Array, least: jax.Array) -> jax.Array:
    """logp [B, V] cut to the tokens with at least the log-prob least [B, 1], and
    normalised again.
    """
    return jax.nn.log_softmax(jnp.where(logp >= least, logp, -jnp.inf))


def draw(key: jax.Array, logp: jax.Array) -> jax.Array:
    """One token per row, int32 [B], of log-probs [B, V]: the first whose cumulative probability
    exceeds u * total, u ~ U[0, 1).

    Inverse CDF, first over blocks of the vocabulary and then inside the block: one uniform per row
    instead of V Gumbels, and no running sum over V.  The key is consumed.  A token of probability 0
    is never drawn, however the sums round.  u has 23 bits, so differences between probabilities
    below 1e-7 are not resolved.
    """
    chex.assert_rank(logp, 2)
    batch, vocab = logp.shape
    blocks = -(-vocab // BLOCK)
    p = jnp.pad(jnp.exp(logp.astype(jnp.float32)), ((0, 0), (0, blocks * BLOCK - vocab))).reshape(
        batch, blocks, BLOCK
    )
    mass = p.sum(axis=2)
    threshold = jax.random.uniform(key, (batch,)) * mass.sum(axis=1)
    block, before = _first_above(mass, threshold)
    inside, _ = _first_above(
        jnp.take_along_axis(p, block[:, None, None], axis=1)[:, 0], threshold - before
    )
    return block * BLOCK + inside


def _first_above(p: jax.Array, threshold: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(index int32 [B], the sum before it [B]) of the first of p [B, N] whose running sum exceeds
    threshold [B] and that is not 0; the last that is not 0 where rounding leaves none.
    """
    cumulative, index = jnp.cumsum(p, axis=1), jax.lax.broadcasted_iota(jnp.int32, p.shape, 1)
    first = jnp.where((cumulative > threshold[:, None]) & (p > 0), index, p.shape[1]).min(axis=1)
    found = jnp.minimum(first, jnp.where(p > 0, index, 0).max(axis=1))
    return found, jnp.take_along_axis(cumulative - p, found[:, None], axis=1)[:, 0]
