"""Reward model and value function: where they read, and what recentring does."""

import jax
import jax.numpy as jnp
import numpy as np
import tiny

from instruct_jax.models.heads import ScalarModel, recentred
from instruct_jax.models.lm import LanguageModel

MODEL = ScalarModel(LanguageModel(tiny.GPT))
values, score = jax.jit(MODEL.values), jax.jit(MODEL.score)


def test_score_reads_the_last_real_token_wherever_the_padding_stands():
    params, tokens = tiny.scalar_params(), tiny.tokens((3, 7))
    ones = np.ones_like(tokens, bool)
    expected = values(params, tokens, ones.astype(np.int32))[:, -1]
    for left in (0, 2, 5):
        found = score(params, tiny.shift(tokens, left, 12), tiny.shift(ones, left, 12))
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_nothing_after_the_last_token_changes_the_score():
    params, tokens = tiny.scalar_params(), tiny.tokens((3, 9))
    mask = np.broadcast_to(np.arange(9) < 6, tokens.shape)
    other = np.where(mask, tokens, 31 - tokens % 7)
    np.testing.assert_array_equal(score(params, tokens, mask), score(params, other, mask))


def test_recentred_maps_the_output():
    params, tokens = tiny.scalar_params(), tiny.tokens((3, 7))
    mask = np.ones_like(tokens, bool)
    before = score(params, tokens, mask)
    after = score(recentred(params, jnp.asarray(0.7), jnp.asarray(2.0)), tokens, mask)
    np.testing.assert_allclose(after, (before - 0.7) / 2, atol=1e-6)


def test_head_starts_small():
    kernels = [MODEL.init_head(jax.random.key(i))["kernel"].value for i in range(200)]
    np.testing.assert_allclose(np.std(kernels), 17**-0.5, rtol=0.05)
    assert MODEL.init_head(jax.random.key(0))["bias"].value == 0
