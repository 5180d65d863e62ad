"""The losses of PPO.

Weights are shares of one batch (records.py), so losses and metrics are sums; weight 0 hides
anything.
"""

import chex
import jax
import jax.numpy as jnp

from instruct_jax.records import Array, Metrics

# nats; beyond it the policy ratio is held at exp(+-20), and its gradient is 0: finite whatever the
# policy does
LOG_RATIO_BOUND = 20.0


def policy_loss(
    logp: Array, old_logp: Array, advantage: Array, weight: Array, *, clip: float
) -> tuple[jax.Array, Metrics]:
    """sum_t w_t max(-A_t r_t, -A_t clip(r_t, 1 - clip, 1 + clip)), r = exp(logp - old_logp); f32
    [], metrics.  All [B, T].

    Metrics: policy/ratio is the mean of r; policy/clip_fraction the share of tokens whose gradient
    the clipping stops; policy/approx_kl the estimate r - 1 - log r of KL(old || new) from samples
    of old, never negative (Schulman 2020, "Approximating KL divergence", k3). Source: paper 3.5 and
    C.4 (clip 0.2); Schulman et al. 2017, arXiv:1707.06347, eq. 7.
    """
    chex.assert_equal_shape([logp, old_logp, advantage, weight])
    logp, old_logp, advantage = only_weighted(weight, logp, old_logp, advantage)
    log_ratio = jnp.clip(logp - old_logp, -LOG_RATIO_BOUND, LOG_RATIO_BOUND)
    ratio = jnp.exp(log_ratio)
    plain, clipped = -advantage * ratio, -advantage * jnp.clip(ratio, 1 - clip, 1 + clip)
    loss = (weight * jnp.maximum(plain, clipped)).sum()
    return loss, {
        "policy/loss": loss,
        "policy/ratio": (weight * ratio).sum(),
        "policy/clip_fraction": jnp.where(clipped > plain, weight, 0.0).sum(),
        "policy/approx_kl": (weight * (ratio - 1 - log_ratio)).sum(),
    }


def value_loss(
    value: Array,
    old_value: Array,
    target: Array,
    weight: Array,
    *,
    clip: float | None,
) -> tuple[jax.Array, Metrics]:
    """sum_t w_t max((V_t - R_t)^2, (clip(V_t, old_t - clip, old_t + clip) - R_t)^2) / 2; f32 [],
    metrics.  All [B, T].

    clip None leaves the plain squared error.  value/clip_fraction is the share of tokens whose
    gradient the clipping stops. Source: Stiennon et al. 2020, arXiv:2009.01325, its code (clip
    0.2); the paper says only that it follows it.
    """
    chex.assert_equal_shape([value, old_value, target, weight])
    value, old_value, target = only_weighted(weight, value, old_value, target)
    near = value if clip is None else jnp.clip(value, old_value - clip, old_value + clip)
    plain, clipped = jnp.square(value - target), jnp.square(near - target)
    loss = 0.5 * (weight * jnp.maximum(plain, clipped)).sum()
    return loss, {
        "value/loss": loss,
        "value/clip_fraction": jnp.where(clipped > plain, weight, 0.0).sum(),
    }


def only_weighted(weight: Array, *arrays: Array) -> tuple[jax.Array, ...]:
    """The arrays as f32, 0 where they have no weight: neither values nor gradients of what is
    hidden can reach the loss.
    """
    return tuple(jnp.where(weight > 0, x.astype(jnp.float32), 0.0) for x in arrays)
