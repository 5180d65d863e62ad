"""The store of the labeling page, one SQLite file (schema.sql), as plain functions of a connection.

An answer is on the disk before its page says so: WAL, and one short transaction with
synchronous=FULL for each answer.  Several processes may have the store open, each thread with a
connection of its own.
"""

import contextlib
import dataclasses
import json
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from instruct_jax.data.schemas import Prompt
from instruct_jax.errors import DataError
from instruct_jax.feedback.tasks import Flags, Kind, LabelTask, Reply, takes_part

Group = Literal["training", "held-out"]  # held-out labelers make no training data (paper 3.4)

VERSION = 1  # of the schema
APPLICATION = 0x494A4C42  # "IJLB", in the header of the file
BUSY = 30.0  # seconds that a transaction waits for one of another process
SKIPS = 3  # a task that so many labelers skipped is given to nobody else
EVERYBODY = 10**9  # labelers wanted for a screening task
# the threads of one process queue here: SQLite's own waiting is a sleep, and unfair
WRITER = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Answer:
    """One labeler's answer to one task.

    Lists have an entry for each completion, in the order of the sample.
    """

    task_id: str
    kind: Kind
    labeler: str
    held_out: bool  # the labeler is of the held-out group
    prompt: Prompt
    completions: list[str]
    models: list[str | None]
    ranks: list[int] | None  # dense from 1, the best; None for a demonstration or a skip
    likert: list[int | None]  # 1 worst to 7 best; [] for a demonstration or a skip
    flags: list[Flags]
    notes: list[str]
    text: str | None  # the demonstration
    skipped: str | None  # the reason
    seconds: float  # spent on it
    submitted: float  # unix seconds
    instructions: int  # version that the labeler had
    known: dict[str, Any] | None  # screening: the researchers' ranks and flags


@dataclasses.dataclass(frozen=True)
class Lease:
    """A task that was given to a labeler."""

    task: LabelTask
    opened: float  # unix seconds
    until: float
    instructions: int  # version that the labeler saw last


def create_store(path: str | Path) -> sqlite3.Connection:
    """Opens the store, and makes it where there is none."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).touch(mode=0o600)  # it holds the key of the sessions
    connection = _connect(path)
    with writing(connection):
        if connection.execute("SELECT 1 FROM sqlite_master").fetchone() is None:
            _fill(connection)
    connection.close()
    return open_store(path)


def _fill(connection: sqlite3.Connection) -> None:
    """Makes the tables of a new store, its secret and the first version of the instructions."""
    for statement in _packaged("schema.sql").split(";\n"):
        connection.execute(statement)
    connection.execute(f"PRAGMA application_id = {APPLICATION}")
    connection.execute(f"PRAGMA user_version = {VERSION}")
    secret = secrets.token_urlsafe(32)
    connection.execute("INSERT INTO settings VALUES ('secret', ?)", (secret,))
    connection.execute(
        "INSERT INTO instructions VALUES (1, ?, ?, NULL)",
        (_packaged("pages/instructions.md"), time.time()),
    )


def _packaged(name: str) -> str:
    """The text of a file that comes with the package."""
    return files("instruct_jax.feedback").joinpath(name).read_text(encoding="utf-8")


def open_store(path: str | Path) -> sqlite3.Connection:
    """A connection to a store that exists, for one thread; DataError where there is none."""
    if not Path(path).is_file():
        raise DataError(
            f"{path}: no such store; make one with instruct-jax label --samples samples.jsonl"
            f" --store {path}"
        )
    connection = _connect(path)
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if (application, version) != (APPLICATION, VERSION):
        connection.close()
        raise DataError(
            f"{path}: is no store of the labeling page, or one of another version; give the file"
            " that --store made"
        )
    return connection


def _connect(path: str | Path) -> sqlite3.Connection:
    connection = None
    try:
        connection = sqlite3.connect(
            path, timeout=BUSY, isolation_level=None, check_same_thread=False
        )
        for pragma in ("journal_mode = WAL", "foreign_keys = ON"):
            connection.execute(f"PRAGMA {pragma}")
    except sqlite3.DatabaseError as error:
        if connection is not None:
            connection.close()
        raise DataError(
            f"{path}: cannot be opened as a store ({error}); correct the path or its permissions"
        ) from error
    connection.row_factory = sqlite3.Row
    return connection


@contextlib.contextmanager
def writing(connection: sqlite3.Connection, *, synced: bool = True) -> Iterator[None]:
    """One transaction: all of it is kept at the end, or nothing is.

    It survives a loss of power at once if `synced`, else only after the next synced transaction; it
    survives a killed process in any case.
    """
    with WRITER:
        connection.execute(f"PRAGMA synchronous = {'FULL' if synced else 'NORMAL'}")
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")


def setting(connection: sqlite3.Connection, name: str) -> str | None:
    """A setting of the store; None where it was never set."""
    row = connection.execute("SELECT value FROM settings WHERE name = ?", (name,)).fetchone()
    return None if row is None else row["value"]


def set_setting(connection: sqlite3.Connection, name: str, value: str) -> None:
    """Sets a setting of the store."""
    with writing(connection):
        connection.execute(
            "INSERT INTO settings VALUES (?, ?) ON CONFLICT DO UPDATE SET value = excluded.value",
            (name, value),
        )


def add_tasks(
    connection: sqlite3.Connection,
    tasks: Iterable[LabelTask],
    *,
    labelers: int = 1,
    overlap: float = 0.0,
) -> int:
    """Adds the tasks that the store does not have yet, all or none; returns their number.

    The share `overlap` of them is given to so many `labelers`, the others to one.  Screening tasks
    are given to everybody.
    """
    before = connection.total_changes
    with writing(connection):
        for task in tasks:
            screening = task.known is not None
            wanted = 1
            if screening:
                wanted = EVERYBODY
            elif takes_part(task.id, overlap):
                wanted = labelers
            row = {
                "id": task.id,
                "kind": task.kind,
                "prompt": _to_json(task.prompt),
                "completions": _to_json(task.completions),
                "models": _to_json(task.models),
                "known": _to_json(task.known),
                "extra": _to_json(task.extra),
                "screening": screening,
                "left_training": wanted,
                "left_held_out": wanted,
            }
            _insert(connection, "INSERT OR IGNORE INTO tasks", row)
    return connection.total_changes - before


def _insert(connection: sqlite3.Connection, into: str, row: dict[str, Any]) -> None:
    columns = ", ".join(row)
    places = ", ".join(f":{column}" for column in row)
    connection.execute(f"{into} ({columns}) VALUES ({places})", row)


def lease(connection: sqlite3.Connection, labeler: str, now: float, seconds: float) -> str | None:
    """The id of the task that the labeler should do, or None where nothing is left for them.

    It is the task that they have already, else the first that wants an answer, which is then theirs
    for so many seconds.  A lease that is lost with the power costs nothing: its task is given
    again, and the browser has the draft.
    """
    row = connection.execute("SELECT team FROM labelers WHERE name = ?", (labeler,)).fetchone()
    team = row["team"]
    with writing(connection, synced=False):
        mine = connection.execute(
            "SELECT task FROM leases WHERE labeler = ? AND until > ? ORDER BY opened",
            (labeler, now),
        ).fetchone()
        if mine is not None:
            return mine["task"]
        left = {"training": "left_training", "held-out": "left_held_out"}[team]
        found = connection.execute(
            f"SELECT id FROM tasks WHERE {left} > 0 AND (screening OR skips < {SKIPS})"
            " AND NOT EXISTS (SELECT 1 FROM answers WHERE task = tasks.id AND labeler = :labeler)"
            f" AND {left} > (SELECT count(*) FROM leases JOIN labelers ON name = labeler"
            " WHERE task = tasks.id AND until > :now AND team = :team)"
            " ORDER BY screening DESC, position LIMIT 1",
            {"labeler": labeler, "now": now, "team": team},
        ).fetchone()
        if found is not None:
            _hold(connection, found["id"], labeler, now, seconds)
    return None if found is None else found["id"]


def _hold(
    connection: sqlite3.Connection,
    task: str,
    labeler: str,
    now: float,
    seconds: float,
) -> None:
    connection.execute(
        "INSERT INTO leases VALUES (?, ?, ?, ?, (SELECT max(version) FROM instructions))"
        " ON CONFLICT DO UPDATE SET until = excluded.until, instructions = excluded.instructions",
        (task, labeler, now, now + seconds),
    )


def open_lease(connection: sqlite3.Connection, task: str, labeler: str) -> Lease | None:
    """The lease of a task that the labeler was given and has not answered.

    It may have lapsed: work is not thrown away because it took long.
    """
    row = connection.execute(
        "SELECT tasks.*, opened, until, instructions FROM leases JOIN tasks ON id = task WHERE task"
        " = ? AND labeler = ?",
        (task, labeler),
    ).fetchone()
    if row is None:
        return None
    return Lease(_task(row), row["opened"], row["until"], row["instructions"])


def renew(
    connection: sqlite3.Connection,
    task: str,
    labeler: str,
    now: float,
    seconds: float,
) -> None:
    """Extends the lease, under the newest instructions."""
    with writing(connection, synced=False):
        _hold(connection, task, labeler, now, seconds)


def submit(
    connection: sqlite3.Connection,
    task: str,
    labeler: str,
    form: str,
    reply: Reply,
    *,
    shown: list[int],
    seconds: float,
    now: float,
) -> bool:
    """Stores the reply to a leased task.

    `form` is the identity of the form that was sent, `shown` the completions in the order in which
    they were shown.  True: it is stored, by this call or by an earlier one with the same form.
    False: another answer of this labeler is there, and stays.
    """
    with writing(connection):
        stored = connection.execute(
            "SELECT form FROM answers WHERE task = ? AND labeler = ?", (task, labeler)
        ).fetchone()
        if stored is not None:
            return stored["form"] == form
        lease = connection.execute(
            "SELECT instructions FROM leases WHERE task = ? AND labeler = ?", (task, labeler)
        ).fetchone()
        if lease is None:
            raise LookupError(f"task {task} was never given to {labeler}")
        row = {
            "task": task,
            "labeler": labeler,
            "form": form,
            "ranks": _to_json(reply.ranks),
            "likert": _to_json(reply.likert),
            "flags": _to_json(reply.flags),
            "notes": _to_json(reply.notes),
            "text": reply.text,
            "skipped": reply.skipped,
            "shown": _to_json(shown),
            "seconds": seconds,
            "submitted": now,
            "instructions": lease["instructions"],
        }
        _insert(connection, "INSERT INTO answers", row)
        connection.execute("DELETE FROM leases WHERE task = ? AND labeler = ?", (task, labeler))
        if reply.skipped is not None:
            connection.execute("UPDATE tasks SET skips = skips + 1 WHERE id = ?", (task,))
        else:
            team = "(SELECT team FROM labelers WHERE name = ?)"
            connection.execute(
                f"UPDATE tasks SET left_training = left_training - ({team} = 'training'),"
                f" left_held_out = left_held_out - ({team} = 'held-out') WHERE id = ?",
                (labeler, labeler, task),
            )
    return True


def count(connection: sqlite3.Connection, labeler: str) -> int:
    """How many answers a labeler gave."""
    return connection.execute(
        "SELECT count(*) FROM answers WHERE labeler = ?", (labeler,)
    ).fetchone()[0]


def form_of(connection: sqlite3.Connection, task: str, labeler: str) -> str | None:
    """The identity of the form of this answer; None where there is no answer."""
    row = connection.execute(
        "SELECT form FROM answers WHERE task = ? AND labeler = ?", (task, labeler)
    ).fetchone()
    return None if row is None else row["form"]


def answers(
    connection: sqlite3.Connection,
    *,
    labeler: str | None = None,
    task: str | None = None,
    last: int | None = None,
    before: int = 0,
) -> list[Answer]:
    """The answers in the order in which they came: all, or those of a labeler or to a task.

    With `last`, only the last so many of these, without the newest `before`.
    """
    conditions = ["TRUE"]
    values = []
    if labeler is not None:
        conditions.append("labeler = ?")
        values.append(labeler)
    if task is not None:
        conditions.append("task = ?")
        values.append(task)
    rows = connection.execute(
        "SELECT answers.*, kind, prompt, completions, models, known, team FROM answers JOIN tasks"
        f" ON id = task JOIN labelers ON name = labeler WHERE {' AND '.join(conditions)}"
        " ORDER BY number DESC LIMIT ? OFFSET ?",
        (*values, -1 if last is None else last, before),
    )
    newest_first = [_answer(row) for row in rows]
    return newest_first[::-1]


def tasks(connection: sqlite3.Connection) -> dict[str, LabelTask]:
    """All tasks by their id."""
    rows = connection.execute("SELECT * FROM tasks ORDER BY position")
    return {row["id"]: _task(row) for row in rows}


def _task(row: sqlite3.Row) -> LabelTask:
    return LabelTask(
        id=row["id"],
        kind=row["kind"],
        prompt=_from_json(row["prompt"]),
        completions=_from_json(row["completions"]),
        models=_from_json(row["models"]),
        known=_from_json(row["known"]),
        extra=_from_json(row["extra"]),
    )


def _answer(row: sqlite3.Row) -> Answer:
    return Answer(
        task_id=row["task"],
        kind=row["kind"],
        labeler=row["labeler"],
        held_out=row["team"] == "held-out",
        prompt=_from_json(row["prompt"]),
        completions=_from_json(row["completions"]),
        models=_from_json(row["models"]),
        ranks=_from_json(row["ranks"]),
        likert=_from_json(row["likert"]),
        flags=_from_json(row["flags"]),
        notes=_from_json(row["notes"]),
        text=row["text"],
        skipped=row["skipped"],
        seconds=row["seconds"],
        submitted=row["submitted"],
        instructions=row["instructions"],
        known=_from_json(row["known"]),
    )


def _to_json(value: Any) -> str | None:
    return None if value is None else json.dumps(value, ensure_ascii=False)


def _from_json(text: str | None) -> Any:
    return None if text is None else json.loads(text)
