"""Masked statistics ignore whatever they hide; positions and attention agree with slow twins."""

import chex
import jax.numpy as jnp
import numpy as np
import pytest

from instruct_jax.ops import masking

LEFT, RIGHT, PACKED = [0, 0, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 2, 2]
SEGMENTS = np.array(
    [LEFT, RIGHT, PACKED, [0, 1, 2, 2, 0], [3, 3, 3, 3, 3], [0, 0, 0, 0, 0]], np.int32
)
GARBAGE = [np.nan, np.inf, -np.inf, 1e9]


@pytest.fixture
def table():
    """Random numbers and a mask with an empty row."""
    rng = np.random.default_rng(0)
    mask = rng.random((5, 7)) < 0.5
    mask[2] = False
    return rng.normal(3, 2, (5, 7)).astype(np.float32), mask


def test_sums_and_means_by_hand():
    x = jnp.array([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]])
    mask = jnp.array([[True, False, True], [False, False, False]])
    np.testing.assert_array_equal(masking.masked_sum(x, mask, axis=1), [5, 0])
    np.testing.assert_array_equal(masking.masked_mean(x, mask, axis=1), [2.5, 0])
    np.testing.assert_array_equal(masking.masked_mean(x, mask, axis=0), [1, 0, 4])
    assert masking.masked_sum(x, mask) == 5 and masking.masked_mean(x, mask) == 2.5


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.int32, jnp.float32])
def test_statistics_are_float32(dtype):
    """300 ones: a bf16 sum would stop at 256."""
    x, mask = jnp.ones(300, dtype), jnp.ones(300, bool)
    assert masking.masked_sum(x, mask) == 300 and masking.masked_mean(x, mask) == 1
    for result in (
        masking.masked_sum(x, mask),
        masking.masked_mean(x, mask),
        masking.whiten(x, mask),
    ):
        chex.assert_type(result, jnp.float32)


@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize("op", [masking.masked_sum, masking.masked_mean, masking.whiten])
def test_hidden_values_change_nothing(table, op, garbage):
    x, mask = table
    np.testing.assert_array_equal(
        op(np.where(mask, x, garbage).astype(np.float32), mask), op(x, mask)
    )


def test_whiten_against_numpy(table):
    x, mask = table
    white = np.asarray(masking.whiten(x, mask))
    np.testing.assert_allclose(
        white[mask], (x[mask] - x[mask].mean()) / np.sqrt(x[mask].var() + 1e-8), atol=1e-5
    )
    assert (white[~mask] == 0).all()
    np.testing.assert_allclose(white[mask].mean(), 0, atol=1e-6)
    np.testing.assert_allclose(white[mask].std(), 1, atol=1e-5)


def test_whiten_of_constants_and_of_nothing_is_zero():
    np.testing.assert_array_equal(
        masking.whiten(jnp.full((2, 3), 7.0), jnp.ones((2, 3), bool)), np.zeros((2, 3))
    )
    np.testing.assert_array_equal(
        masking.whiten(jnp.full((2, 3), 7.0), jnp.zeros((2, 3), bool)), np.zeros((2, 3))
    )


def test_positions_by_hand():
    expected = [
        [0, 1, 0, 1, 2],
        [0, 1, 0, 1, 2],
        [0, 1, 2, 0, 1],
        [0, 0, 0, 1, 0],
        [0, 1, 2, 3, 4],
        [0, 1, 2, 3, 4],
    ]
    np.testing.assert_array_equal(masking.positions(SEGMENTS), expected)
    np.testing.assert_array_equal(masking.positions(SEGMENTS[2]), expected[2])
    chex.assert_type(masking.positions(SEGMENTS), jnp.int32)


def test_positions_against_loops():
    segments = np.sort(np.random.default_rng(1).integers(0, 4, (6, 11)), axis=1).astype(np.int32)
    expected = np.zeros_like(segments)
    for row, t in np.ndindex(6, 11):
        expected[row, t] = (
            expected[row, t - 1] + 1 if t and segments[row, t] == segments[row, t - 1] else 0
        )
    np.testing.assert_array_equal(masking.positions(segments), expected)


def test_attention_mask_as_a_picture():
    picture = ["#....", "##...", "###..", "...#.", "...##"]
    expected = [[c == "#" for c in line] for line in picture]
    np.testing.assert_array_equal(masking.attention_mask(SEGMENTS[2:3])[0, 0], expected)


def test_attention_mask_against_loops():
    expected = np.zeros((len(SEGMENTS), 1, 5, 5), bool)
    for row, q, k in np.ndindex(len(SEGMENTS), 5, 5):
        expected[row, 0, q, k] = (
            k <= q and SEGMENTS[row, q] == SEGMENTS[row, k] and SEGMENTS[row, k] != 0
        )
    result = masking.attention_mask(SEGMENTS)
    np.testing.assert_array_equal(result, expected)
    chex.assert_type(result, bool)


def test_last_index():
    mask = jnp.array([[[1, 1, 0], [0, 0, 1]], [[1, 0, 1], [0, 0, 0]]], bool)
    np.testing.assert_array_equal(masking.last_index(mask), [[1, 2], [2, 0]])
    chex.assert_type(masking.last_index(mask), jnp.int32)


def test_wrong_shapes_and_types_are_refused(table):
    x, mask = table
    with pytest.raises(AssertionError):
        masking.masked_mean(x, mask[:1])
    with pytest.raises(AssertionError):
        masking.whiten(x[:1], mask)
    with pytest.raises(AssertionError):
        masking.masked_sum(x, x)
