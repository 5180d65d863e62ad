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

from instruct_jax.errors import DataError
from instruct_jax.feedback.tasks import Flags, Kind, Prompt, Reply, Task, takes_part

Group = Literal["training", "held-out"]  # held-out labelers make no training data (paper 3.4)

VERSION = 1  # of the schema
APPLICATION = 0x494A4C42  # "IJLB", in the header of the file
BUSY = 30.0  # seconds that a transaction waits for one of another process
SKIPS = 3  # so many labelers skip a task before it is asked no more
EVERYBODY = 10**9  # labelers wanted for a screening task
# the threads of one process queue here: SQLite's own waiting is a sleep, and unfair
WRITER = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Answer:
    """One labeler's answer to one task; lists have an entry for each completion, in the order of
    the sample.
    """

    task_id: str
    kind: Kind
    labeler: str
    held_out: bool  # the labeler is of the held-out group
    prompt: Prompt
    completions: list[str]
    models: list[str | None]
    ranks: list[int] | None  # dense from 1, the best; None of a demonstration or a skip
    likert: list[int | None]  # 1 worst to 7 best; [] of a demonstration or a skip
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
    """A task in the hands of a labeler."""

    task: Task
    opened: float  # unix seconds
    until: float
    instructions: int  # version that the labeler saw last


def create_store(path: str | Path) -> sqlite3.Connection:
    """The store; a new one where nothing is there."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).touch(mode=0o600)  # it holds the key of the sessions
    connection = _connect(path)
    with writing(connection):
        if connection.execute("SELECT 1 FROM sqlite_master").fetchone() is None:
            for statement in _text("schema.sql").split(";\n"):
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION}")
            connection.execute(f"PRAGMA user_version = {VERSION}")
            connection.execute(
                "INSERT INTO settings VALUES ('secret', ?)", (secrets.token_urlsafe(32),)
            )
            connection.execute(
                "INSERT INTO instructions VALUES (1, ?, ?, NULL)",
                (_text("pages/instructions.md"), time.time()),
            )
    connection.close()
    return open_store(path)


def _text(name: str) -> str:
    """A file that comes with the package."""
    return files("instruct_jax.feedback").joinpath(name).read_text(encoding="utf-8")


def open_store(path: str | Path) -> sqlite3.Connection:
    """A connection to a store that exists, for one thread; DataError where there is none."""
    if not Path(path).is_file():
        raise DataError(
            f"{path}: no such store; make one with instruct-jax label --samples samples.jsonl"
            f" --store {path}"
        )
    connection = _connect(path)
    if [
        connection.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("application_id", "user_version")
    ] != [APPLICATION, VERSION]:
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
    """One transaction: all of it is kept at the end, or nothing is.  Not `synced`, it outlives a
    killed process at once, but a loss of power only from the next synced transaction on."""
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
    row = connection.execute("SELECT value FROM settings WHERE name = ?", (name,)).fetchone()
    return None if row is None else row["value"]


def set_setting(connection: sqlite3.Connection, name: str, value: str) -> None:
    with writing(connection):
        connection.execute(
            "INSERT INTO settings VALUES (?, ?) ON CONFLICT DO UPDATE SET value = excluded.value",
            (name, value),
        )


def add_tasks(
    connection: sqlite3.Connection,
    tasks: Iterable[Task],
    *,
    labelers: int = 1,
    overlap: float = 0.0,
) -> int:
    """Adds the tasks that the store does not have yet, and returns their number.  The share
    `overlap` of them is given to so many `labelers`, the others to one; screening tasks are given
    to everybody.  All are added or none.
    """
    before = connection.total_changes
    with writing(connection):
        for task in tasks:
            wanted = (
                EVERYBODY
                if task.known is not None
                else labelers
                if takes_part(task.id, overlap)
                else 1
            )
            values = (task.prompt, task.completions, task.models, task.known, task.extra)
            prompt, completions, models, known, extra = (
                None if v is None else json.dumps(v, ensure_ascii=False) for v in values
            )
            connection.execute(
                "INSERT OR IGNORE INTO tasks (id, kind, prompt, completions, models, known, extra,"
                " screening, left_training, left_held_out) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    task.id,
                    task.kind,
                    prompt,
                    completions,
                    models,
                    known,
                    extra,
                    known is not None,
                    wanted,
                    wanted,
                ),
            )
    return connection.total_changes - before


def lease(connection: sqlite3.Connection, labeler: str, now: float, seconds: float) -> str | None:
    """The id of the task that the labeler should do: the one in hand, else the first that wants an
    answer; it is then theirs for so many seconds.  None where nothing is left for them.

    A lease that a loss of power takes away costs nothing: its task is given again, and the browser
    has the draft.
    """
    team = connection.execute("SELECT team FROM labelers WHERE name = ?", (labeler,)).fetchone()[
        "team"
    ]
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
    connection: sqlite3.Connection, task: str, labeler: str, now: float, seconds: float
) -> None:
    connection.execute(
        "INSERT INTO leases VALUES (?, ?, ?, ?, (SELECT max(version) FROM instructions))"
        " ON CONFLICT DO UPDATE SET until = excluded.until, instructions = excluded.instructions",
        (task, labeler, now, now + seconds),
    )


def open_lease(connection: sqlite3.Connection, task: str, labeler: str) -> Lease | None:
    """What the labeler was given and has not answered, lapsed or not: work is not thrown away
    because it took long.
    """
    row = connection.execute(
        "SELECT tasks.*, opened, until, instructions FROM leases JOIN tasks ON id = task WHERE task"
        " = ? AND labeler = ?",
        (task, labeler),
    ).fetchone()
    return (
        None if row is None else Lease(_task(row), row["opened"], row["until"], row["instructions"])
    )


def renew(
    connection: sqlite3.Connection, task: str, labeler: str, now: float, seconds: float
) -> None:
    """The lease begins anew, under the newest instructions."""
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
    """Stores the reply to a leased task.  True: it is stored, by this call or by an earlier one
    with the same form; False: another answer of this labeler is there, and stays."""
    with writing(connection):
        stored = connection.execute(
            "SELECT form FROM answers WHERE task = ? AND labeler = ?", (task, labeler)
        ).fetchone()
        if stored is not None:
            return stored["form"] == form
        parts = (
            json.dumps(part, ensure_ascii=False)
            for part in (reply.likert, reply.flags, reply.notes)
        )
        ranks = None if reply.ranks is None else json.dumps(reply.ranks)
        new = connection.execute(
            "INSERT INTO answers (task, labeler, form, ranks, likert, flags, notes, text, skipped,"
            " shown, seconds, submitted, instructions) SELECT task, labeler, ?, ?, ?, ?, ?, ?, ?,"
            " ?, ?, ?, instructions FROM leases WHERE task = ? AND labeler = ?",
            (
                form,
                ranks,
                *parts,
                reply.text,
                reply.skipped,
                json.dumps(shown),
                seconds,
                now,
                task,
                labeler,
            ),
        )
        if not new.rowcount:
            raise LookupError(f"task {task} was never given to {labeler}")
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
    """The answers of a labeler."""
    return connection.execute(
        "SELECT count(*) FROM answers WHERE labeler = ?", (labeler,)
    ).fetchone()[0]


def form_of(connection: sqlite3.Connection, task: str, labeler: str) -> str | None:
    """The identity of the form that brought this answer; None where there is no answer."""
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
    """The answers in the order in which they came: all, or those of a labeler, to a task, or only
    the last so many of these, without the newest `before`."""
    wanted = {
        key: value for key, value in {"labeler": labeler, "task": task}.items() if value is not None
    }
    where = " AND ".join([f"{key} = ?" for key in wanted] or ["TRUE"])
    rows = connection.execute(
        "SELECT answers.*, kind, prompt, completions, models, known, team FROM answers JOIN tasks"
        f" ON id = task JOIN labelers ON name = labeler WHERE {where} ORDER BY number DESC LIMIT ?"
        " OFFSET ?",
        (*wanted.values(), -1 if last is None else last, before),
    )
    return [_answer(row) for row in rows][::-1]


def tasks(connection: sqlite3.Connection) -> dict[str, Task]:
    """All tasks by their id."""
    return {
        row["id"]: _task(row) for row in connection.execute("SELECT * FROM tasks ORDER BY position")
    }


def _task(row: sqlite3.Row) -> Task:
    return Task(
        row["id"],
        row["kind"],
        **{key: _json(row[key]) for key in ("prompt", "completions", "models", "known", "extra")},
    )


def _answer(row: sqlite3.Row) -> Answer:
    parsed = ("prompt", "completions", "models", "ranks", "likert", "flags", "notes", "known")
    plain = ("kind", "labeler", "text", "skipped", "seconds", "submitted", "instructions")
    values = {key: _json(row[key]) for key in parsed} | {key: row[key] for key in plain}
    return Answer(task_id=row["task"], held_out=row["team"] == "held-out", **values)


def _json(text: str | None) -> Any:
    return None if text is None else json.loads(text)
