"""How far the labeling is: counts of tasks, of answers over time, and of labelers."""

import sqlite3
import statistics
from collections.abc import Iterable
from typing import NamedTuple

from instruct_jax.feedback.store import SKIPS, Answer, Group
from instruct_jax.feedback.tasks import Kind


class KindProgress(NamedTuple):
    """How far the tasks of one kind are."""

    kind: Kind
    tasks: int
    # have all answers of the training group that are wanted, or were skipped too often
    finished: int
    answers: int  # of both groups, without skips
    skipped: int  # answers that say so


class LabelerProgress(NamedTuple):
    """A labeler and what they have done."""

    name: str
    team: Group
    admin: bool
    active: bool  # has a password
    invited: bool  # has an invitation that is not used
    answers: int  # skips among them
    skipped: int
    last: float | None  # unix seconds of the last answer


def by_kind(connection: sqlite3.Connection) -> list[KindProgress]:
    """How far the tasks of each kind are.

    Screening tasks are for everybody, and never finished.
    """
    answers = "(SELECT count(*) FROM answers JOIN tasks AS t ON id = task WHERE t.kind = tasks.kind"
    rows = connection.execute(
        "SELECT kind, count(*), sum(left_training <= 0 OR (NOT screening AND skips >= ?)),"
        f" {answers} AND skipped IS NULL), {answers} AND skipped IS NOT NULL)"
        " FROM tasks GROUP BY kind ORDER BY kind",
        (SKIPS,),
    )
    return [KindProgress(*row) for row in rows]


def by_labeler(connection: sqlite3.Connection) -> list[LabelerProgress]:
    """Every labeler, by name."""
    rows = connection.execute(
        "SELECT name, team, admin, password IS NOT NULL, invitation IS NOT NULL, count(number),"
        " count(skipped), max(submitted) FROM labelers LEFT JOIN answers ON labeler = name GROUP BY"
        " name ORDER BY name"
    )
    return [LabelerProgress(*row) for row in rows]


def per_hour(connection: sqlite3.Connection, now: float, hours: int) -> list[int]:
    """How many answers came in each of the last hours, the newest at the end."""
    rows = connection.execute(
        "SELECT CAST((:now - submitted) / 3600 AS INTEGER) AS ago, count(*) FROM answers"
        " WHERE submitted > :now - 3600 * :hours GROUP BY ago",
        {"now": now, "hours": hours},
    )
    counts = dict(tuple(row) for row in rows)
    return [counts.get(ago, 0) for ago in reversed(range(hours))]


def median_seconds(answers: Iterable[Answer]) -> dict[str, float]:
    """The median time of each labeler for an answer, skips left out."""
    spent: dict[str, list[float]] = {}
    for answer in answers:
        if answer.skipped is None:
            spent.setdefault(answer.labeler, []).append(answer.seconds)
    return {name: statistics.median(times) for name, times in spent.items()}
