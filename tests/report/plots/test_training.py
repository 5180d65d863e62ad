import numpy as np

from instruct_jax.report.plots.training import MOST_POINTS, blocks, smooth
from instruct_jax.report.run_data import read_run
from instruct_jax.report.text import duration, listed, number, percent


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


def test_series_leaves_out_rows_without_the_metric_and_torn_or_infinite_ones(tmp_path):
    (tmp_path / "sft").mkdir()
    rows = (
        '{"step": 1, "sft/nll": 2.0}\n{"step": 2}\n{"step": 3, "sft/nll": NaN}\n{"step": 4,'
        ' "sft/nll": 1.0}\n{"step": 5, "sf'
    )
    (tmp_path / "sft" / "metrics.jsonl").write_text(rows)
    run = read_run(tmp_path)
    assert run.series("sft", "sft/nll") == ([1, 4], [2.0, 1.0])
    assert run.series("ppo", "ppo/kl") == ([], [])


def test_numbers_are_written_for_people():
    assert [number(x) for x in (-0.001, -1.5, 1234.5, None, float("nan"), "x")] == [
        "0.00",
        "−1.50",
        "1,234.50",
        "–",
        "–",
        "–",
    ]
    assert percent(0.724, 1) == "72.4\u00a0%" and percent(None) == "–"
    assert [duration(x) for x in (2.34, 61, 599.8, 3599, 3600, 7260)] == [
        "2.3 s",
        "1 min 01 s",
        "10 min 00 s",
        "1 h 00 min",
        "1 h 00 min",
        "2 h 01 min",
    ]
    assert [listed(x) for x in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == [
        "",
        "a",
        "a and b",
        "a, b and c",
    ]
