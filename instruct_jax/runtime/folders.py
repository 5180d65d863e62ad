"""The run folder: it explains itself, is never overwritten, and the same command on it goes on
where it stopped.
"""

import contextlib
import datetime
import hashlib
import importlib.metadata
import io
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from instruct_jax.errors import RunError
from instruct_jax.runtime.hosts import is_main

PACKAGES = (
    "instruct-jax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "transformers",
    "datasets",
    "chex",
    "numpy",
)


def check_run(folder: Path, config: Mapping[str, Any]) -> bool:
    """True = a run with this config goes on in the folder, False = it can begin there; RunError for
    neither.  Writes nothing.

    Place, mesh and saving may change from session to session: they do not change what is computed.
    """
    try:
        there = folder.exists()
    except OSError as error:
        raise RunError(
            f"{str(folder)[:60]} cannot be a run folder ({error.strerror}): choose another folder"
        ) from error
    if there and not folder.is_dir():
        raise RunError(f"{folder} is a file, so it cannot be a run folder: choose another folder")
    path = folder / "config.yaml"
    if path.exists():
        _check_config(path, read_config(path), yaml.safe_load(yaml.safe_dump(dict(config))))
        if not os.access(folder, os.W_OK):
            raise RunError(
                f"{folder} is read-only for this user: let it be written to, or go on with a copy"
                " of it"
            )
        return True
    if there and any(
        entry.name.removesuffix(".partial") not in ("run.json", "config.yaml")
        for entry in folder.iterdir()
    ):
        raise RunError(
            f"{folder} is not empty and has no config.yaml, so it is not a run folder: choose"
            " another folder"
        )
    home = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not home.is_dir() or not os.access(home, os.W_OK):
        raise RunError(
            f"{folder} cannot be made, {home} is no folder that you may write to: choose another"
            " folder"
        )
    return False


def open_run(folder: Path, config: Mapping[str, Any]) -> bool:
    """Makes the folder with config.yaml and run.json, or checks that an existing one has the same
    config.  True = it goes on.
    """
    if check_run(folder, config):
        return True
    folder.mkdir(parents=True, exist_ok=True)
    about = {
        "command": sys.argv,
        "started": _now(),
        "python": platform.python_version(),
        "commit": _commit(),
    }
    write_atomic(
        folder / "run.json", json.dumps(about | {"versions": _versions()}, indent=2) + "\n"
    )
    text = yaml.safe_dump(dict(config), sort_keys=False)
    # last: a folder with a config is a complete run folder
    write_atomic(folder / "config.yaml", text)
    return False


def link_stages(folder: Path, start: Path, stages: Sequence[str]) -> None:
    """Links finished stages of another run (check_start) into a run folder; what is there already
    stays.
    """
    for stage in stages:
        if not (folder / stage).exists():
            (folder / stage).symlink_to((start / stage).resolve(), target_is_directory=True)


def check_start(
    start: Path, stages: Sequence[str], config: Mapping[str, Any], same: Sequence[str]
) -> None:
    """RunError unless the run folder `start` has finished the stages, with the same values as
    `config` in the sections `same`.
    """
    for stage in stages:
        if not os.path.exists(start / stage / "done.json"):
            raise RunError(
                f"start.folder={start} has not finished the stage {stage}; run it there, or take"
                f" {stage} out of start.stages"
            )
    there, here = read_config(start / "config.yaml"), yaml.safe_load(yaml.safe_dump(dict(config)))
    if changed := _differences(
        {key: there.get(key) for key in same}, {key: here.get(key) for key in same}
    ):
        key, old, new = changed[0]
        raise RunError(
            f"start.folder={start} was run with {key}: {old}, and here it is {new}; make them"
            " equal, or start from another run"
        )


def read_config(path: Path) -> dict[str, Any]:
    """The config of another session or run."""
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        problem = " ".join(str(error).split())[:200]
        raise RunError(
            f"{path} cannot be read ({problem}): restore it, or choose another run folder"
        ) from error
    if not isinstance(config, dict):
        raise RunError(
            f"{path} is not the config of a run: restore it, or choose another run folder"
        )
    return config


def read_note(path: Path) -> dict[str, Any]:
    """done.json or inputs.json of a stage."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        problem = " ".join(str(error).split())[:200]
        raise RunError(
            f"{path} is damaged ({problem}): restore it from a copy, or remove {path.parent} to"
            " make that stage again"
        ) from error


def stage_done(folder: Path, inputs: Mapping[str, str]) -> dict[str, Any] | None:
    """What `finish_stage` wrote, or None where the stage is not finished; RunError where it was
    made from other inputs.
    """
    path = folder / "done.json"
    if not path.exists():
        return None
    done = read_note(path)
    _check_inputs(path, done["inputs"], inputs)
    return done


def begin_stage(folder: Path, inputs: Mapping[str, str]) -> None:
    """Makes the folder of a stage and notes what it is made from; RunError where it was begun from
    other inputs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "inputs.json"
    if path.exists():
        _check_inputs(path, read_note(path), inputs)
    else:
        write_atomic(path, json.dumps(dict(inputs), indent=2) + "\n")


def _check_inputs(path: Path, there: Mapping[str, str], here: Mapping[str, str]) -> None:
    if changed := _differences(dict(there), dict(here)):
        key, old, new = changed[0]
        raise RunError(
            f"{path}: the input {key} changed, {old} then, {new} now.  Remove {path.parent} to make"
            " it again, or start a new run."
        )


def finish_stage(folder: Path, inputs: Mapping[str, str], *, output: Any, seconds: float) -> None:
    """Marks a stage as finished; inputs are the hashes of all that it was made from."""
    done = {
        "finished": _now(),
        "seconds": round(seconds, 3),
        "inputs": dict(inputs),
        "output": output,
    }
    write_atomic(folder / "done.json", json.dumps(done, indent=2) + "\n")


def file_hash(path: Path) -> str:
    """SHA-256 of a file, "sha256:..."."""
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """An OSError of write() says which file it is about, as that of open() does."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def write_atomic(path: Path, text: str) -> None:
    """Writes all of the text or nothing: a reader, or the next run, never sees half a file.

    Of several processes, the first one writes.
    """
    if not is_main():
        return
    partial = path.with_name(path.name + ".partial")
    with writing(path), partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """One line of JSON more, in one write."""
    with writing(path), path.open("ab", buffering=0) as file:
        write_row(file, row)


def write_row(file: io.FileIO, row: Mapping[str, Any]) -> None:
    """One line of JSON, without a buffer that would be written, and fail, a second time when the
    file is closed.
    """
    line = json.dumps(row, allow_nan=False).encode() + b"\n"
    while line:
        line = line[file.write(line) :]


def _check_config(path: Path, there: Any, here: Any) -> None:
    if changed := [
        change
        for change in _differences(there, here)
        if not re.fullmatch(r"out|mesh\..*|.*\.save_every", change[0])
    ]:
        lines = [f"  {key}: {old} there, {new} now" for key, old, new in changed[:3]]
        more = [f"  ... and {len(changed) - 3} more"] if len(changed) > 3 else []
        raise RunError(
            "\n".join([f"{path} belongs to a run with another config:", *lines, *more])
            + "\nSet the keys back to go on with that run, or choose another run folder."
        )


def _differences(there: Any, here: Any) -> list[tuple[str, str, str]]:
    """(dotted key, value there, value here) of all that differs, in the order of the config."""
    old, new = _flat(there), _flat(here)
    keys = [*old, *(key for key in new if key not in old)]
    shown = [
        (
            key,
            json.dumps(old[key]) if key in old else "absent",
            json.dumps(new[key]) if key in new else "absent",
        )
        for key in keys
    ]
    return [(key, a, b) for key, a, b in shown if a != b]


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict) or not tree:
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _commit() -> str | None:
    """The commit of the code that runs, "-dirty" where it was edited since; None outside a
    repository.
    """
    describe = [
        "git",
        "-C",
        str(Path(__file__).parent),
        "describe",
        "--always",
        "--dirty",
        "--abbrev=40",
        "--exclude=*",
    ]
    try:
        return subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _versions() -> dict[str, str]:
    installed = {}
    for package in PACKAGES:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed
