"""Where the score lands, what the KL penalty is, and in which type."""

import chex
import jax.numpy as jnp
import numpy as np
import pytest

from instruct_jax.ops.rewards import missing_eos, shaped_reward

LENGTHS = [3, 1, 4, 0]  # ended early; eos at once; filled the buffer; no response at all
MASK = np.arange(4)[None, :] < np.array(LENGTHS)[:, None]
SCORE = jnp.array([0.73, -1.62, 2.5, 9.0])


def logps(dtype=jnp.float32):
    return tuple(jnp.asarray(x, dtype) for x in np.random.default_rng(0).normal(-2, 1, (2, 4, 4)))


def test_by_hand():
    logp, ref = jnp.array([[-1.0, -2.0, -3.0]]), jnp.array([[-1.5, -1.0, -3.0]])
    reward, kl = shaped_reward(jnp.array([4.0]), logp, ref, jnp.array([[True, True, False]]), 0.1)
    np.testing.assert_allclose(kl, [[0.5, -1.0, 0.0]])
    np.testing.assert_allclose(reward, [[-0.05, 4.1, 0.0]], rtol=1e-6)


def test_against_loops_over_unpadded_responses():
    logp, ref = logps()
    reward, kl = shaped_reward(SCORE, logp, ref, MASK, 0.3)
    expected, expected_kl = np.zeros((4, 4)), np.zeros((4, 4))
    for row, length in enumerate(LENGTHS):
        for t in range(length):
            expected_kl[row, t] = float(logp[row, t]) - float(ref[row, t])
            expected[row, t] = -0.3 * expected_kl[row, t] + (
                float(SCORE[row]) if t == length - 1 else 0
            )
    np.testing.assert_allclose(reward, expected, atol=1e-6)
    np.testing.assert_allclose(kl, expected_kl, atol=1e-6)


def test_the_sum_over_a_response_is_the_objective():
    """R(x, y) = r(x, y) - beta log(policy / reference)."""
    logp, ref = logps()
    reward, kl = shaped_reward(SCORE, logp, ref, MASK, jnp.float32(0.3))
    scored = np.where(np.array(LENGTHS) > 0, SCORE, 0)
    np.testing.assert_allclose(reward.sum(axis=1), scored - 0.3 * kl.sum(axis=1), atol=1e-6)


def test_policy_equal_to_reference_has_exactly_no_kl():
    logp, _ = logps()
    reward, kl = shaped_reward(SCORE, logp, logp, MASK, 0.3)
    assert (np.asarray(kl) == 0).all()
    np.testing.assert_array_equal(reward.sum(axis=1), np.where(np.array(LENGTHS) > 0, SCORE, 0))


@pytest.mark.parametrize("garbage", [1e9, np.nan, -np.inf])
def test_beyond_the_end_anything_may_stand(garbage):
    logp, ref = logps()
    clean = shaped_reward(SCORE, logp, ref, MASK, 0.3)
    logp, ref = jnp.where(MASK, logp, garbage), jnp.where(MASK, ref, garbage)
    dirty = shaped_reward(SCORE, logp, ref, MASK, 0.3)
    chex.assert_trees_all_equal(clean, dirty)
    assert all((np.asarray(x)[~MASK] == 0).all() for x in dirty)


@pytest.mark.parametrize("score_type", [jnp.bfloat16, jnp.int32, jnp.float32])
@pytest.mark.parametrize("logp_type", [jnp.bfloat16, jnp.float32])
def test_rewards_are_float32(score_type, logp_type):
    """A reward in the type of the tokens would turn 0.73 into 0."""
    logp, _ = logps(logp_type)
    reward, kl = shaped_reward(SCORE.astype(score_type), logp, logp, MASK, 0.3)
    chex.assert_type([reward, kl], jnp.float32)
    assert reward[0, 2] == SCORE.astype(score_type)[0].astype(jnp.float32)


def test_missing_eos_replaces_the_score():
    ended = jnp.array([True, False, True, False])
    result = missing_eos(SCORE, ended, -1.0)
    np.testing.assert_array_equal(result, jnp.array([0.73, -1.0, 2.5, -1.0]))
    chex.assert_type([result, missing_eos(jnp.array([3, 4, 5, 6]), ended, -0.5)], jnp.float32)


def test_wrong_shapes_are_refused():
    logp, ref = logps()
    with pytest.raises(AssertionError):
        shaped_reward(SCORE[:1], logp, ref, MASK, 0.1)
    with pytest.raises(AssertionError):
        shaped_reward(SCORE, logp[:1], ref, MASK, 0.1)
