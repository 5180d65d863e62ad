"""Several processes on this machine, which talk by Gloo: the same numbers as one process with as
many devices; one stopped, one killed; resumed elsewhere.
"""

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import userfiles
from userfiles import OVERRIDES

STAGES = ("pretrain", "sft", "reward", "ppo")
COMMAND = [sys.executable, "-m", "instruct_jax", "run", "--config", "run.yaml", *OVERRIDES]
COMMAND += ["--ppo_start", "null", "--ppo.start", "select", "--evaluate", "null"]
COMMAND += ["--ppo.iterations", "8", "--ppo.save_every", "2"]
COMMAND += ["--stages", "pretrain,sft,reward,select,ppo"]


def start(
    place: Path, out: str, processes: int, devices: int, *mesh: str
) -> list[subprocess.Popen]:
    """One job of this many processes with `devices` devices each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    env = userfiles.environment(devices)
    command = [*COMMAND, "--out", out, *(mesh or ("--mesh.data", "2", "--mesh.fsdp", "2"))]
    if processes > 1:
        command += ["--coordinator", f"localhost:{port}", "--processes", str(processes)]
    job = []
    for i in range(processes):
        which = ["--process", str(i)] if processes > 1 else []
        process = subprocess.Popen(
            [*command, *which],
            cwd=place,
            env=env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        job.append(process)
    return job


def finish(job: list[subprocess.Popen], seconds: float = 600) -> list[tuple[int, str]]:
    """(exit code, stderr) of each process."""
    try:
        errors = [process.communicate(timeout=seconds)[1] for process in job]
    finally:
        for process in job:
            process.kill()
    return [(process.returncode, text) for process, text in zip(job, errors, strict=True)]


def run(place: Path, out: str, processes: int, devices: int, *mesh: str) -> Path:
    for code, errors in finish(start(place, out, processes, devices, *mesh)):
        assert code == 0, errors[-3000:]
    return place / out


def without_ppo(run: Path, copy: Path) -> None:
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("ppo"))


def last_state(stage: Path) -> dict[str, np.ndarray]:
    """Every array of the newest checkpoint, as numpy."""
    with ocp.CheckpointManager(
        stage.absolute() / "checkpoints", item_handlers={"state": ocp.PyTreeCheckpointHandler()}
    ) as manager:
        tree = manager.item_metadata(manager.latest_step())["state"].tree
        arguments = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        state = manager.restore(
            manager.latest_step(),
            args=ocp.args.Composite(state=ocp.args.PyTreeRestore(restore_args=arguments)),
        )["state"]
    return {
        jax.tree_util.keystr(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def rows(stage: Path) -> list[dict[str, float]]:
    return read(stage / "metrics.jsonl")


def same(one: Path, other: Path) -> None:
    """Parameters, optimizer and average agree, and so does every metric of every step: the data
    order too.
    """
    for ours, theirs in zip(rows(one), rows(other), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-4)
    a, b = last_state(one), last_state(other)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=1e-4, atol=2e-5, err_msg=name)


@pytest.fixture(scope="module")
def one(place):
    return run(place, "one", 1, 4)


@pytest.fixture(scope="module")
def stopped(place):
    """The first job of two processes, of which the second one gets SIGTERM between two trained
    stages; (a copy of the run folder, how both ended).
    """
    job = start(place, "two", 2, 2)
    while not (place / "two" / "reward" / "inputs.json").exists():
        assert job[1].poll() is None, finish(job)
        time.sleep(0.01)
    job[1].send_signal(signal.SIGTERM)
    ended = finish(job)
    shutil.copytree(place / "two", place / "stopped")
    return place / "stopped", ended


@pytest.fixture(scope="module")
def two(place, stopped):
    """The same job, started again."""
    return run(place, "two", 2, 2)


@pytest.fixture(scope="module")
def killed(place, two):
    """The PPO stage of two processes, of which one is killed in the middle; (run folder, how the
    other one ended, how long it took).
    """
    without_ppo(two, place / "killed")
    job = start(place, "killed", 2, 2)
    metrics = place / "killed" / "ppo" / "metrics.jsonl"
    while not (metrics.exists() and len(metrics.read_text().splitlines()) > 3):
        assert job[1].poll() is None, finish(job)
        time.sleep(0.05)
    job[1].send_signal(signal.SIGKILL)
    began = time.monotonic()
    ended = finish(job, seconds=90)[0]
    seconds = time.monotonic() - began
    shutil.copytree(place / "killed", place / "moved")
    return place / "killed", ended, seconds


def test_where_one_process_gets_sigterm_all_stop_after_the_same_step(stopped):
    folder, ended = stopped
    assert [code for code, _ in ended] == [0, 0], ended
    stage, step = re.findall(
        r"(reward|ppo) was stopped by SIGTERM after step (\d+) of \d+; all of it is saved",
        ended[0][1],
    )[0]
    assert "Traceback" not in ended[0][1] + ended[1][1]
    saved = [int(entry.name) for entry in (folder / stage / "checkpoints").iterdir()]
    assert len(rows(folder / stage)) == int(step) == max(saved)
    assert not (folder / "ppo" / "done.json").exists()


def test_two_processes_equal_one(one, two):
    """Two that were stopped in between, and one that was not."""
    for stage in STAGES:
        same(one / stage, two / stage)


def test_where_one_process_is_killed_the_others_end_with_a_message(killed):
    """Whoever notices first says so: we, when a collective fails, or jax, whose heartbeats stop,
    while all wait for a checkpoint.
    """
    _, (code, errors), seconds = killed
    assert seconds < 60
    if code == 1:
        assert "process 0 of 2 lost the others" in errors
        assert "same command" in errors and "Traceback" not in errors
    else:
        assert code == -signal.SIGABRT
        assert "This most likely indicates that another task died" in errors


def test_the_restarted_job_resumes_bitwise(place, two, killed):
    folder = run(place, "killed", 2, 2)
    assert read(folder / "ppo" / "sessions.jsonl")[-1]["ended"] == "complete"
    assert rows(folder / "ppo") == rows(two / "ppo")
    a, b = last_state(folder / "ppo"), last_state(two / "ppo")
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_a_killed_job_of_two_resumes_with_four_processes(place, one, killed):
    """In PPO, which samples, scores, and learns from its samples and from text."""
    saved = [entry.name for entry in (place / "moved" / "ppo" / "checkpoints").iterdir()]
    before = max(int(name) for name in saved if name.isdigit())
    four = run(place, "moved", 4, 1, "--mesh.data", "4")
    last = read(four / "ppo" / "sessions.jsonl")[-1]
    assert (last["from_step"], last["processes"]) == (before, 4)
    same(one / "ppo", four / "ppo")
