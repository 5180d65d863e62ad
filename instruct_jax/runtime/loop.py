"""The loop that runs every training stage: it steps, checks, saves, stops and resumes."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

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


class _Pending(NamedTuple):
    """A step that was dispatched and whose metrics are not fetched yet."""

    step: int  # counted from 1: how many steps are complete when it is done
    metrics: Mapping[str, Any]
    batch: Any


@dataclasses.dataclass(frozen=True)
class Training:
    """A training before its first step: what `train` takes, and what a replay takes one step of."""

    step: Callable[[TrainState, Any], tuple[TrainState, Mapping[str, Any]]]
    state: TrainState
    batch_at: Callable[[int], Any]
    total_steps: int
    fingerprints: Mapping[str, str]  # of the checkpoints
    save_every: int | None = None  # steps
    keep: int = 2  # of the newest checkpoints
    keep_every: int | None = None  # steps: these checkpoints stay
    stop_when: Callable[[Row], str | None] | None = None  # (metrics) -> a reason to end here
    show: tuple[str, ...] = ()  # metrics of the progress bar
    # what the data says, for whoever writes about the result
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)


def train(training: Training, folder: Path, *, save_seconds: float = 600.0) -> TrainState:
    """Runs `state, metrics = step(state, batch_at(step))` until state.step is `total_steps`.

    It starts from the newest checkpoint if there is one.  The data position is state.step, so a run
    that is stopped anywhere and started again ends bitwise where it would have ended without the
    stop.  The state of `training` is used up.  Row n of folder/metrics.jsonl and checkpoint n
    belong to n completed steps.  A checkpoint is saved every `save_every` steps, when the last one
    is `save_seconds` old, and at the end.

    Metrics are fetched while the next step runs, except where `stop_when` must see them first: it
    gets the metrics of each step, and a string from it, the reason, ends the stage.  `show` names
    the metrics of the progress bar.  NonFiniteError where a metric is NaN or Inf, Interrupted where
    a signal stopped the run.
    """
    with Checkpoints(
        folder / "checkpoints",
        fingerprints=training.fingerprints,
        keep=training.keep,
        keep_every=training.keep_every,
    ) as checkpoints:
        state = training.state
        folder.mkdir(parents=True, exist_ok=True)
        damaged: list[str] = []
        if checkpoints.latest() is not None:
            state, damaged = checkpoints.restore_good(freed(state))
        first = step = int(state.step)
        saved_at = time.monotonic()
        pending: _Pending | None = None
        with (
            MetricsFile(folder / "metrics.jsonl", first) as file,
            StageProgress(
                folder.name, step=first, total=training.total_steps, keys=training.show
            ) as progress,
            _Session(folder / "sessions.jsonl", first) as session,
            catch_signals() as request,
        ):

            def finite_row(done: _Pending) -> Row:
                return _finite_row(done, state, folder, checkpoints.fingerprints)

            def write(done: _Pending) -> None:
                row = finite_row(done)
                file.write(done.step, row)
                progress.update(done.step, row)

            for message in damaged:
                progress.note(f"{message}; resuming from step {first}")
            reason = None
            if training.stop_when and file.last:  # an earlier start may have ended here
                reason = training.stop_when(file.last)
            ending = step >= training.total_steps or bool(reason)
            while not ending:
                batch = training.batch_at(step)
                with session.recompiles:
                    state, metrics = training.step(state, batch)
                step += 1
                if pending:
                    write(pending)
                pending = _Pending(step, metrics, batch)
                if training.stop_when:
                    reason = training.stop_when(finite_row(pending))
                ending = request.reached() or step == training.total_steps or bool(reason)
                # the clocks of several processes may disagree, so they do not save by the clock
                late = not is_multihost() and time.monotonic() - saved_at > save_seconds
                scheduled = training.save_every is not None and step % training.save_every == 0
                if ending or late or scheduled:
                    write(pending)
                    if int(state.step) != step:
                        raise RuntimeError(
                            f"{folder.name}: state.step is {int(state.step)} after step {step};"
                            " the step must add 1 to it"
                        )
                    file.sync()
                    checkpoints.save(state)
                    pending, saved_at = None, time.monotonic()
                session.stepped(step, state)
            if checkpoints.latest() is None:
                checkpoints.save(state)  # a stage of no steps still has a result
            session.ended = request.name if request.caught else reason or "complete"
            checkpoints.wait()
            if reason:
                progress.note(f"ended after step {step} of {training.total_steps}: {reason}")
        if request.caught:
            raise Interrupted(
                f"{folder.name} was stopped by {request.name} after step {step} of"
                f" {training.total_steps}; all of it is saved.  Run the same command again to"
                " resume from there.",
                request.exit_code,
            )
        return state


class _Session:
    """Writes a line of sessions.jsonl for each start: how far it came, how fast, why it ended."""

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
        nothing_to_do = self.step == self.first and error is None
        if nothing_to_do or not is_main():
            return
        now = time.monotonic()
        warm_steps = self.step - self.first - 1
        seconds_per_step = None
        if warm_steps > 0:
            seconds_per_step = round((now - self._warm) / warm_steps, 6)
        line = {
            "from_step": self.first,
            "to_step": self.step,
            "ended": f"{type(error).__name__}: {error}" if error else self.ended,
            "seconds": round(now - self._started, 3),
            "seconds_per_step": seconds_per_step,
            "devices": jax.device_count(),
            "processes": jax.process_count(),
            "recompiles_after_warmup": self.recompiles.after_warmup,
            **peak_memory(),
        }
        # an error that is already on its way matters more than one of this file
        quiet = contextlib.suppress(OSError) if error else contextlib.nullcontext()
        with quiet:
            append_row(self.path, line)


def freed(state: TrainState) -> TrainState:
    """The shapes, dtypes and shardings of a state, to restore into; its own memory is freed.

    The state and the restored one may not fit into memory together.
    """
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
    for leaf in jax.tree.leaves(state):
        leaf.delete()
    return abstract


def _finite_row(
    done: _Pending, state: TrainState, folder: Path, fingerprints: Mapping[str, str]
) -> Row:
    """The metrics of a step as numbers.

    Where one is NaN or Inf, the state before the step and its batch are kept for a replay, and
    NonFiniteError is raised.
    """
    fetched = jax.device_get(dict(done.metrics))
    row = {name: float(value) for name, value in fetched.items()}
    bad = [f"{name} is {value}" for name, value in row.items() if not math.isfinite(value)]
    if not bad:
        return row
    place = folder / f"nonfinite_step_{done.step}"
    _keep_for_replay(place, done, state, fingerprints)
    raise NonFiniteError(
        f"{folder.name} step {done.step}: {', '.join(bad)}.  The step was not applied.  The state"
        f" before it and its batch are in {place}, and `instruct-jax replay {place}` runs it again."
        "  Lower the learning rate, or look at the batch, and make the stage again with --redo"
        f" {folder.name}."
    )


def _keep_for_replay(
    place: Path, done: _Pending, state: TrainState, fingerprints: Mapping[str, str]
) -> None:
    """Saves the halted state, as it was before the step, and the batch of that step.

    A guarded step (sharding.only_finite) whose numbers are not finite leaves the state as it was,
    except that `step` is ~step: the state is halted.
    """
    if int(state.step) != ~(done.step - 1):
        raise RuntimeError(
            f"{place.parent.name}: step {done.step} is not finite and was applied; make step_fn"
            " with sharding.compile_step"
        )
    with Checkpoints(place / "state", fingerprints=fingerprints) as checkpoints:
        checkpoints.save(dataclasses.replace(state, step=~state.step))
    arrays = named_leaves(sharding.fetch(done.batch))
    if is_main():
        with writing(place / "batch.npz"):
            np.savez(place / "batch.npz", **arrays)
