"""Accelerators that need not be here: what their makers say of them, and descriptions of them to
compile for.
"""

import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Mapping
from typing import Any

from instruct_jax.errors import ConfigError, InstructError

GIB = 2**30


class CompilerError(InstructError):
    """A compiler stopped for a reason that is no lack of memory; the message has its last words."""

    exit_code = 1


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device as jax counts them; rates per second, of the makers' data sheets.

    None where nothing is known.
    """

    platform: str  # whose compiler: "tpu", or "cpu" for all that is only imitated
    flops: float | None  # bfloat16, dense
    memory: float  # bytes that programs may use
    bandwidth: float | None  # bytes of that memory
    links: float | None  # bytes sent to other devices, all links together
    sides: int | None = None  # of a slice of TPUs
    node: int | None = None  # devices that `links` connect; between nodes it is `between`
    between: float | None = None


def _here() -> float:
    """This machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


CHIPS: Mapping[str, Chip] = {
    "v5e": Chip("tpu", 197e12, 15.75 * GIB, 819e9, 200e9, 2),
    "v5p": Chip("tpu", 459e12, 95.74 * GIB, 2765e9, 600e9, 3),
    "v6e": Chip("tpu", 918e12, 31.25 * GIB, 1640e9, 400e9, 2),
    "a100": Chip("cpu", 312e12, 79 * GIB, 2039e9, 300e9, node=8, between=25e9),
    "h100": Chip("cpu", 989e12, 79 * GIB, 3350e9, 450e9, node=8, between=50e9),
    "h200": Chip("cpu", 989e12, 140 * GIB, 4800e9, 450e9, node=8, between=50e9),
    "cpu": Chip("cpu", None, _here(), None, None),
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """So many chips of one kind."""

    name: str  # as the user wrote it: "v5p:4x4x4", "h100:16"
    chip: Chip
    devices: int

    @property
    def kind(self) -> str:
        return self.name.partition(":")[0]

    @property
    def links(self) -> float | None:
        """Bytes per second that one device sends, where the slowest link counts."""
        chip = self.chip
        if chip.node and self.devices > chip.node:
            return chip.between
        return chip.links

    @property
    def memory(self) -> float:
        """Bytes that one device has; fake devices share this machine's."""
        if self.kind == "cpu":
            return self.chip.memory / self.devices
        return self.chip.memory

    @property
    def environment(self) -> dict[str, str]:
        """For a process that compiles for it: no start-up of a TPU that is not here, and as many
        fake devices as there are real ones.
        """
        flags = (
            f"{os.environ.get('XLA_FLAGS', '')}"
            f" --xla_force_host_platform_device_count={self.devices}"
        )
        fake = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
        real = {
            "JAX_PLATFORMS": "cpu",
            "TPU_SKIP_MDS_QUERY": "1",
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        }
        return real if self.chip.platform == "tpu" else fake

    def describe(self) -> list[Any]:
        """Its devices, as jax.make_mesh takes them, in a process with that environment."""
        import jax
        from jax.experimental import topologies

        if self.chip.platform == "cpu":
            return jax.devices()[: self.devices]
        # hosts have 2 x 2 otherwise
        alone = {"chips_per_host_bounds": (1, 1, 1)} if self.devices == 1 else {}
        return list(
            topologies.get_topology_desc(platform="tpu", topology_name=self.name, **alone).devices
        )


def parse_topology(text: str) -> Topology:
    """KIND:SIZE, where SIZE is a number of devices, or for TPUs the shape of a slice; ConfigError
    for what cannot be.
    """
    kind, _, size = text.partition(":")
    if kind not in CHIPS:
        raise ConfigError(
            f"--topology {text}: {kind!r} is unknown; use one of {', '.join(CHIPS)}, such as"
            " v5p:4x4x4, h100:8 or cpu:8"
        )
    chip = CHIPS[kind]
    number = r"[1-9]\d{0,3}"
    if chip.sides is None:
        if not re.fullmatch(number, size):
            raise ConfigError(
                f"--topology {text}: {size!r} must be a number of devices, such as {kind}:8"
            )
        return Topology(text, chip, int(size))
    example = f"{kind}:{'x'.join('4' * chip.sides)}"
    if not re.fullmatch("x".join([number] * chip.sides), size):
        raise ConfigError(
            f"--topology {text}: {size!r} must be the shape of a slice with {chip.sides} sides,"
            f" such as {example}"
        )
    shape = [int(n) for n in size.split("x")]
    if math.prod(shape) > 1 and (shape[0] % 2 or shape[1] % 2):
        raise ConfigError(
            f"--topology {text}: hosts have 2 x 2 chips, so the first two sides must be even; write"
            f" a slice such as {example}"
        )
    return Topology(text, chip, math.prod(shape))


def check_compiler(topology: Topology) -> None:
    """ConfigError where the compiler for a topology is not installed."""
    if topology.chip.platform == "tpu" and importlib.util.find_spec("libtpu") is None:
        raise ConfigError(
            f"--topology {topology.name} needs the TPU compiler, which needs no TPU: pip install"
            " '.[tpu]'"
        )
