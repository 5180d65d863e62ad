"""The run folder, and the folders of its stages.

It says what it was made from, results in it are never overwritten, and the same command on it
resumes where it stopped.
"""

import contextlib
import datetime
import fcntl
import hashlib
import importlib.metadata
import io
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from instruct_jax.errors import InstructError, RunError
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
SHOWN_CHANGES = 3  # of the inputs of a stage, in a message


def require_local(path: str | Path, key: str) -> None:
    """RunError where the path is an address such as gs://bucket/run, which nothing here can write.

    Path() makes a local folder called "gs:" of it, so call this before anything is written.
    """
    address = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):/+", str(path))
    if address is None:
        return
    rest = str(path)[address.end() :]
    raise RunError(
        f"{key}={address[1]}://{rest} is no folder on this machine, and only those can be written"
        " to: give a local path; to write to a bucket, mount it and give the folder where it is"
        " mounted"
    )


def check_run(folder: Path) -> bool:
    """Whether the folder holds a run already; RunError where it cannot be a run folder.

    Writes nothing.  What the run there was made from is the business of its stages (`stage_done`).
    """
    require_local(folder, "out")
    try:
        exists = folder.exists()
    except OSError as error:
        raise RunError(
            f"{str(folder)[:60]} cannot be a run folder ({error.strerror}): choose another folder"
        ) from error
    if not exists:
        _require_writable_parent(folder)
        return False
    if not folder.is_dir():
        raise RunError(f"{folder} is a file, so it cannot be a run folder: choose another folder")
    is_run = (folder / "config.yaml").exists()
    if not is_run:
        _require_empty(folder)
    if not os.access(folder, os.W_OK):
        raise RunError(
            f"{folder} is read-only for this user: let it be written to, or continue with a copy"
            " of it"
        )
    return is_run


def _require_writable_parent(folder: Path) -> None:
    parent = folder.absolute()
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise RunError(
            f"{folder} cannot be made, {parent} is no folder that you may write to: choose another"
            " folder"
        )


def _require_empty(folder: Path) -> None:
    """A run that was killed while its folder was made may have left these files."""
    for entry in folder.iterdir():
        if entry.name.removesuffix(".partial") not in ("run.json", "config.yaml"):
            raise RunError(
                f"{folder} is not empty and has no config.yaml, so it is not a run folder: choose"
                " another folder"
            )


def open_run(folder: Path, config: Mapping[str, Any]) -> bool:
    """Makes the folder, or opens the one of an earlier start; returns whether there was one.

    run.json tells of the first start; config.yaml is that of the newest one.
    """
    resumed = check_run(folder)
    if not resumed:
        folder.mkdir(parents=True, exist_ok=True)
        first_start = {
            "command": sys.argv,
            "started": _now(),
            "folder": str(Path.cwd()),
            "python": platform.python_version(),
            "commit": _commit(),
            "versions": _versions(),
        }
        write_atomic(folder / "run.json", json.dumps(first_start, indent=2) + "\n")
    # last: a folder with a config is a complete run folder
    write_atomic(folder / "config.yaml", yaml.safe_dump(dict(config), sort_keys=False))
    return resumed


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Makes the folder of a run, and keeps it for this command; RunError where another one works
    in it.  The lock ends with the process, however that ends.
    """
    if not is_main():
        yield
        return
    check_run(folder)
    folder.mkdir(parents=True, exist_ok=True)
    opened = os.open(folder, os.O_RDONLY)
    try:
        _lock(opened, folder)
        yield
    finally:
        os.close(opened)


def _lock(opened: int, folder: Path) -> None:
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RunError(
            f"{folder} is in use: another command runs there.  Wait until it is done, stop it, or"
            " choose another folder"
        ) from None
    except OSError as error:  # some network file systems have no locks
        print(
            f"{folder} cannot be locked ({error.strerror}): let no other command run there",
            file=sys.stderr,
        )


@contextlib.contextmanager
def as_started(folder: Path) -> Iterator[None]:
    """Makes an error about a run say where it was started, if that is elsewhere: files and models
    in its config are called as they are from there.
    """
    try:
        yield
    except InstructError as error:
        about = folder / "run.json"
        started = read_note(about).get("folder") if about.exists() else None
        if started in (None, str(Path.cwd())):
            raise
        raise RunError(
            f"{error}\n{folder} was started in {started}, and what its config names is called as"
            " it is from there: give this command there"
        ) from error


def read_config(path: Path) -> dict[str, Any]:
    """The config.yaml of a run folder; RunError where it cannot be read."""
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
    """done.json or inputs.json of a stage; RunError where it is damaged."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        problem = " ".join(str(error).split())[:200]
        raise RunError(
            f"{path} is damaged ({problem}): restore it from a copy, or remove {path.parent} to"
            " make that stage again"
        ) from error


def stage_done(folder: Path, inputs: Mapping[str, Any]) -> dict[str, Any] | None:
    """What `finish_stage` wrote, or None where the stage is not finished.

    inputs: what the stage would be made from now, by name, such as {"settings.epochs": 4,
    "data.demonstrations": "sha256:..."}; any values that JSON can hold.  RunError where it was
    made, or begun, from something else.
    """
    path, begun = folder / "done.json", folder / "inputs.json"
    if not path.exists():
        if begun.exists():
            _check_inputs(folder, read_note(begun), inputs)
        return None
    done = read_note(path)
    _check_inputs(folder, done.get("inputs", {}), inputs)
    return done


def begin_stage(folder: Path, inputs: Mapping[str, Any]) -> None:
    """Makes the folder of a stage and notes what it is made from (see `stage_done`).

    RunError where it was begun from something else.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "inputs.json"
    if path.exists():
        _check_inputs(folder, read_note(path), inputs)
    else:
        write_atomic(path, json.dumps(dict(inputs), indent=2) + "\n")


def finish_stage(
    folder: Path,
    inputs: Mapping[str, Any],
    *,
    kind: str,
    output: Any,
    left: Mapping[str, int],
    seconds: float,
    memory: Mapping[str, float],
) -> None:
    """Marks a stage as finished: done.json, with what it was made from (see `stage_done`), the
    checksums of what it left, and the memory that was used (`metrics.peak_memory`).
    """
    done = {
        "kind": kind,
        "finished": _now(),
        "seconds": round(seconds, 3),
        **memory,
        "inputs": dict(inputs),
        "left": dict(left),
        "output": output,
    }
    write_atomic(folder / "done.json", json.dumps(done, indent=2) + "\n")


def _check_inputs(folder: Path, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    changed = []
    for key in [*then, *(key for key in now if key not in then)]:
        old, new = _as_json(then, key), _as_json(now, key)
        if _meaning(old) != _meaning(new):
            changed.append(f"  {key}: {_short(old)} then, {_short(new)} now")
    if not changed:
        return
    lines = changed[:SHOWN_CHANGES]
    if len(changed) > SHOWN_CHANGES:
        lines.append(f"  ... and {len(changed) - SHOWN_CHANGES} more")
    stage = folder.name
    raise RunError(
        "\n".join([f"the stage {stage} in {folder.parent} was made from something else:", *lines])
        + f"\nGive the changed stage another name, make it again with --redo {stage} (which also"
        " makes again what was made from it), or choose another out."
    )


def _meaning(value: str) -> str:
    """A value as it is compared: of records, their hash without the names of their files."""
    files, colon, digest = value.rpartition("sha256:")
    return digest if colon else files + digest


def _as_json(inputs: Mapping[str, Any], key: str) -> str:
    """The value as it is written into the note, so that a tuple equals the list read back."""
    return json.dumps(inputs[key], sort_keys=True) if key in inputs else "absent"


def _short(value: str) -> str:
    """At most 100 characters, and 12 of each hash."""
    value = re.sub(r"\b([0-9a-f]{12})[0-9a-f]{20,}\b", r"\1", value)
    return value if len(value) <= 100 else value[:97] + "..."


def file_hash(path: Path) -> str:
    """SHA-256 of a file, "sha256:..."."""
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Makes an OSError of write() say which file it is about, as that of open() does."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def write_atomic(path: Path, text: str) -> None:
    """Writes all of the text or nothing, so that nobody ever reads half a file.

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
    """Adds one line of JSON to a file."""
    with writing(path), path.open("ab", buffering=0) as file:
        write_row(file, row)


def write_row(file: io.FileIO, row: Mapping[str, Any]) -> None:
    """Writes one line of JSON into an unbuffered file.

    A buffer would be written, and fail, a second time when the file is closed.
    """
    line = json.dumps(row, allow_nan=False).encode() + b"\n"
    while line:
        line = line[file.write(line) :]


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _commit() -> str | None:
    """The commit of the code that runs, with "-dirty" where it was edited since.

    None outside a repository.
    """
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    here = Path(__file__).parent
    try:
        done = subprocess.run(describe, cwd=here, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _versions() -> dict[str, str]:
    installed = {}
    for package in PACKAGES:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed
