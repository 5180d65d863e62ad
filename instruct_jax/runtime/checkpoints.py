"""Checkpoints, written by orbax in the background.

What does not fit is refused by name; nothing is padded, renamed or rebuilt silently.  Orbax reads
most flipped bits as other numbers, so each checkpoint keeps a digest of every array, and every
restore checks them.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import (
    AnyPreservationPolicy,
    EveryNSteps,
    LatestN,
    PreservationPolicy,
)

from instruct_jax.errors import InstructError
from instruct_jax.records import Params, TrainState
from instruct_jax.runtime import hosts
from instruct_jax.runtime.digests import digests, named_leaves

Types = dict[str, tuple[tuple[int, ...], str]]  # "params.block.w" -> (shape, dtype)


class CheckpointError(InstructError, ValueError):
    """A checkpoint cannot be written, read, or used here.

    The message names the place, both values and the fix.
    """


class DamagedError(CheckpointError):
    """The files of a checkpoint cannot be read, or hold other numbers than were saved."""

    def __init__(self, place: str, reason: object):
        # messages of tensorstore fill pages
        super().__init__(f"the checkpoint {place} is damaged: {str(reason)[:300]}")


class Checkpoints:
    """The checkpoints of one stage: the last `keep` ones and those of every `keep_every` steps.

    `fingerprints` (say {"model": ..., "tokenizer": ..., "data": ...}) travel with each checkpoint
    and must be the same when it is read.  Saves run in the background; a failed one is raised by
    the next save, wait or close, and leaves the earlier checkpoints as they were.
    """

    def __init__(
        self,
        folder: Path,
        *,
        fingerprints: Mapping[str, str],
        keep: int = 2,
        keep_every: int | None = None,
    ):
        self.folder, self.fingerprints = folder, dict(fingerprints)
        rules: list[PreservationPolicy] = [LatestN(keep)]
        if keep_every:
            rules.append(EveryNSteps(keep_every))
        self._manager = _manager(
            folder, cleanup_tmp_directories=True, preservation_policy=AnyPreservationPolicy(rules)
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> None:
        try:
            self.wait()
        except InstructError:
            if error is None:  # an error on its way out matters more
                raise
        finally:
            self._manager.close()

    def latest(self) -> int | None:
        """Step of the newest checkpoint."""
        return self._manager.latest_step()

    def save(self, state: TrainState) -> None:
        """Copies the state to the host and writes it in the background.

        A step that is saved already is not saved again.
        """
        step = int(state.step)
        if step == self.latest():
            return
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(state=ocp.args.PyTreeSave(state)),
                custom_metadata={**self.fingerprints, "digests": digests(state)},
            )
        except Exception as error:
            raise self._failed(error) from error

    def wait(self) -> None:
        """Returns when every save is on disk."""
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        except Exception as error:
            raise self._failed(error) from error

    def restore(self, abstract: TrainState, step: int | None = None) -> TrainState:
        """The state of a step, of the newest one unless given, laid out as `abstract`.

        `abstract` is a tree of arrays, or of jax.ShapeDtypeStruct with shardings.
        """
        self.wait()
        return _restore(
            self._manager, self.folder, abstract, self.fingerprints, step, partial=False
        )

    def restore_good(self, abstract: TrainState) -> tuple[TrainState, list[str]]:
        """The newest state that is whole, and what was wrong with newer ones.

        Damaged checkpoints are moved out of the way.  CheckpointError where there are checkpoints
        but none is whole: a stage never silently starts again from the beginning.  Several
        processes may not see the same damage, so they stop at the first one.
        """
        damaged: dict[int, DamagedError] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                state = self.restore(abstract, step)
            except DamagedError as error:
                if hosts.is_multihost():
                    raise CheckpointError(
                        f"{error}\nRemove it and start all processes again: they resume from the"
                        " checkpoint before it."
                    ) from error
                damaged[step] = error
                continue
            messages = [
                f"{error}.  It is now in {self._move_away(bad)}" for bad, error in damaged.items()
            ]
            return state, messages
        lines = [f"no checkpoint of {self.folder} is whole:"]
        lines += [f"  {error}" for error in damaged.values()]
        lines.append(
            f"Nothing was changed.  Bring one back from a copy, or remove {self.folder.parent} to"
            " begin this stage again."
        )
        raise CheckpointError("\n".join(lines))

    def _move_away(self, step: int) -> Path:
        """Its new place; the step will be reached and saved again."""
        aside = self.folder.with_name(f"damaged_checkpoint_{step}")
        shutil.rmtree(aside, ignore_errors=True)
        (self.folder / str(step)).rename(aside)
        self._manager.reload()
        return aside

    def _failed(self, error: Exception) -> InstructError:
        explained = hosts.explained(error)
        if explained is not None:
            return explained  # all processes write, and wait for each other
        self._manager.reload()
        latest = self.latest()
        if latest is None:
            good = "There is none before it"
        else:
            good = f"The last good checkpoint is step {latest}"
        return CheckpointError(
            f"cannot save a checkpoint in {self.folder}: {str(error)[:300]}\n"
            f"{good}.  Make room on the disk and run the same command again to resume from there."
        )


def restore_params(
    folder: Path,
    abstract: Params,
    *,
    part: str = "params",
    step: int | None = None,
    fingerprints: Mapping[str, str] | None = None,
) -> Params:
    """Only the parameters of a finished stage, laid out as `abstract`.

    `part` is their place in the state: "params", "ema", "params/policy", ...  `step` is the newest
    one unless given.
    """
    if not folder.is_dir():
        raise CheckpointError(
            f"there is no checkpoint folder {folder}: run the stage that makes it first, or again"
            f" with --redo {folder.parent.name} where it is done"
        )
    names = part.split("/")
    for name in reversed(names):
        abstract = {name: abstract}
    with _manager(folder, create=False) as manager:
        try:
            restored = _restore(manager, folder, abstract, fingerprints or {}, step, partial=True)
        except DamagedError as error:
            raise CheckpointError(
                f"{error}\nBring it back from a copy, or remove {folder.parent} to run that stage"
                " again."
            ) from error
    for name in names:
        restored = restored[name]
    return restored


def saved_fingerprints(folder: Path) -> dict[str, str]:
    """What travels with the newest checkpoint; {} where there is none.

    Reads one small file and touches no device.
    """
    notes = _notes(folder, None)
    return {name: value for name, value in notes.items() if name != "digests"}


def saved_digests(folder: Path, *, part: str = "params", step: int | None = None) -> dict[str, int]:
    """The checksums of the arrays of a part (see `restore_params`), as they were saved."""
    beginning = part.replace("/", ".") + "."
    digests = _notes(folder, step).get("digests", {})
    return {name: value for name, value in digests.items() if name.startswith(beginning)}


def _notes(folder: Path, step: int | None) -> dict[str, Any]:
    """The notes of a checkpoint, of the newest one unless `step` is given; {} where it is not
    there.
    """
    by_step = {}
    for path in folder.glob("*/_CHECKPOINT_METADATA"):
        if path.parent.name.isdigit():
            by_step[int(path.parent.name)] = path
    path = by_step.get(max(by_step, default=0) if step is None else step)
    if path is None:
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))["custom_metadata"] or {})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedError(str(path.parent), error) from error


def kept_steps(folder: Path) -> list[int]:
    """The steps of a finished stage whose checkpoints are there, ascending."""
    with _manager(folder, create=False) as manager:
        return sorted(manager.all_steps())


class _Manager(ocp.CheckpointManager):
    def reached_preemption(self, step: int) -> bool:
        """Never: the loop asks jax itself.

        The processes agree on a number of calls to jax, and calls from a background thread of orbax
        would be counted among them.
        """
        return False


def _manager(folder: Path, **options: Any) -> ocp.CheckpointManager:
    registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
    registry.add("state", ocp.args.PyTreeSave)
    registry.add("state", ocp.args.PyTreeRestore)
    return _Manager(
        folder.absolute(),
        # lightweight: nothing is read yet, so a damaged checkpoint is not in the way of the others
        options=ocp.CheckpointManagerOptions(lightweight_initialize=True, **options),
        handler_registry=registry,
    )


def _restore(
    manager: ocp.CheckpointManager,
    folder: Path,
    abstract: Any,
    fingerprints: Mapping[str, str],
    step: int | None,
    *,
    partial: bool,
) -> Any:
    step = manager.latest_step() if step is None else step
    if step not in manager.all_steps():
        raise CheckpointError(
            f"{folder} has no checkpoint of step {step}; there are {sorted(manager.all_steps())}"
        )
    place = f"{folder}/{step}"
    try:
        metadata: Any = manager.metadata(step)
        saved = _types(metadata.item_metadata["state"].tree)
        notes = dict(metadata.custom_metadata)
    except Exception as error:
        raise DamagedError(place, error) from error
    _check_fingerprints(place, notes, fingerprints)
    _check_types(place, saved, _types(abstract), partial)
    try:
        arguments = ocp.checkpoint_utils.construct_restore_args(abstract)
        request = ocp.args.PyTreeRestore(abstract, restore_args=arguments, partial_restore=partial)
        restored = manager.restore(step, args=ocp.args.Composite(state=request))["state"]
    except Exception as error:
        raise DamagedError(place, error) from error
    _check_digests(place, notes.get("digests", {}), digests(restored))
    return restored


def _types(tree: Any) -> Types:
    return {name: (tuple(leaf.shape), str(leaf.dtype)) for name, leaf in named_leaves(tree).items()}


def _check_fingerprints(place: str, saved: Mapping[str, str], now: Mapping[str, str]) -> None:
    for key, value in now.items():
        if saved.get(key) != value:
            raise CheckpointError(
                f"{place} was made with another {key}: {saved.get(key)} there, {value} now.  Use"
                f" the same {key}, or start a new run folder."
            )


def _check_types(place: str, saved: Types, now: Types, partial: bool) -> None:
    compared = now.keys() if partial else now.keys() | saved.keys()
    for name in sorted(compared):
        there, here = saved.get(name, "nothing"), now.get(name, "nothing")
        if there != here:
            raise CheckpointError(
                f"{place}: {name} is {_show(there)} in the checkpoint but {_show(here)} here.  "
                "Use the model and optimizer config of that run, or start a new run folder."
            )


def _check_digests(place: str, saved: Mapping[str, int], now: Mapping[str, int]) -> None:
    if not saved:
        raise DamagedError(
            place, "it has no digests of its arrays, so nobody can tell whether they are whole"
        )
    wrong = [name for name in sorted(now) if saved.get(name) != now[name]]
    if not wrong:
        return
    more = f" and {len(wrong) - 1} more arrays" if len(wrong) > 1 else ""
    raise DamagedError(place, f"{wrong[0]}{more} is not what was saved")


def _show(leaf: Any) -> str:
    return leaf if isinstance(leaf, str) else f"{leaf[1]}{list(leaf[0])}"
