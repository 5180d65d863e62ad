"""The chain killed with SIGKILL, and started again with the same command, ends bitwise where it
would have without.
"""

import json
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import userfiles

DRIVER = Path(__file__).with_name("driver.py")
# between two saves each; CI kills in every stage (scripts/kill_often.py)
MOMENTS = ("reward:3", "ppo:3")
TRAINED = ("pretrain", "sft", "reward", "ppo")


def start(out: Path, moment: str = "") -> int:
    done = subprocess.run(
        [sys.executable, DRIVER, out, moment],
        env=userfiles.environment(),
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr[-3000:]
    return done.returncode


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    whole = tmp_path_factory.mktemp("whole") / "run"
    killed = tmp_path_factory.mktemp("killed") / "run"
    assert start(whole) == 0
    for moment in MOMENTS:
        assert start(killed, moment) == -signal.SIGKILL, moment
    assert start(killed) == 0
    return whole, killed


def read_rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def last_state(folder: Path):
    with ocp.CheckpointManager(
        folder.absolute() / "checkpoints", item_handlers={"state": ocp.PyTreeCheckpointHandler()}
    ) as manager:
        return manager.restore(
            manager.latest_step(), args=ocp.args.Composite(state=ocp.args.PyTreeRestore())
        )["state"]


@pytest.mark.filterwarnings("ignore:Sharding info not provided")
@pytest.mark.parametrize("stage", TRAINED)
def test_state_is_bitwise_the_same(runs, stage):
    whole, killed = (jax.tree.leaves(last_state(run / stage)) for run in runs)
    assert len(whole) == len(killed) > 10
    for a, b in zip(whole, killed, strict=True):
        a, b = (
            jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
            for x in (a, b)
        )
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize("stage", TRAINED)
def test_metrics_lose_and_repeat_nothing(runs, stage):
    whole, killed = ((run / stage / "metrics.jsonl").read_bytes() for run in runs)
    assert whole == killed
    steps = [json.loads(line)["step"] for line in whole.splitlines()]
    assert steps == list(range(1, len(steps) + 1)) and len(steps) >= 4


def test_phases_of_a_killed_session_are_not_counted_twice(runs):
    for run in runs:
        rows = read_rows(run / "ppo" / "phases.jsonl")
        assert [row["step"] for row in rows] == [1, 2, 3, 4]
        assert all(0 < row["tokens"] <= 32 * 20 for row in rows)
        for row in rows:
            seconds = sum(row[phase] for phase in ("reshard", "rollout", "experience", "update"))
            assert row["tokens_per_second"] == pytest.approx(row["tokens"] / seconds, rel=1e-2)


def test_samples_and_evaluation_are_the_same(runs):
    for name in (
        "compare/samples.jsonl",
        "compare/train.jsonl",
        "evaluate/completions.jsonl",
        "evaluate/evaluation.json",
    ):
        whole, killed = ((run / name).read_bytes() for run in runs)
        assert whole == killed and whole, name


def test_a_finished_run_is_left_alone(runs):
    """No file of a stage is written again; what is written of the run says the same."""
    whole, _ = runs
    times, texts = written(whole), {path: path.read_bytes() for path in whole.glob("*.*")}
    assert start(whole) == 0
    assert written(whole) == times
    assert len(texts) == 4 and {path: path.read_bytes() for path in texts} == texts


def written(run: Path) -> dict[Path, int]:
    """When each file in the folders of the stages was."""
    return {path: path.stat().st_mtime_ns for path in run.glob("*/**/*") if path.is_file()}


def test_nothing_recompiled(runs):
    for stage in TRAINED:
        sessions = read_rows(runs[0] / stage / "sessions.jsonl")
        assert [s["recompiles_after_warmup"] for s in sessions] == [0], stage
