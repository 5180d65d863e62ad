"""Generalised advantage estimation."""

import chex
import jax
import jax.numpy as jnp

from instruct_jax.records import Array


def gae(reward: Array, value: Array, mask: Array, *, gamma: float, lam: float) -> jax.Array:
    """A_t = d_t + gamma lam A_{t+1}, d_t = r_t + gamma V_{t+1} - V_t; one sequence, f32 [T], 0
    outside mask.  Batches: jax.vmap.

    reward, value [T]; mask bool [T], a prefix of True.  value_t is the estimate before token t;
    after the last token it is 0, for the episode is over.  If gamma = lam = 1, A + V is the reward
    to go. Source: Schulman et al. 2016, arXiv:1506.02438, eq. 16; the paper's gamma is 1 (C.4).
    """
    chex.assert_rank([reward, value, mask], 1)
    chex.assert_equal_shape([reward, value, mask])
    reward, value = (jnp.where(mask, jnp.asarray(x, jnp.float32), 0.0) for x in (reward, value))
    following = jnp.append(value[1:], jnp.zeros_like(value[:1]))
    delta = reward + gamma * following - value

    def backward(advantage, delta):
        advantage = delta + gamma * lam * advantage
        return advantage, advantage

    return jax.lax.scan(backward, jnp.zeros_like(value[0]), delta, reverse=True)[1]
