"""The coefficient of the KL penalty as a thermostat."""

import jax
import jax.numpy as jnp


def adaptive_kl(
    kl_coef: float | jax.Array,
    kl: float | jax.Array,
    n: int,
    *,
    target: float,
    horizon: float,
    clip: float = 0.2,
) -> jax.Array:
    """kl_coef (1 + clip(kl / target - 1, -clip, clip) n / horizon): up where the policy strays too
    far, down where it does not; f32 [].

    kl and target in nats per sequence; n sequences since the last call; horizon in sequences, the
    longer the gentler. Source: Ziegler et al. 2019, arXiv:1909.08593, eq. 4.  The paper keeps the
    coefficient fixed (0.02).
    """
    error = jnp.clip(jnp.asarray(kl, jnp.float32) / target - 1, -clip, clip)
    return jnp.asarray(kl_coef, jnp.float32) * (1 + error * (n / horizon))
