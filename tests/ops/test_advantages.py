"""GAE against its definition as a double sum, against rlax, and at the ends of lambda."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from instruct_jax.ops.advantages import gae


def tables(length=9, seed=0):
    return tuple(
        jnp.asarray(x, jnp.float32) for x in np.random.default_rng(seed).normal(size=(2, length))
    )


def slow(reward, value, gamma, lam):
    """A_t = sum_k (gamma lam)^k d_{t+k}, term by term, over one sequence without padding."""
    reward, value = np.asarray(reward, np.float64), [*np.asarray(value, np.float64), 0.0]
    length = len(reward)
    delta = [reward[t] + gamma * value[t + 1] - value[t] for t in range(length)]
    return [
        sum((gamma * lam) ** k * delta[t + k] for k in range(length - t)) for t in range(length)
    ]


def test_by_hand():
    """gamma 1/2, lambda 1/2: d = (1 + 1 - 1, 0 + 2 - 2, 8 - 4) = (1, 0, 4), A_2 = 4, A_1 = 0 + 4/4,
    A_0 = 1 + 1/4.
    """
    reward, value = jnp.array([1.0, 0.0, 8.0]), jnp.array([1.0, 2.0, 4.0])
    np.testing.assert_allclose(
        gae(reward, value, jnp.ones(3, bool), gamma=0.5, lam=0.5), [1.25, 1.0, 4.0]
    )


SETTINGS = pytest.mark.parametrize(
    "gamma, lam", [(1.0, 0.95), (0.9, 0.8), (1.0, 0.0), (0.0, 0.7), (1.0, 1.0)]
)


@SETTINGS
@pytest.mark.parametrize("length", [1, 4, 9])
def test_against_the_double_sum(gamma, lam, length):
    reward, value = tables()
    result = gae(reward, value, np.arange(9) < length, gamma=gamma, lam=lam)
    np.testing.assert_allclose(
        result[:length], slow(reward[:length], value[:length], gamma, lam), atol=1e-5
    )
    assert (np.asarray(result)[length:] == 0).all()


@SETTINGS
def test_against_rlax(rlax, gamma, lam):
    """rlax takes one value more, the bootstrap: 0, for our episodes end."""
    reward, value = tables()
    theirs = rlax.truncated_generalized_advantage_estimation(
        reward, jnp.full(9, gamma), lam, jnp.append(value, 0.0)
    )
    np.testing.assert_allclose(
        gae(reward, value, jnp.ones(9, bool), gamma=gamma, lam=lam), theirs, atol=1e-5
    )


def test_with_gamma_and_lambda_one_advantage_plus_value_is_the_reward_to_go():
    reward, value = tables()
    result = gae(reward, value, jnp.ones(9, bool), gamma=1.0, lam=1.0) + value
    np.testing.assert_allclose(result, [sum(map(float, reward[t:])) for t in range(9)], atol=1e-5)


def test_with_the_true_value_nothing_is_an_advantage():
    """Values that equal the reward to go: every delta is 0, whatever lambda."""
    reward, _ = tables()
    value = jnp.cumsum(reward[::-1])[::-1]
    np.testing.assert_allclose(
        gae(reward, value, jnp.ones(9, bool), gamma=1.0, lam=0.5), np.zeros(9), atol=1e-5
    )


@pytest.mark.parametrize("garbage", [1e9, np.nan, -np.inf])
@pytest.mark.parametrize("length", [0, 1, 5, 9])
def test_padding_changes_nothing(length, garbage):
    reward, value = tables()
    mask = np.arange(9) < length
    run = lambda r, v, m: gae(r, v, m, gamma=0.9, lam=0.8)  # noqa: E731
    short = run(reward[:length], value[:length], mask[:length]) if length else jnp.zeros(0)
    padded = run(jnp.where(mask, reward, garbage), jnp.where(mask, value, garbage), mask)
    np.testing.assert_allclose(padded, np.append(short, np.zeros(9 - length)), atol=1e-6)


def test_float32_whatever_comes_in_and_batches_by_vmap():
    mask = jnp.arange(4)[None, :] < jnp.array([2, 4])[:, None]
    batched = jax.vmap(lambda r, v, m: gae(r, v, m, gamma=1.0, lam=0.95))
    result = batched(jnp.ones((2, 4), jnp.int32), jnp.ones((2, 4), jnp.bfloat16), mask)
    chex.assert_type(result, jnp.float32)
    for row, length in enumerate([2, 4]):
        np.testing.assert_allclose(
            result[row, :length], slow(np.ones(length), np.ones(length), 1.0, 0.95), atol=1e-5
        )


def test_batches_without_vmap_are_refused():
    with pytest.raises(AssertionError):
        gae(jnp.ones((2, 3)), jnp.ones((2, 3)), jnp.ones((2, 3), bool), gamma=1.0, lam=1.0)
