"""The adaptive KL coefficient by hand, its direction, and that it settles."""

import chex
import jax.numpy as jnp
import numpy as np
import pytest

from instruct_jax.ops.kl_control import adaptive_kl


@pytest.mark.parametrize(
    "kl, expected",
    [
        (6.0, 0.15),  # on target
        (6.6, 0.15 * (1 + 0.1 * 512 / 10_000)),  # 10 % above
        (5.4, 0.15 * (1 - 0.1 * 512 / 10_000)),
        (600.0, 0.15 * (1 + 0.2 * 512 / 10_000)),  # clipped
        (-3.0, 0.15 * (1 - 0.2 * 512 / 10_000)),
    ],
)
def test_by_hand(kl, expected):
    """Target 6 nats, horizon 10k episodes, 512 per iteration, as in Ziegler et al. 2019."""
    result = adaptive_kl(0.15, kl, 512, target=6.0, horizon=10_000.0)
    np.testing.assert_allclose(result, expected, rtol=1e-6)
    chex.assert_type(
        [
            result,
            adaptive_kl(jnp.float32(0.15), jnp.float32(kl), 512, target=6.0, horizon=10_000.0),
        ],
        jnp.float32,
    )


def test_wider_clip_moves_further():
    assert adaptive_kl(0.1, 60.0, 100, target=6.0, horizon=1000.0, clip=0.5) > adaptive_kl(
        0.1, 60.0, 100, target=6.0, horizon=1000.0
    )


def test_settles_where_the_policy_strays_by_the_target():
    """A policy whose KL is 0.3 / coefficient settles at coefficient 0.3 / target, from
    both sides.
    """
    for coef in (0.001, 10.0):
        for _ in range(2000):
            coef = float(adaptive_kl(coef, 0.3 / coef, 100, target=6.0, horizon=2000.0))
        np.testing.assert_allclose(coef, 0.05, rtol=1e-3)
