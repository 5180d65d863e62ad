"""One job of several processes: how they find each other, which one writes, how they wait."""

import contextlib
import importlib.util
import os
import re
import sys
import threading
from collections.abc import Iterator

import jax
from jax.experimental import multihost_utils

from instruct_jax.errors import ConfigError, InstructError

HEARTBEAT_TIMEOUT = 30  # seconds without a sign of life after which a process counts as dead
NOTICE = 30  # seconds after which a process that waits for the others says so
# seconds after which it ends; the pods of a job may start minutes apart
GIVE_UP = 290
JAX_GIVES_UP = 300  # and aborts, with a stack of C++
STARTS = {  # what tells how many processes there are -> how all of them are started
    "--processes": "start the same command with --process 0, 1, ... on every host",
    "SLURM_NTASKS": (
        "start the command with srun; for one process unset SLURM_NTASKS, or give --processes 1"
    ),
    "OMPI_COMM_WORLD_SIZE": ("start the command with mpirun; for one process give --processes 1"),
}


class HostLostError(InstructError):
    """Other processes of the job are gone or cannot be reached; the message says how to resume."""

    exit_code = 1

    def __init__(self, error: Exception):
        super().__init__(
            f"process {jax.process_index()} of {jax.process_count()} lost the others"
            f" ({str(error).splitlines()[0]}).  Start all of them again with the same command: they"
            " resume from the last checkpoint."
        )


class OutOfMemoryError(InstructError):
    """A device has no room; the message says which keys need less."""

    exit_code = 1

    def __init__(self, error: Exception):
        super().__init__(
            f"a device is out of memory ({str(error).splitlines()[0]}).  Raise micro_batches of the"
            " stage, set model.remat to full, lower sample_batch or model.logprob_chunk, or divide"
            " the model further (mesh.fsdp, mesh.tensor).  None of them changes what is learned:"
            " the same command goes on in the same folder.  `instruct-jax plan` tells beforehand"
            " what fits."
        )


def explained(error: Exception) -> InstructError | None:
    """What an error of jax's runtime means; None where it tells that best itself."""
    if not isinstance(error, jax.errors.JaxRuntimeError):
        return None
    if "RESOURCE_EXHAUSTED" in str(error):
        return OutOfMemoryError(error)
    return HostLostError(error) if is_multihost() else None


def without_devices(error: Exception) -> ConfigError | None:
    """What an error means where jax finds none of the devices that JAX_PLATFORMS names, else None.

    jax looks for them when the first is asked for, be it by a count, an array or a mesh.
    """
    platforms = os.environ.get("JAX_PLATFORMS")
    if not platforms or not isinstance(error, RuntimeError | AssertionError):
        return None
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as failure:
        reason, _, _ = str(failure).partition(" (set JAX_PLATFORMS")
        return ConfigError(
            f"JAX_PLATFORMS={platforms}: no such device can be used here ({reason or 'none'}); set"
            " JAX_PLATFORMS=cpu, or unset it, or install what the device needs: pip install"
            " '.[cuda]' or '.[tpu]'"
        )
    return None


def settle_fake_devices() -> None:
    """Gives a CPU that plays several devices enough threads; call it before jax starts.

    XLA gives a device no order in which to run collectives that do not depend on each other.  With
    as many threads as devices (its default where cores are fewer), each thread may wait in another
    collective for ever; XLA aborts after 40 s.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    fake = re.search(r"xla_force_host_platform_device_count=(\d+)", flags)
    if fake:
        # XLA takes the size of its thread pools from here
        os.environ.setdefault("NPROC", str(8 * int(fake[1])))


def initialize(
    coordinator: str | None = None, processes: int | None = None, process: int | None = None
) -> None:
    """Joins this process to its job; call it before anything touches a device.

    TPU VMs, SLURM, Open MPI and Kubernetes tell by themselves; elsewhere all three must be given:
    HOST:PORT of process 0, how many there are, and which one this is.  `processes` 1 alone: there
    are no others.  ConfigError where the others cannot be reached; the process ends, with its exit
    code, where they do not come.
    """
    settle_fake_devices()
    given = (coordinator, processes, process)
    options = f"--coordinator {coordinator} --processes {processes} --process {process}"
    if given == (None, 1, None):
        return
    if None in given and given != (None, None, None):
        raise ConfigError(f"{options}: give all three, or none, or --processes 1 alone")
    if None in given and not _launched():
        return
    try:
        with _giving_up(processes):
            jax.distributed.initialize(
                *given,
                initialization_timeout=JAX_GIVES_UP,
                heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT,
                shutdown_timeout_seconds=HEARTBEAT_TIMEOUT,
            )
    except ValueError as error:
        if None not in given:
            raise ConfigError(f"{options}: {error}") from error
        # otherwise it is a single TPU machine, or a shell of SLURM: there are no others to find
        count, source = _tasks()
        if count > 1:
            print(
                f"{source}={count}, but this process runs alone; {STARTS[source]}", file=sys.stderr
            )
    except RuntimeError as error:
        raise ConfigError(
            f"cannot reach the other processes of this job ({error}); start all of them at about"
            " the same time, and let them reach the coordinator's port"
        ) from error


def _launched() -> bool:
    """Whether a launcher may have started several processes.

    jax finds out more; this only decides whether to ask it, as a single process must not wait for
    others.
    """
    env = os.environ
    count, _ = _tasks()
    if count > 1:
        return True
    if "KUBERNETES_SERVICE_HOST" in env and "JOB_COMPLETION_INDEX" in env:
        return True
    if importlib.util.find_spec("libtpu") is None or "TPU_SKIP_MDS_QUERY" in env:
        return False
    return "tpu" in (env.get("JAX_PLATFORMS") or "tpu")


@contextlib.contextmanager
def _giving_up(processes: int | None) -> Iterator[None]:
    """While this waits for the other processes, it says so, and ends where they do not come.

    jax can only abort then.  Where srun did not start this process, nobody else will come.
    """
    waiting = _waiting_for(processes)
    arrived = threading.Event()

    def watch() -> None:
        if arrived.wait(NOTICE):
            return
        if processes is not None or not _alone_under_slurm():
            print(waiting, file=sys.stderr, flush=True)
            if arrived.wait(GIVE_UP - NOTICE):
                return
        print(f"error: {waiting}", file=sys.stderr, flush=True)
        os._exit(ConfigError.exit_code)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        arrived.set()


def _waiting_for(processes: int | None) -> str:
    """The message of a process that waits for the others."""
    source = "--processes"
    if processes is None:
        processes, source = _tasks()
    if processes == 1:
        return "waiting for the other processes of this job; start all at about the same time"
    return (
        f"waiting for {processes - 1} of {processes} processes ({source}), or for some of them;"
        f" {STARTS[source]}"
    )


def _tasks() -> tuple[int, str]:
    """How many processes a launcher says that there are, and by which variable; 1 where none does.

    TPU VMs and Kubernetes say it to jax alone.
    """
    for name in STARTS:
        count = int(os.environ.get(name) or 1)
        if count > 1:
            return count, name
    return 1, ""


def _alone_under_slurm() -> bool:
    """Whether srun, which says how many tasks its step has, did not start all tasks of the job."""
    tasks = os.environ.get("SLURM_NTASKS")
    by_srun = os.environ.get("SLURM_STEP_NUM_TASKS") == tasks
    return tasks is not None and not by_srun and "OMPI_COMM_WORLD_SIZE" not in os.environ


def is_multihost() -> bool:
    """Whether this process is one of several."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_main() -> bool:
    """Whether this is process 0, which writes what all of them know."""
    return not is_multihost() or jax.process_index() == 0


def barrier(name: str) -> None:
    """Returns when all processes are here."""
    if is_multihost():
        multihost_utils.sync_global_devices(name)


def exit_now(code: int) -> int:
    """Returns the exit code, but a failed process of several ends here and at once.

    At a normal exit jax would wait for the other processes, which may wait for this one.
    """
    if code and jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code
