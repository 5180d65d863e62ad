"""Several processes, one job: how they find each other, who writes, who waits for whom."""

import importlib.util
import os
import re
import sys

import jax
from jax.experimental import multihost_utils

from instruct_jax.errors import ConfigError, InstructError

HEARTBEAT_TIMEOUT = 30  # seconds without a sign of life after which a process counts as dead


class HostLostError(InstructError):
    """Other processes of the job are gone, or cannot be reached any more; the message says how to
    go on.
    """

    exit_code = 1

    def __init__(self, error: Exception):
        super().__init__(
            f"process {jax.process_index()} of {jax.process_count()} lost the others"
            f" ({str(error).splitlines()[0]}).  Start all of them again with the same command: they"
            " go on from the last checkpoint."
        )


def settle_fake_devices() -> None:
    """Before jax starts on a CPU that plays several devices: threads for all that may wait at a
    time.

    XLA gives a device no order in which to run collectives that do not depend on each other.  With
    as many threads as devices (its default where cores are fewer) each may wait in another one, for
    ever; XLA aborts after 40 s.
    """
    if fake := re.search(
        r"xla_force_host_platform_device_count=(\d+)", os.environ.get("XLA_FLAGS", "")
    ):
        # where XLA looks for the size of its pools
        os.environ.setdefault("NPROC", str(8 * int(fake[1])))


def initialize(
    coordinator: str | None = None, processes: int | None = None, process: int | None = None
) -> None:
    """Makes this process one of its job, before anything touches a device.

    TPU VMs, SLURM, Open MPI and Kubernetes tell by themselves; elsewhere all three must be given:
    HOST:PORT of process 0, how many there are, and which one this is.  ConfigError where the others
    cannot be reached.
    """
    settle_fake_devices()
    given = (coordinator, processes, process)
    if None in given and given != (None, None, None):
        raise ConfigError(
            f"--coordinator {coordinator} --processes {processes} --process {process}: give all"
            " three, or none"
        )
    if None in given and not _launched():
        return
    try:
        jax.distributed.initialize(
            *given,
            heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT,
            shutdown_timeout_seconds=HEARTBEAT_TIMEOUT,
        )
    except ValueError as error:
        if None not in given:
            raise ConfigError(
                f"--coordinator {coordinator} --processes {processes} --process {process}: {error}"
            ) from error
        # a TPU machine of its own
    except RuntimeError as error:
        raise ConfigError(
            f"cannot reach the other processes of this job ({error}); start all of them at about"
            " the same time, and let them reach the coordinator's port"
        ) from error


def _launched() -> bool:
    """Did something start several processes?  jax finds out more; here only whether to ask it: a
    lone process must not wait for others.
    """
    env = os.environ
    if any(int(env.get(name) or 1) > 1 for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")):
        return True
    if "KUBERNETES_SERVICE_HOST" in env and "JOB_COMPLETION_INDEX" in env:
        return True
    on_tpu = importlib.util.find_spec("libtpu") is not None and "tpu" in (
        env.get("JAX_PLATFORMS") or "tpu"
    )
    return on_tpu and "TPU_SKIP_MDS_QUERY" not in env


def is_multihost() -> bool:
    """Is this process one of several?"""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_main() -> bool:
    """Process 0 writes what all of them know."""
    return not is_multihost() or jax.process_index() == 0


def barrier(name: str) -> None:
    """Returns when all processes are here."""
    if is_multihost():
        multihost_utils.sync_global_devices(name)


def exit_now(code: int) -> int:
    """The exit code; a process that failed leaves at once, as jax would wait for the others, who
    may wait for it.
    """
    if code and is_multihost():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code
