"""A stage that is stopped anywhere and started again ends bitwise like one that never stopped."""

import inspect
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from runtime import toy

from instruct_jax.errors import NonFiniteError
from instruct_jax.runtime import signals
from instruct_jax.runtime.checkpoints import Checkpoints
from instruct_jax.runtime.loop import freed
from instruct_jax.runtime.signals import Interrupted


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The state and the metrics of a stage that was never stopped."""
    folder = tmp_path_factory.mktemp("whole")
    return leaves(toy.run(folder)), (folder / "metrics.jsonl").read_text()


def leaves(state):
    named = jax.tree_util.tree_leaves_with_path(state.replace(key=jax.random.key_data(state.key)))
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in named}


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name, strict=True)


def assert_same(folder: Path, state, whole):
    expected, rows = whole
    assert_equal(leaves(state), expected)
    assert (folder / "metrics.jsonl").read_text() == rows


def rows(folder: Path):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def program(folder: Path, *arguments: str) -> int:
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    return subprocess.run(
        [sys.executable, toy.__file__, str(folder), *arguments],
        env=environment,
        capture_output=True,
    ).returncode


def test_whole_run_has_one_row_a_step(whole):
    assert [json.loads(line)["step"] for line in whole[1].splitlines()] == list(
        range(1, toy.STEPS + 1)
    )


def test_same_after_an_error_at_any_step(tmp_path, whole):
    for step in range(toy.STEPS):

        def broken(at, step=step):
            if at == step:
                raise OSError("the data is gone")
            return toy.batch_at(at)

        with pytest.raises(OSError, match="the data is gone"):
            toy.run(tmp_path / str(step), batches=broken)
        assert_same(tmp_path / str(step), toy.run(tmp_path / str(step)), whole)


@pytest.mark.parametrize("step", [0, 4, 5, toy.STEPS - 1])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_same_after_a_graceful_shutdown(tmp_path, whole, number, code, step, capfd):
    before = signal.getsignal(number)
    with pytest.raises(
        Interrupted, match=f"after step {step + 1} of {toy.STEPS}.*Run the same command again"
    ) as stopped:
        toy.run(tmp_path, batches=toy.signal_at(step, number))
    assert stopped.value.exit_code == code
    assert signal.getsignal(number) is before
    assert "saving a checkpoint" in capfd.readouterr().err
    # the step is finished and saved
    assert [row["step"] for row in rows(tmp_path)] == list(range(1, step + 2))
    assert_same(tmp_path, toy.run(tmp_path), whole)


def test_the_preemption_notice_of_several_processes(tmp_path, whole, monkeypatch):
    """jax says after which call all processes stop.  Calls are counted through all stages, because
    that call may be made in the next stage.
    """
    calls = []

    def reached(number):
        calls.append(number)
        return len(calls) == 16

    monkeypatch.setattr(signals, "is_multihost", lambda: True)
    monkeypatch.setattr(signals.multihost_utils, "reached_preemption_sync_point", reached)
    assert_same(tmp_path / "one", toy.run(tmp_path / "one"), whole)
    with pytest.raises(
        Interrupted, match="two was stopped by SIGTERM after step 4 of 12; all of it is saved"
    ) as stopped:
        toy.run(tmp_path / "two")
    assert stopped.value.exit_code == 0
    assert calls == list(range(calls[0], calls[0] + 16))
    assert_same(tmp_path / "two", toy.run(tmp_path / "two"), whole)


def test_same_after_kill_9_anywhere(tmp_path, whole):
    for step in ("5", "9", "11"):  # the second and third start from what the one before left
        assert program(tmp_path, step, "SIGKILL") == -signal.SIGKILL
    assert_same(tmp_path, toy.run(tmp_path), whole)


def test_second_ctrl_c_kills_at_once(tmp_path):
    assert program(tmp_path, "2", "SIGINT", "SIGINT") == -signal.SIGINT
    assert [row["step"] for row in rows(tmp_path)] == [1]  # step 2 ran, but nobody waited for it


def test_a_step_that_forgets_to_count_is_caught(tmp_path):
    with pytest.raises(RuntimeError, match="state.step is 0 after step 3; the step must add 1"):
        toy.run(tmp_path, step_fn=lambda state, batch: (state, {"x": 0.0}))


def test_a_stage_of_no_steps_has_a_result(tmp_path):
    toy.run(tmp_path, total_steps=0)
    assert [entry.name for entry in (tmp_path / "checkpoints").iterdir()] == ["0"]


def test_starting_a_finished_stage_changes_nothing(tmp_path, whole):
    toy.run(tmp_path)
    no_step: Any = None  # would fail if it were called
    assert_same(tmp_path, toy.run(tmp_path, step_fn=no_step), whole)
    assert len((tmp_path / "sessions.jsonl").read_text().splitlines()) == 1


def test_host_never_waits_for_the_step_that_runs(tmp_path):
    events = []

    class Metric:
        def __init__(self, step):
            self.step = step

        def __array__(self, *_, **__):
            events.append(("fetch", self.step))
            return np.float32(0)

    def step_fn(state, batch):
        step = int(state.step)
        events.append(("dispatch", step + 1))
        return state.replace(step=state.step + 1), {"x": Metric(step + 1)}

    toy.run(tmp_path, step_fn=step_fn, total_steps=4, save_every=None)
    assert events == [
        ("dispatch", 1),
        ("dispatch", 2), ("fetch", 1),
        ("dispatch", 3), ("fetch", 2),
        ("dispatch", 4), ("fetch", 3), ("fetch", 4),
    ]  # fmt: skip


def poisoned(at):
    batch = toy.batch_at(at)
    return {"x": batch["x"] * np.float32("nan")} if at == 4 else batch


@pytest.mark.parametrize(
    "options",
    [{"save_every": None}, {"save_every": 1}, {"stop_when": lambda row: None}],
    ids=lambda o: next(iter(o)),
)
def test_a_step_that_is_not_finite_is_not_applied(tmp_path, options):
    """Also where the next step was already dispatched."""
    message = (
        r"step 5: toy/loss is nan.  The step was not applied.*instruct-jax replay"
        r" .*nonfinite_step_5` runs it again.*--redo"
    )
    with pytest.raises(NonFiniteError, match=message):
        toy.run(tmp_path, batches=poisoned, **options)
    place = tmp_path / "nonfinite_step_5"
    assert np.isnan(np.load(place / "batch.npz")["x"]).all()
    with Checkpoints(place / "state", fingerprints=toy.FINGERPRINTS) as checkpoints:
        assert_equal(
            leaves(checkpoints.restore(freed(toy.create()))),
            leaves(toy.run(tmp_path / "good", total_steps=4)),
        )
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3, 4]
    saved = [
        int(entry.name) for entry in (tmp_path / "checkpoints").iterdir() if entry.name.isdigit()
    ]
    assert max(saved, default=None) == {None: None, 1: 4, 3: 3}[options.get("save_every", 3)]
    assert "NonFiniteError" in json.loads((tmp_path / "sessions.jsonl").read_text())["ended"]


def test_a_step_without_the_guard_is_an_error(tmp_path):
    with pytest.raises(
        RuntimeError,
        match="step 5 is not finite and was applied; make step_fn with sharding.compile_step",
    ):
        toy.run(tmp_path, batches=poisoned, step_fn=toy.update)


def test_stop_when_ends_the_stage_and_a_restart_remembers(tmp_path):
    def over(row):
        return "loss is low" if row["toy/loss"] < 3.0 else None

    first = toy.run(tmp_path, stop_when=over, total_steps=40)
    ended = int(first.step)
    assert ended < 40
    assert rows(tmp_path)[-1]["step"] == ended
    assert [row["toy/loss"] < 3.0 for row in rows(tmp_path)] == [False] * (ended - 1) + [True]
    assert json.loads((tmp_path / "sessions.jsonl").read_text())["ended"] == "loss is low"
    again = toy.run(tmp_path, stop_when=over, total_steps=40)
    assert int(again.step) == ended


def test_saves_by_the_clock(tmp_path):
    toy.run(tmp_path, save_every=None, save_seconds=0.0, total_steps=3, keep=9)
    assert sorted(entry.name for entry in (tmp_path / "checkpoints").iterdir()) == ["1", "2", "3"]


def test_session_tells_speed_and_recompiles(tmp_path):
    def ragged(at):
        return {"x": toy.batch_at(at)["x"][: 8 if at < 3 else 7]}

    toy.run(
        tmp_path,
        batches=ragged,
        total_steps=5,
        step_fn=jax.jit(inspect.unwrap(toy.update), donate_argnums=0),
    )
    session = json.loads((tmp_path / "sessions.jsonl").read_text())
    assert (session["from_step"], session["to_step"], session["ended"]) == (0, 5, "complete")
    assert session["recompiles_after_warmup"] == 1
    assert session["seconds_per_step"] > 0
    assert session["host_peak_gib"] > 0
