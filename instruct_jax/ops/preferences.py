"""Learning from rankings."""

import chex
import jax
import jax.numpy as jnp

from instruct_jax.records import Array


def ranking_loss(scores: Array, ranks: Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """-(1 / pairs) sum over the pairs (w better than l) of log sigmoid(s_w - s_l); (loss, accuracy,
    margin), f32 [] each.

    One prompt: scores [K]; ranks [K] int32, 1 = best, equal = tie, 0 = no completion.  Batches:
    jax.vmap.  Ties are dropped; the mean is over the pairs that are left, so a prompt weighs the
    same whatever its K; all three are 0 where no pair is left.  accuracy is the share of the pairs
    with s_w > s_l, margin the mean of s_w - s_l.  K scores make up to K (K - 1) / 2 pairs: one
    forward pass per completion, not per pair.

    Source: paper 3.5, eq. 1, and C.2.
    """
    chex.assert_rank([scores, ranks], 1)
    chex.assert_equal_shape([scores, ranks])
    chex.assert_type(ranks, int)
    scores = jnp.asarray(scores, jnp.float32)
    better = (ranks[:, None] > 0) & (ranks[:, None] < ranks[None, :])
    margin = jnp.where(better, scores[:, None] - scores[None, :], 0.0)
    pairs = jnp.maximum(better.sum(dtype=jnp.int32), 1).astype(jnp.float32)
    share = jnp.where(better, 1 / pairs, 0.0)
    loss = -(share * jax.nn.log_sigmoid(margin)).sum()
    accuracy = jnp.where(margin > 0, share, 0.0).sum()
    return loss, accuracy, (share * margin).sum()
