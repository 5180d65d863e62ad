"""The K-wise ranking loss is all its pairs, each prompt weighing the same."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from instruct_jax.ops.preferences import ranking_loss


def slow(scores, ranks):
    """All pairs written out."""
    terms, right, margins = [], [], []
    for i, j in itertools.combinations(range(len(scores)), 2):
        if ranks[i] == ranks[j] or 0 in (ranks[i], ranks[j]):
            continue
        better, worse = (i, j) if ranks[i] < ranks[j] else (j, i)
        margin = float(scores[better]) - float(scores[worse])
        terms.append(np.log1p(np.exp(-margin)))
        right.append(margin > 0)
        margins.append(margin)
    return (np.mean(terms), np.mean(right), np.mean(margins)) if terms else (0, 0, 0)


RANKINGS = [
    [1, 2],  # one pair
    [2, 1],
    [1, 2, 3, 4],
    [4, 1, 3, 2, 5, 6, 7, 9, 8],  # K = 9: 36 pairs
    [1, 1, 2, 3],  # a tie
    [2, 2, 2, 1],
    [1, 2, 0, 3, 0],  # two absent
    [5, 1, 5, 3],  # gaps in the scale
    [1, 1, 1],  # nothing but ties
    [0, 1, 0],  # one completion
    [0, 0],
]


@pytest.mark.parametrize("ranks", RANKINGS, ids=str)
def test_against_all_pairs_written_out(ranks):
    scores = np.random.default_rng(0).normal(size=len(ranks)).astype(np.float32)
    result = ranking_loss(jnp.asarray(scores), jnp.asarray(ranks))
    np.testing.assert_allclose(result, slow(scores, ranks), rtol=1e-5, atol=1e-7)
    chex.assert_type(result, jnp.float32)


def test_by_hand():
    loss, accuracy, margin = ranking_loss(jnp.array([1.0, 0.0, 2.0]), jnp.array([1, 2, 3]))
    softplus = lambda x: np.log1p(np.exp(x))  # noqa: E731
    np.testing.assert_allclose(loss, (softplus(-1) + softplus(1) + softplus(2)) / 3, rtol=1e-6)
    np.testing.assert_allclose(accuracy, 1 / 3)
    np.testing.assert_allclose(margin, (1 - 1 - 2) / 3, rtol=1e-6)


@pytest.mark.parametrize("k", [2, 4, 9])
def test_a_prompt_weighs_the_same_whatever_its_k(k):
    """Equal scores: the loss is log 2 and the best completion is pulled with (K - 1) / pairs / 2 =
    1 / K.
    """
    value, grad = jax.value_and_grad(lambda s: ranking_loss(s, jnp.arange(1, k + 1))[0])(
        jnp.zeros(k)
    )
    np.testing.assert_allclose(value, np.log(2), rtol=1e-6)
    np.testing.assert_allclose(grad[0], -1 / k, rtol=1e-5)
    np.testing.assert_allclose(grad.sum(), 0, atol=1e-6)


def test_equal_scores_are_not_right():
    assert ranking_loss(jnp.zeros(3), jnp.array([1, 2, 3]))[1] == 0


def test_only_differences_of_scores_matter():
    scores, ranks = jnp.array([0.5, -1.0, 2.0]), jnp.array([3, 1, 2])
    chex.assert_trees_all_close(
        ranking_loss(scores, ranks), ranking_loss(scores + 8, ranks), rtol=1e-5
    )


@pytest.mark.parametrize("garbage", [1e9, np.nan, -np.inf])
def test_absent_completions_change_neither_loss_nor_gradient(garbage):
    scores, ranks = jnp.array([0.5, -1.0, 2.0]), jnp.array([3, 1, 2])
    run = jax.value_and_grad(lambda s, r: ranking_loss(s, r)[0])
    value, grad = run(scores, ranks)
    wide_value, wide_grad = run(
        jnp.append(scores, jnp.full(2, garbage)), jnp.append(ranks, jnp.zeros(2, jnp.int32))
    )
    np.testing.assert_allclose(wide_value, value, rtol=1e-6)
    np.testing.assert_allclose(wide_grad, [*grad, 0, 0], rtol=1e-6)


def test_far_apart_scores_stay_finite():
    loss, grad = jax.value_and_grad(lambda s: ranking_loss(s, jnp.array([1, 2]))[0])(
        jnp.array([-1e6, 1e6])
    )
    np.testing.assert_allclose(loss, 2e6)
    np.testing.assert_allclose(grad, [-1, 1])


def test_batches_by_vmap_and_bf16_scores():
    ranks = jnp.array([[1, 2, 3], [1, 1, 2], [0, 0, 0]])
    scores = jnp.asarray(np.random.default_rng(1).normal(size=(3, 3)), jnp.bfloat16)
    result = jax.vmap(ranking_loss)(scores, ranks)
    expected = [slow(np.float32(s), r) for s, r in zip(scores, ranks, strict=True)]
    np.testing.assert_allclose(np.stack(result, axis=1), np.array(expected), rtol=1e-5)
    chex.assert_type(result[0], jnp.float32)
