"""The loop that runs every stage: step, watch, save, stop, go on."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from instruct_jax import sharding
from instruct_jax.errors import NonFiniteError
from instruct_jax.records import TrainState
from instruct_jax.runtime.checkpoints import Checkpoints
from instruct_jax.runtime.digests import named_leaves
from instruct_jax.runtime.folders import append_row, writing
from instruct_jax.runtime.hosts import is_main, is_multihost
from instruct_jax.runtime.metrics import MetricsFile, Recompiles, cut_after, peak_memory
from instruct_jax.runtime.progress import StageProgress
from instruct_jax.runtime.signals import Interrupted, catch_signals

Row = dict[str, float]


def train(
    step_fn: Callable[[TrainState, Any], tuple[TrainState, Mapping[str, Any]]],
    state: TrainState,
    batch_at: Callable[[int], Any],
    *,
    total_steps: int,
    folder: Path,
    checkpoints: Checkpoints,
    save_every: int | None = None,
    save_seconds: float = 600.0,
    evaluate: Callable[[TrainState], Mapping[str, Any]] | None = None,
    evaluate_every: int | None = None,
    stop_when: Callable[[Row], str | None] | None = None,
    show: Sequence[str] = (),
) -> TrainState:
    """Runs `state, metrics = step_fn(state, batch_at(step))` until state.step is `total_steps`,
    from the newest checkpoint if there is one.

    The data position is state.step, so a run that is stopped anywhere and started again ends
    bitwise where it would have without. `state` is used up.  Row n of folder/metrics.jsonl and
    checkpoint n belong to n completed steps.  Metrics are fetched while the next step runs, except
    where `stop_when` (a reason ends the stage) must see them first.  `evaluate` runs every
    `evaluate_every` steps and at the end; its metrics join the row of that step, which is then
    saved.  `show` names the metrics of the bar.
    """
    folder.mkdir(parents=True, exist_ok=True)
    damaged: list[str] = []
    if checkpoints.latest() is not None:
        state, damaged = checkpoints.restore_good(freed(state))
    first = step = int(state.step)
    saved_at = time.monotonic()
    # the step whose metrics are not fetched yet
    pending: tuple[int, Mapping[str, Any], Any] | None = None
    with (
        MetricsFile(folder / "metrics.jsonl", first) as file,
        StageProgress(folder.name, step=first, total=total_steps, keys=show) as progress,
        _Session(folder / "sessions.jsonl", first) as session,
        catch_signals() as request,
    ):

        def check(at: int, metrics: Mapping[str, Any], batch: Any) -> Row:
            row = _fetch(metrics)
            if bad := _not_finite(row):
                _keep_for_replay(
                    folder / f"nonfinite_step_{at}", at, state, batch, checkpoints.fingerprints
                )
                raise NonFiniteError(
                    f"{folder.name} step {at}: {bad}.  The step was not applied.  The state before"
                    f" it and its batch are in {folder}/nonfinite_step_{at}, and `instruct-jax"
                    f" replay {folder}/nonfinite_step_{at}` runs it again.  Lower the learning"
                    " rate, or look at the batch, and start a new run."
                )
            return row

        def finish(
            at: int,
            metrics: Mapping[str, Any],
            batch: Any,
            measure: Callable[[], Mapping[str, Any]] | None = None,
        ) -> Row:
            row = check(at, metrics, batch)
            if measure:
                row |= _fetch(measure())
                if bad := _not_finite(row):
                    raise NonFiniteError(
                        f"{folder.name}, evaluated after step {at}: {bad}.  Checkpoints of earlier"
                        " steps are good."
                    )
            file.write(at, row)
            progress.update(at, row)
            return row

        for message in damaged:
            progress.note(f"{message}; going on from step {first}")
        # it may have ended here before
        reason = stop_when(file.last) if stop_when and file.last else None
        ending = step >= total_steps or bool(reason)
        while not ending:
            batch = batch_at(step)
            with session.recompiles:
                state, metrics = step_fn(state, batch)
            step += 1
            if pending:
                finish(*pending)
            pending = (step, metrics, batch)
            if stop_when:
                reason = stop_when(check(*pending))
            complete = step == total_steps or bool(reason)
            ending = request.reached() or complete
            evaluating = evaluate is not None and (complete or _due(step, evaluate_every))
            # several clocks may disagree
            late = not is_multihost() and time.monotonic() - saved_at > save_seconds
            if ending or evaluating or late or _due(step, save_every):
                row = finish(
                    *pending, partial(evaluate, state) if evaluate and evaluating else None
                )
                if int(state.step) != step:
                    raise RuntimeError(
                        f"{folder.name}: state.step is {int(state.step)} after step {step}; step_fn"
                        " must add 1 to it"
                    )
                file.sync()
                checkpoints.save(state, row)
                pending, saved_at = None, time.monotonic()
            session.stepped(step, state)
        if checkpoints.latest() is None:
            checkpoints.save(state)  # a stage of no steps still has a result
        session.ended = request.name if request.caught else reason or "complete"
        checkpoints.wait()
        if reason:
            progress.note(f"ended after step {step} of {total_steps}: {reason}")
    if request.caught:
        raise Interrupted(
            f"{folder.name} was stopped by {request.name} after step {step} of {total_steps}; all"
            " of it is saved.  Run the same command again to go on from there.",
            request.exit_code,
        )
    return state


class _Session:
    """One line of sessions.jsonl for each start of a stage: how far it came, why it ended, how fast
    it was.
    """

    def __init__(self, path: Path, step: int):
        cut_after(path, math.inf)
        self.path, self.first, self.step = path, step, step
        self.ended = ""
        self.recompiles = Recompiles()
        self._started = self._warm = time.monotonic()

    def __enter__(self) -> "_Session":
        return self

    def stepped(self, step: int, state: TrainState) -> None:
        """Notes a step; the first one, which compiles, is left out of the speed."""
        self.step = step
        if step == self.first + 1:
            jax.block_until_ready(state.step)
            self.recompiles.mark_warm()
            self._warm = time.monotonic()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> None:
        if not is_main() or (self.step == self.first and error is None):
            return  # nothing was left to do
        now, warm_steps = time.monotonic(), self.step - self.first - 1
        line = {
            "from_step": self.first,
            "to_step": self.step,
            "ended": f"{type(error).__name__}: {error}" if error else self.ended,
            "seconds": round(now - self._started, 3),
            "seconds_per_step": (
                round((now - self._warm) / warm_steps, 6) if warm_steps > 0 else None
            ),
            "devices": jax.device_count(),
            "processes": jax.process_count(),
            "recompiles_after_warmup": self.recompiles.after_warmup,
            **peak_memory(),
        }
        with (
            contextlib.suppress(OSError) if error else contextlib.nullcontext()
        ):  # an error on its way out matters more
            append_row(self.path, line)


def freed(state: TrainState) -> TrainState:
    """What to restore in the layout of `state`, whose memory is freed: both together may not fit."""
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
    for leaf in jax.tree.leaves(state):
        leaf.delete()
    return abstract


def _due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0


def _fetch(metrics: Mapping[str, Any]) -> Row:
    return {name: float(value) for name, value in jax.device_get(dict(metrics)).items()}


def _not_finite(row: Row) -> str:
    return ", ".join(
        f"{name} is {value}" for name, value in row.items() if not math.isfinite(value)
    )


def _keep_for_replay(
    place: Path, at: int, state: TrainState, batch: Any, fingerprints: Mapping[str, str]
) -> None:
    """The halted state, as it was before step `at`, and the batch of that step."""
    if int(state.step) != ~(at - 1):
        raise RuntimeError(
            f"{place.parent.name}: step {at} is not finite and was applied; make step_fn with"
            " sharding.compile_step"
        )
    with Checkpoints(place / "state", fingerprints=fingerprints) as checkpoints:
        checkpoints.save(dataclasses.replace(state, step=~state.step))
    arrays = named_leaves(sharding.fetch(batch))
    if is_main():
        with writing(place / "batch.npz"):
            np.savez(place / "batch.npz", **arrays)
