"""What a person sees while a stage runs: a live bar in a terminal, a line every ten seconds
anywhere else.
"""

import datetime
import time
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from instruct_jax.runtime.hosts import is_main

SECONDS_PER_LINE = 10.0


class StageProgress:
    """Shows stage name, steps, time left and the metrics named in `keys`."""

    def __init__(
        self,
        name: str,
        *,
        step: int,
        total: int,
        keys: Sequence[str] = (),
        console: Console | None = None,
    ):
        self.name, self.first, self.total, self.keys = name, step, total, keys
        self.console = console or Console(quiet=not is_main())
        self._started = self._line_at = time.monotonic()
        self._bar: Progress | None = None

    def __enter__(self) -> "StageProgress":
        if self.console.is_terminal:
            bar = self._bar = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[metrics]}"),
                console=self.console,
            )
            bar.start()
            self._task = bar.add_task(self.name, total=self.total, completed=self.first, metrics="")
        return self

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        shown = "  ".join(
            f"{key.rpartition('/')[2]} {metrics[key]:.4g}" for key in self.keys if key in metrics
        )
        if self._bar:
            self._bar.update(self._task, completed=step, metrics=shown)
            return
        now = time.monotonic()
        if step == self.total or now - self._line_at >= SECONDS_PER_LINE:
            self._line_at = now
            done = step - self.first
            left = (
                f"{datetime.timedelta(seconds=round((now - self._started) / done * (self.total - step)))}"
                " left"
                if done
                else "waiting"
            )
            line = f"{self.name} {step}/{self.total}  {left}  {shown}"
            self.console.print(line, soft_wrap=True, markup=False, highlight=False)

    def note(self, text: str) -> None:
        """Prints a line that stays."""
        self.console.print(f"{self.name}: {text}", soft_wrap=True, markup=False, highlight=False)

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()
