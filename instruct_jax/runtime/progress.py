"""What a person sees while a stage runs.

In a terminal it is a live bar, anywhere else a line every ten seconds.
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
    """Shows the name of the stage, steps, time left and the metrics named in `keys`."""

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
        """Shows how far the stage is, and the metrics of the step."""
        values = []
        for key in self.keys:
            if key in metrics:
                name = key.rpartition("/")[2]
                values.append(f"{name} {metrics[key]:.4g}")
        shown = "  ".join(values)
        if self._bar:
            self._bar.update(self._task, completed=step, metrics=shown)
            return
        now = time.monotonic()
        if step != self.total and now - self._line_at < SECONDS_PER_LINE:
            return
        self._line_at = now
        left = self._time_left(step, now - self._started)
        line = f"{self.name} {step}/{self.total}  {left}  {shown}"
        self.console.print(line, soft_wrap=True, markup=False, highlight=False)

    def _time_left(self, step: int, seconds: float) -> str:
        """In words; `seconds` have passed since the start."""
        done = step - self.first
        if not done:
            return "waiting"
        seconds_left = round(seconds / done * (self.total - step))
        return f"{datetime.timedelta(seconds=seconds_left)} left"

    def note(self, text: str) -> None:
        """Prints a line that stays."""
        self.console.print(f"{self.name}: {text}", soft_wrap=True, markup=False, highlight=False)

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()
