"""Metrics on disk (JSON Lines), and what the machine did: compilations and peak memory."""

import json
import os
import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from instruct_jax.errors import RunError
from instruct_jax.runtime.folders import write_atomic, write_row, writing
from instruct_jax.runtime.hosts import is_main


def cut_after(path: Path, step: float) -> list[dict[str, Any]]:
    """Drops the rows of later steps, and a torn last row, from a JSONL file; returns the others.

    A row without "step" stays.  RunError where the file is damaged elsewhere than at its end.
    """
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):  # the process was killed while it wrote
        lines.pop()
    rows, text = [], ""
    try:
        for line in lines:
            row = dict(json.loads(line))
            if row.get("step", 0) <= step:
                rows.append(row)
                text += line
    except (ValueError, TypeError) as error:
        problem = " ".join(str(error).split())[:200]
        raise RunError(
            f"{path} is damaged ({problem}): restore it from a copy, or remove {path.parent} to"
            " make that stage again"
        ) from error
    if is_main() and path.stat().st_size != len(text.encode()):
        write_atomic(path, text)
    return rows


class MetricsFile:
    """metrics.jsonl: one row {"step": n, "stage/name": x, ...} for each completed step.

    It can be read while the run writes it.  Opened at a step, it drops the rows after it, as they
    will be written again.  `last` is the row of that step, if there is one.
    """

    def __init__(self, path: Path, step: int):
        rows = cut_after(path, step)
        self.last: dict[str, float] | None = None
        if rows and rows[-1]["step"] == step:
            self.last = rows[-1]
        self.path = path
        written = path if is_main() else Path(os.devnull)
        self._file = written.open("ab", buffering=0)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds the row of a step."""
        with writing(self.path):
            write_row(self._file, {"step": step, **metrics})

    def sync(self) -> None:
        """Returns when the rows are on disk.

        Called before a checkpoint is saved, which must not be ahead of them.
        """
        if is_main():
            with writing(self.path):
                os.fsync(self._file.fileno())

    def __enter__(self) -> "MetricsFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


class Recompiles:
    """Counts the programs that XLA compiles while it is entered, as often as you like.

    `mark_warm` starts the count of `after_warmup`.
    """

    def __init__(self) -> None:
        self.total = 0
        self._warm: int | None = None

    @property
    def after_warmup(self) -> int:
        """How many programs were compiled since `mark_warm`; 0 before it."""
        return 0 if self._warm is None else self.total - self._warm

    def mark_warm(self) -> None:
        """Begins the count of `after_warmup`."""
        self._warm = self.total

    def _listen(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        self.total += event == "/jax/core/compile/backend_compile_duration"

    def __enter__(self) -> "Recompiles":
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        return self

    def __exit__(self, *_: object) -> None:
        jax.monitoring.unregister_event_duration_listener(self._listen)


def peak_memory() -> dict[str, float]:
    """The most GiB that this process and the fullest device ever held.

    Some backends do not tell about devices; then there is no "device_peak_gib".
    """
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    host_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    peak = {"host_peak_gib": round(host_bytes / 2**30, 3)}
    device_bytes = []
    for device in jax.local_devices():
        size = (device.memory_stats() or {}).get("peak_bytes_in_use")
        if size is not None:
            device_bytes.append(size)
    if device_bytes:
        peak["device_peak_gib"] = round(max(device_bytes) / 2**30, 3)
    return peak
