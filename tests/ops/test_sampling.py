"""The distribution that is sampled from, and the draw."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from instruct_jax.ops.sampling import draw, filter_logits


def slow_filter(logits, temperature, top_k, top_p):
    """One row at a time, token by token, in float64."""
    rows = []
    for row in np.asarray(logits, np.float64):
        p = np.exp((row - row.max()) / temperature)
        p /= p.sum()
        order = sorted(range(len(p)), key=lambda i: -p[i])
        if top_k:
            for i in order[top_k:]:
                p[i] = 0
            p /= p.sum()
        mass, kept = 0.0, []
        for i in order:
            if mass >= top_p:
                break
            kept.append(i)
            mass += p[i]
        q = np.zeros_like(p)
        q[kept] = p[kept]
        rows.append(q / q.sum())
    return np.stack(rows)


@pytest.mark.parametrize("temperature", [1.0, 0.3, 2.0])
@pytest.mark.parametrize(
    "top_k, top_p",
    [(0, 1.0), (1, 1.0), (5, 1.0), (40, 1.0), (0, 0.9), (0, 0.4), (0, 1e-6), (7, 0.6)],
)
def test_filter_against_a_slow_twin(temperature, top_k, top_p):
    logits = np.random.default_rng(0).normal(0, 2, (6, 17)).astype(np.float32)
    logp = filter_logits(jnp.asarray(logits), temperature=temperature, top_k=top_k, top_p=top_p)
    chex.assert_type(logp, jnp.float32)
    np.testing.assert_allclose(
        np.exp(logp), slow_filter(logits, temperature, top_k, top_p), atol=1e-6
    )


def test_top_p_by_hand():
    """0.5 + 0.3 reaches 0.7 and 0.79, but not 0.81."""
    logits = jnp.log(jnp.array([[0.3, 0.5, 0.2]]))
    for top_p, expected in [
        (0.49, [0, 1, 0]),
        (0.7, [0.375, 0.625, 0]),
        (0.79, [0.375, 0.625, 0]),
        (0.81, [0.3, 0.5, 0.2]),
    ]:
        np.testing.assert_allclose(
            np.exp(filter_logits(logits, temperature=1.0, top_p=top_p)), [expected], atol=1e-6
        )


def test_equals_stay_together():
    logits = jnp.array([[1.0, 0.0, 1.0, 0.0]])
    by_count = filter_logits(logits, temperature=1.0, top_k=1)
    by_mass = filter_logits(logits, temperature=1.0, top_p=0.1)
    for logp in (by_count, by_mass):
        np.testing.assert_allclose(np.exp(logp), [[0.5, 0, 0.5, 0]], atol=1e-6)


def test_greedy_puts_all_mass_on_the_first_of_the_likeliest():
    logp = filter_logits(jnp.array([[0.0, 3.0, 3.0], [5.0, 1.0, 2.0]]), temperature=0.0)
    np.testing.assert_array_equal(np.exp(logp), [[0, 1, 0], [1, 0, 0]])
    np.testing.assert_array_equal(draw(jax.random.key(0), logp), [1, 0])


def test_filter_of_bf16_logits_is_float32():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(2, 50)), jnp.bfloat16)
    logp = filter_logits(logits, temperature=0.7, top_k=9, top_p=0.9)
    chex.assert_type(logp, jnp.float32)
    np.testing.assert_allclose(np.exp(logp).sum(axis=1), 1, atol=1e-6)


def test_draws_follow_the_distribution():
    """Chi-square over 40,000 draws: 15 degrees of freedom, 99.9 % quantile 37.7.

    Also as a p-value can be too good: above 2.5 (0.01 %).
    """
    p = np.random.default_rng(0).dirichlet(np.ones(16)).astype(np.float32)
    tokens = draw(jax.random.key(0), jnp.broadcast_to(jnp.log(p), (40_000, 16)))
    chex.assert_type(tokens, jnp.int32)
    counts, expected = np.bincount(tokens, minlength=16), 40_000 * p.astype(np.float64)
    assert 2.5 < ((counts - expected) ** 2 / expected).sum() < 37.7


def test_rows_are_drawn_independently():
    """Pairs of two fair coins: each of the four outcomes about a quarter of the time (standard
    deviation 0.0043).
    """
    tokens = np.asarray(draw(jax.random.key(1), jnp.full((20_000, 2), jnp.log(0.5)))).reshape(
        10_000, 2
    )
    shares = np.bincount(tokens[:, 0] * 2 + tokens[:, 1], minlength=4) / 10_000
    np.testing.assert_allclose(shares, 0.25, atol=0.02)


@pytest.mark.parametrize("vocab", [5, 1000])
def test_impossible_tokens_are_never_drawn(vocab):
    """Half of the tokens are impossible, the first and the last always."""
    possible = np.random.default_rng(0).random((2000, vocab)) < 0.5
    possible[:, [0, -1]] = False
    possible[:, 1] |= ~possible.any(axis=1)
    logits = np.where(
        possible, np.random.default_rng(1).normal(0, 3, possible.shape), -np.inf
    ).astype(np.float32)
    tokens = np.asarray(draw(jax.random.key(2), jax.nn.log_softmax(logits)))
    assert np.take_along_axis(possible, tokens[:, None], axis=1).all()


@pytest.mark.parametrize("u", [0.0, 1 - 2.0**-23, 1.0])
def test_the_ends_of_the_unit_interval_fall_on_possible_tokens(monkeypatch, u):
    """u = 0 and the largest float that uniform gives; even u = 1, which it does not."""
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape: jnp.full(shape, u, jnp.float32))
    logp = jnp.log(jnp.array([[0.0, 0.1, 0.2, 0.7, 0.0], [0.0, 0.0, 1.0, 0.0, 0.0]]))
    np.testing.assert_array_equal(draw(jax.random.key(0), logp), [1 if u == 0 else 3, 2])


def test_a_rounded_sum_that_rises_at_an_impossible_token_does_not_draw_it(monkeypatch):
    """As the parallel sum on a CPU does at V = 512, in a few rows of a thousand; sums may even
    fall.
    """
    p = jnp.array([[0.5, 0.0, 0.0, 0.5]])
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape: jnp.full(shape, 0.5))
    cumsum = jnp.cumsum
    monkeypatch.setattr(jnp, "cumsum", lambda x, axis: cumsum(x, axis=axis).at[:, 1].add(1e-7))
    np.testing.assert_array_equal(draw(jax.random.key(0), jnp.log(p)), [3])


def test_draws_are_those_of_one_running_sum(monkeypatch):
    """Three blocks of the vocabulary, the last one not full; a slow twin in float64, where u does
    not fall on an edge.
    """
    rng = np.random.default_rng(5)
    p = rng.dirichlet(np.full(150, 0.1), 3000) * (rng.random((3000, 150)) < 0.7)
    p /= p.sum(axis=1, keepdims=True)
    u = rng.random(3000).astype(np.float32)
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape: jnp.asarray(u).reshape(shape))
    tokens = np.asarray(draw(jax.random.key(0), jnp.log(jnp.asarray(p, jnp.float32))))
    running = np.cumsum(p, axis=1)
    clear = np.abs(running - u[:, None]).min(axis=1) > 1e-5
    np.testing.assert_array_equal(tokens[clear], (running > u[:, None]).argmax(axis=1)[clear])
    assert clear.mean() > 0.9 and len(set(tokens // 64)) == 3


def test_draws_only_depend_on_the_distribution_not_on_its_total(monkeypatch):
    """Log-probs that do not sum to 1, as after rounding: scaling them all changes no draw."""
    logp = jax.nn.log_softmax(
        jnp.asarray(np.random.default_rng(3).normal(size=(500, 20)), jnp.float32)
    )
    key = jax.random.key(4)
    first = draw(jax.random.clone(key), logp)
    np.testing.assert_array_equal(first, draw(key, logp - jnp.log(8.0)))
