import numpy as np

from instruct_jax.report.plots.training import MOST_POINTS, blocks, smooth


def test_smoothing_keeps_lines_straight_inside_and_constants_everywhere():
    line = np.arange(100.0)
    np.testing.assert_allclose(smooth(line)[5:-5], line[5:-5])
    np.testing.assert_allclose(smooth(np.full(40, 3.0)), 3.0)
    noisy = np.random.default_rng(0).normal(size=400)
    assert smooth(noisy).std() < 0.3 * noisy.std()


def test_long_lines_are_averaged_in_blocks():
    assert len(blocks(np.arange(10_000.0))) == MOST_POINTS
    np.testing.assert_allclose(blocks(np.arange(600.0))[:2], [0.5, 2.5])
    np.testing.assert_allclose(blocks(np.arange(7.0)), np.arange(7))
