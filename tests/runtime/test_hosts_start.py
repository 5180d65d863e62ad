"""Processes that wait for others in vain, and devices that are not there, are one message."""

import os
import socket
import subprocess
import sys

import jax
import pytest

from instruct_jax.errors import ConfigError
from instruct_jax.runtime import hosts

START = "from instruct_jax.runtime import hosts; hosts.NOTICE = hosts.GIVE_UP = 1; "
STEP = {
    "SLURM_JOB_ID": "7",
    "SLURM_NTASKS": "8",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_STEP_NODELIST": "localhost",
}


def python(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | env,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_process_that_srun_did_not_start_ends():
    found = python(f"{START} hosts.initialize()", **STEP)
    assert found.returncode == 2
    assert found.stderr == (
        "error: waiting for 7 of 8 processes (SLURM_NTASKS), or for some of them; start the command"
        " with srun; for one process unset SLURM_NTASKS, or give --processes 1\n"
    )


def test_processes_that_come_late_are_waited_for():
    """Process 0 says so before it ends."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    found = python(f"{START} hosts.GIVE_UP = 2; hosts.initialize('localhost:{port}', 2, 0)")
    first, last = found.stderr.splitlines()
    assert found.returncode == 2
    assert first.startswith("waiting for 1 of 2 processes (--processes), ")
    assert last == f"error: {first}"


def test_one_process_that_is_alone(monkeypatch):
    for name, value in STEP.items():
        monkeypatch.setenv(name, value)
    hosts.initialize(processes=1)
    assert not jax.distributed.is_initialized()
    with pytest.raises(ConfigError, match="or --processes 1 alone"):
        hosts.initialize(processes=2)


def test_a_script_of_slurm_is_told_that_it_runs_alone():
    found = python(f"{START} hosts.initialize()", SLURM_NTASKS="8")
    assert found.returncode == 0
    assert found.stderr.startswith("SLURM_NTASKS=8, but this process runs alone; start")


COMMAND = """
import sys, jax
from instruct_jax import cli
cli._export = lambda args, rest: jax.numpy.zeros(1)
sys.exit(cli.main(["export", "a:b", "--out", "c"]))
"""


@pytest.mark.parametrize("platform", ["cuda", "nonsense"])
def test_a_platform_that_is_not_there(platform):
    """Wherever a command asks for the first device."""
    found = python(COMMAND, JAX_PLATFORMS=platform)
    assert found.returncode == 2
    assert "Traceback" not in found.stderr
    assert f"error: JAX_PLATFORMS={platform}: no such device can be used here (" in found.stderr


def test_other_errors_stay_what_they_are(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert hosts.without_devices(RuntimeError("of another kind")) is None
