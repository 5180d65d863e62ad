"""The instructions for labelers: Markdown in versions.

The version that a labeler had is stored with each answer.
"""

import sqlite3
from typing import NamedTuple

from instruct_jax.feedback.store import writing


class Version(NamedTuple):
    """One version of the instructions."""

    version: int
    text: str  # Markdown
    at: float  # unix seconds
    by: str | None  # the admin; None for the text that comes with the page


def versions(connection: sqlite3.Connection) -> list[Version]:
    """All versions, the newest first."""
    rows = connection.execute(
        "SELECT version, text, at, by FROM instructions ORDER BY version DESC"
    )
    return [Version(*row) for row in rows]


def newest(connection: sqlite3.Connection) -> int:
    """The number of the newest version."""
    return connection.execute("SELECT max(version) FROM instructions").fetchone()[0]


def write(connection: sqlite3.Connection, text: str, by: str, now: float) -> None:
    """Adds a version; the older ones stay, as answers refer to them."""
    with writing(connection):
        connection.execute(
            "INSERT INTO instructions (text, at, by) VALUES (?, ?, ?)", (text, now, by)
        )


def changed(connection: sqlite3.Connection, labeler: str) -> bool:
    """Whether there is a newer version than the one of the labeler's last answer."""
    seen = connection.execute(
        "SELECT max(instructions) FROM answers WHERE labeler = ?", (labeler,)
    ).fetchone()[0]
    return seen is not None and seen != newest(connection)
