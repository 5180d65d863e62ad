"""The losses against slow twins over unpadded sequences, and where their gradients vanish."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from instruct_jax.ops.losses import LOG_RATIO_BOUND, policy_loss, value_loss

LENGTHS = [5, 1, 3, 7]
MASK = np.arange(7)[None, :] < np.array(LENGTHS)[:, None]
WEIGHT = jnp.asarray(MASK / MASK.sum(), jnp.float32)


def tables(seed=0):
    """Three [B, T] tables, the first two near each other."""
    rng = np.random.default_rng(seed)
    a = rng.normal(-2, 1, MASK.shape)
    return tuple(
        jnp.asarray(x, jnp.float32)
        for x in (a + rng.normal(0, 0.4, MASK.shape), a, rng.normal(0, 1, MASK.shape))
    )


def one_token(new, old, advantage, clip=0.2):
    """Gradient of the policy loss by the log-prob of a single token."""
    one = lambda x: jnp.full((1, 1), x)  # noqa: E731
    return jax.grad(lambda x: policy_loss(x, one(old), one(advantage), one(1.0), clip=clip)[0])(
        one(new)
    )[0, 0]


def test_policy_loss_against_loops():
    logp, old, advantage = tables()
    total, ratios, clips, kls = 0.0, [], [], []
    for row, length in enumerate(LENGTHS):
        for t in range(length):
            ratio, a = np.exp(float(logp[row, t]) - float(old[row, t])), float(advantage[row, t])
            total -= min(ratio * a, max(0.8, min(1.2, ratio)) * a) / sum(LENGTHS)
            ratios.append(ratio)
            clips.append((a > 0 and ratio > 1.2) or (a < 0 and ratio < 0.8))
            kls.append(ratio - 1 - np.log(ratio))
    loss, metrics = policy_loss(logp, old, advantage, WEIGHT, clip=0.2)
    assert 0 < np.mean(clips) < 1
    expected = {
        "policy/loss": total,
        "policy/ratio": np.mean(ratios),
        "policy/clip_fraction": np.mean(clips),
        "policy/approx_kl": np.mean(kls),
    }
    chex.assert_trees_all_close(metrics, {k: np.float32(v) for k, v in expected.items()}, rtol=1e-5)
    assert loss == metrics["policy/loss"]
    chex.assert_type([loss, *metrics.values()], jnp.float32)


def test_policy_loss_against_rlax(rlax):
    logp, old, advantage = (x.reshape(-1) for x in tables())
    uniform = jnp.full(logp.shape, 1 / logp.size)
    gradient = lambda f: jax.value_and_grad(f)(logp)  # noqa: E731
    ours = gradient(lambda x: policy_loss(x, old, advantage, uniform, clip=0.2)[0])
    theirs = gradient(lambda x: rlax.clipped_surrogate_pg_loss(jnp.exp(x - old), advantage, 0.2))
    chex.assert_trees_all_close(ours, theirs, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "log_ratio, advantage, moves",
    [
        (0.0, 1.0, True),
        (0.0, -1.0, True),
        (0.5, 1.0, False),
        (0.5, -1.0, True),
        (-0.5, 1.0, True),
        (-0.5, -1.0, False),
    ],
)
def test_the_gradient_is_zero_where_the_clip_binds_and_whole_elsewhere(log_ratio, advantage, moves):
    expected = -advantage * np.exp(log_ratio) if moves else 0.0
    np.testing.assert_allclose(one_token(-1 + log_ratio, -1.0, advantage), expected, rtol=1e-5)


def test_an_untouched_policy_has_ratio_one_and_the_plain_policy_gradient():
    logp, _, advantage = tables()
    (_, metrics), grad = jax.value_and_grad(
        lambda x: policy_loss(x, logp, advantage, WEIGHT, clip=0.2), has_aux=True
    )(logp)
    np.testing.assert_allclose(metrics["policy/ratio"], 1, rtol=1e-6)
    assert metrics["policy/clip_fraction"] == 0 and metrics["policy/approx_kl"] == 0
    np.testing.assert_allclose(grad, -advantage * WEIGHT, rtol=1e-6)


@pytest.mark.parametrize("log_ratio", [1e3, -1e3, 1e30])
def test_a_wild_ratio_stays_finite_and_moves_nothing(log_ratio):
    one = lambda x: jnp.full((1, 1), x)  # noqa: E731
    for advantage in (1.0, -1.0):
        _, metrics = policy_loss(one(log_ratio), one(0.0), one(advantage), one(1.0), clip=0.2)
        assert all(np.isfinite(x) for x in metrics.values())
        assert metrics["policy/ratio"] <= np.exp(LOG_RATIO_BOUND) * 1.001
        assert one_token(log_ratio, 0.0, advantage) == 0


@pytest.mark.parametrize("clip", [0.3, None])
def test_value_loss_against_loops(clip):
    value, old, target = tables()
    total, clips = 0.0, []
    for row, length in enumerate(LENGTHS):
        for t in range(length):
            v, o, r = (float(x[row, t]) for x in (value, old, target))
            near = v if clip is None else o + max(-clip, min(clip, v - o))
            total += 0.5 * max((v - r) ** 2, (near - r) ** 2) / sum(LENGTHS)
            clips.append((near - r) ** 2 > (v - r) ** 2)
    loss, metrics = value_loss(value, old, target, WEIGHT, clip=clip)
    assert any(clips) == (clip is not None)
    np.testing.assert_allclose(loss, total, rtol=1e-5)
    np.testing.assert_allclose(metrics["value/clip_fraction"], np.mean(clips), rtol=1e-5)
    assert metrics["value/loss"] == loss
    chex.assert_type([loss, *metrics.values()], jnp.float32)


@pytest.mark.parametrize(
    "value, target, slope",
    [
        (1.1, 3.0, 1.1 - 3.0),  # inside the clip range: the plain error
        (1.5, 3.0, 0.0),  # gone far towards the target: stopped
        (1.5, 0.0, 1.5),  # gone far from it: pulled back
        (1.0, 3.0, 1.0 - 3.0),  # unmoved
    ],
)
def test_the_value_gradient_vanishes_only_where_the_clip_binds(value, target, slope):
    one = lambda x: jnp.full((1, 1), x)  # noqa: E731
    grad = jax.grad(lambda v: value_loss(v, one(1.0), one(target), one(1.0), clip=0.2)[0])(
        one(value)
    )
    np.testing.assert_allclose(grad, [[slope]], rtol=1e-6)


def test_a_critic_inside_the_range_clips_nothing():
    """Whatever the rounding of old + (value - old)."""
    value, old, target = (
        jnp.asarray(x, jnp.float32) for x in np.random.default_rng(0).normal(size=(3, 1, 1000))
    )
    assert (
        value_loss(value, old, target, jnp.full((1, 1000), 1e-3), clip=10.0)[1][
            "value/clip_fraction"
        ]
        == 0
    )


@pytest.mark.parametrize("op", [policy_loss, value_loss])
@pytest.mark.parametrize("garbage", [1e9, np.nan, -np.inf])
def test_what_has_no_weight_changes_neither_loss_nor_gradient(op, garbage):
    clean = tables()
    dirty = tuple(jnp.where(MASK, x, garbage) for x in clean)
    run = jax.value_and_grad(lambda x, *others: op(x, *others, WEIGHT, clip=0.2), has_aux=True)
    chex.assert_trees_all_equal(run(*clean), run(*dirty))
    assert (np.asarray(run(*dirty)[1])[~MASK] == 0).all()


@pytest.mark.parametrize("op", [policy_loss, value_loss])
def test_parts_of_a_batch_add_up(op):
    whole = op(*tables(), WEIGHT, clip=0.2)
    parts = [
        op(*(x[rows] for x in (*tables(), WEIGHT)), clip=0.2) for rows in (slice(0, 1), slice(1, 4))
    ]
    chex.assert_trees_all_close(jax.tree.map(jnp.add, *parts), whole, rtol=1e-5)


@pytest.mark.parametrize("op", [policy_loss, value_loss])
def test_bf16_inputs_give_float32(op):
    loss, metrics = op(*(x.astype(jnp.bfloat16) for x in tables()), WEIGHT, clip=0.2)
    chex.assert_type([loss, *metrics.values()], jnp.float32)
