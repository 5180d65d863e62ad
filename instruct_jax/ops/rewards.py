"""The reward that PPO maximises: the score of the whole response, and a KL penalty on each of its
tokens.
"""

import chex
import jax
import jax.numpy as jnp

from instruct_jax.ops.masking import last_index
from instruct_jax.records import Array


def shaped_reward(
    score: Array,
    logp: Array,
    ref_logp: Array,
    mask: Array,
    kl_coef: float | Array,
) -> tuple[jax.Array, jax.Array]:
    """R_t = score [t is the last response token] - kl_coef KL_t, KL_t = logp_t - ref_logp_t; (R,
    KL), f32 [B, T] each, 0 outside mask.

    score [B]; logp, ref_logp [B, T] in nats; mask bool [B, T]; kl_coef a float or f32 [].  KL is
    the sampled estimate: exact on average, and of either sign on one token.  It is the tensor to
    log: what is penalised and what is shown are the same. Source: paper 3.5 (objective 2); the
    placement of the score is Ziegler et al. 2019, arXiv:1909.08593, its code.
    """
    chex.assert_rank([score, mask], [1, 2])
    chex.assert_equal_shape([logp, ref_logp, mask])
    chex.assert_equal_shape_prefix([score, mask], 1)
    score, logp, ref_logp = (jnp.asarray(x, jnp.float32) for x in (score, logp, ref_logp))
    kl = jnp.where(mask, logp - ref_logp, 0.0)
    is_last = mask & (
        jax.lax.broadcasted_iota(jnp.int32, mask.shape, 1) == last_index(mask)[:, None]
    )
    return jnp.where(is_last, score[:, None], 0.0) - kl_coef * kl, kl


def missing_eos(score: Array, ended: Array, penalty: float) -> jax.Array:
    """score where the response ended by itself, elsewhere `penalty` in its place; score [B], ended
    bool [B] -> f32 [B].

    Replaces, not adds: an unfinished text has no score worth keeping.  Source: Ziegler et al. 2019,
    arXiv:1909.08593, 3.1 (-1 there).
    """
    chex.assert_equal_shape([score, ended])
    chex.assert_type(ended, bool)
    return jnp.where(ended, jnp.asarray(score, jnp.float32), penalty)
