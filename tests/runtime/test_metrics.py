import errno
import json
import math
import resource

import jax
import jax.numpy as jnp
import pytest

from instruct_jax.data.readers import write_jsonl
from instruct_jax.runtime.folders import append_row, write_atomic
from instruct_jax.runtime.metrics import MetricsFile, Recompiles, cut_after, peak_memory


def test_rows_after_the_step_and_a_torn_row_are_forgotten(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsFile(path, 0) as file:
        assert file.last is None
        for step in (1, 2, 3):
            file.write(step, {"a/x": step / 3})
    path.write_text(path.read_text() + '{"step": 4, "a/')
    with MetricsFile(path, 2) as file:
        assert file.last == {"step": 2, "a/x": 2 / 3}
        file.write(3, {"a/x": 7.0})
    assert [json.loads(line)["a/x"] for line in path.read_text().splitlines()] == [
        1 / 3,
        2 / 3,
        7.0,
    ]


def test_a_torn_session_is_no_part_of_the_next_one(tmp_path):
    path = tmp_path / "sessions.jsonl"
    path.write_text('{"ended": "complete"}\n{"ended"')
    assert cut_after(path, math.inf) == [{"ended": "complete"}]
    append_row(path, {"ended": "again"})
    assert [json.loads(line)["ended"] for line in path.read_text().splitlines()] == [
        "complete",
        "again",
    ]


def write_metrics(path):
    with MetricsFile(path, 0) as file:
        file.write(1, {"a/x": 0.5})


@pytest.mark.parametrize(
    "write",
    [
        write_metrics,
        lambda path: append_row(path, {"a": "b" * 20}),
        lambda path: write_atomic(path, "b" * 20),
        lambda path: write_jsonl(path, [{"a": "b" * 20}]),
    ],
)
def test_a_full_disk_says_which_file(tmp_path, write):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
        with pytest.raises(OSError) as full:
            write(tmp_path / "x.jsonl")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (full.value.errno, full.value.filename) == (errno.EFBIG, str(tmp_path / "x.jsonl"))


def test_only_json_numbers_are_written(tmp_path):
    with MetricsFile(tmp_path / "m.jsonl", 0) as file, pytest.raises(ValueError, match="JSON"):
        file.write(1, {"x": float("nan")})


def test_recompiles_are_counted_after_warmup_only():
    double = jax.jit(lambda x: x * 2)
    three, four = jnp.ones(3), jnp.ones(4)
    with Recompiles() as recompiles:
        double(three)
        recompiles.mark_warm()
        double(three)
        assert recompiles.after_warmup == 0
        double(four)
        assert recompiles.after_warmup == 1
    five = jnp.ones(5)
    double(five)
    assert recompiles.after_warmup == 1  # not while it is left


def test_peak_memory_is_known():
    assert 0 < peak_memory()["host_peak_gib"] < 1000
