"""One job of several processes: how they find each other, which one writes, how they wait."""

import importlib.util
import os
import re
import sys

import jax
from jax.experimental import multihost_utils

from instruct_jax.errors import ConfigError, InstructError

HEARTBEAT_TIMEOUT = 30  # seconds without a sign of life after which a process counts as dead


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
    HOST:PORT of process 0, how many there are, and which one this is.  ConfigError where the others
    cannot be reached.
    """
    settle_fake_devices()
    given = (coordinator, processes, process)
    options = f"--coordinator {coordinator} --processes {processes} --process {process}"
    if None in given and given != (None, None, None):
        raise ConfigError(f"{options}: give all three, or none")
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
            raise ConfigError(f"{options}: {error}") from error
        # otherwise it is a single TPU machine, which has no others to find
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
    for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE"):
        if int(env.get(name) or 1) > 1:
            return True
    if "KUBERNETES_SERVICE_HOST" in env and "JOB_COMPLETION_INDEX" in env:
        return True
    if importlib.util.find_spec("libtpu") is None or "TPU_SKIP_MDS_QUERY" in env:
        return False
    return "tpu" in (env.get("JAX_PLATFORMS") or "tpu")


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
    if code and is_multihost():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code
