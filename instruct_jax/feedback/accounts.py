"""Accounts of labelers: invitations, passwords, and the limit on tries to log in.

The store holds only hashes of secrets.
"""

import dataclasses
import hashlib
import hmac
import secrets
import sqlite3

from instruct_jax.errors import require
from instruct_jax.feedback.store import Group, writing

INVITATION = 14 * 86400.0  # seconds that a link is good for
SHORTEST, LONGEST = 10, 200  # characters of a password
WINDOW = 15 * 60.0  # seconds over which tries to log in are counted
TRIES, TRIES_OF_ADDRESS = 10, 100  # in the window; many labelers may share one address
SCRYPT = {"n": 2**14, "r": 8, "p": 1}  # 16 MiB and some 50 ms
# a hash that no password has: an unknown name takes as long as a wrong password
NOBODY = "00" * 16 + "$" + "00" * 64


@dataclasses.dataclass(frozen=True)
class Labeler:
    name: str
    team: Group
    admin: bool
    generation: int  # sessions carry it; those of an older one have ended


class TooManyTries(Exception):
    """Of one name or one address, to log in."""


def hashed(password: str, salt: bytes) -> str:
    """SALT$HASH in hex digits."""
    return f"{salt.hex()}${hashlib.scrypt(password.encode(), salt=salt, **SCRYPT).hex()}"


def matches(password: str, stored: str) -> bool:
    return hmac.compare_digest(hashed(password, bytes.fromhex(stored.partition("$")[0])), stored)


def form_key(secret: str, who: str) -> str:
    """What a form must bring back (CSRF): known to our pages in this visitor's browser, and to no
    other site.
    """
    return hmac.new(secret.encode(), f"form\n{who}".encode(), hashlib.sha256).hexdigest()


def invite(db: sqlite3.Connection, name: str, team: Group, *, admin: bool, now: float) -> str:
    """The token of a new invitation.

    An account that exists keeps its answers and loses its password: so a forgotten one is replaced.
    """
    require(
        0 < len(name) <= 60 and name.isprintable() and name == name.strip(),
        f"NAME={name!r} must be 1 to 60 printable characters",
    )
    token = secrets.token_urlsafe(32)
    with writing(db):
        found = db.execute("SELECT team, admin FROM labelers WHERE name = ?", (name,)).fetchone()
        require(
            found is None or found["team"] == team,
            f"{name} has an account in another group; choose another name, or that group",
        )
        require(
            found is None or found["admin"] == admin,
            f"{name} has an account of another role; choose another name, or that role",
        )
        db.execute(
            "INSERT INTO labelers (name, team, admin, invitation, invited_until) VALUES (?, ?, ?,"
            " ?, ?) ON CONFLICT DO UPDATE SET password = NULL, generation = generation + 1,"
            " invitation = excluded.invitation, invited_until = excluded.invited_until",
            (name, team, admin, _digest(token), now + INVITATION),
        )
    return token


def invited(db: sqlite3.Connection, token: str, now: float) -> str | None:
    """The name that an invitation is for; None of one that is used, lapsed or wrong."""
    row = db.execute(
        "SELECT name FROM labelers WHERE invitation = ? AND invited_until > ?",
        (_digest(token), now),
    ).fetchone()
    return None if row is None else row["name"]


def accept(db: sqlite3.Connection, token: str, password: str, now: float) -> Labeler | None:
    """Uses an invitation, once: the account has this password now."""
    if invited(db, token, now) is None:  # before the slow hash: strangers cost nothing
        return None
    stored = hashed(password, secrets.token_bytes(16))
    with writing(db):
        name = invited(db, token, now)
        if name is None:
            return None
        db.execute(
            "UPDATE labelers SET password = ?, invitation = NULL, generation = generation + 1 WHERE"
            " name = ?",
            (stored, name),
        )
    return labeler(db, name)


def log_in(
    db: sqlite3.Connection, name: str, password: str, address: str, now: float
) -> Labeler | None:
    """The labeler whose password it is; TooManyTries beyond the limit."""
    with writing(
        db, synced=False
    ):  # a try counts before its password is looked at: many at once do not slip through
        db.execute("DELETE FROM attempts WHERE at < ?", (now - WINDOW,))
        of_name = db.execute("SELECT count(*) FROM attempts WHERE name = ?", (name,)).fetchone()[0]
        of_address = db.execute(
            "SELECT count(*) FROM attempts WHERE address = ?", (address,)
        ).fetchone()[0]
        if of_name >= TRIES or of_address >= TRIES_OF_ADDRESS:
            raise TooManyTries
        attempt = db.execute(
            "INSERT INTO attempts VALUES (?, ?, ?)", (name, address, now)
        ).lastrowid
    row = db.execute("SELECT password FROM labelers WHERE name = ?", (name,)).fetchone()
    stored = None if row is None else row["password"]
    if not matches(password, NOBODY if stored is None else stored):
        return None
    with writing(db, synced=False):
        db.execute("DELETE FROM attempts WHERE rowid = ?", (attempt,))
    return labeler(db, name)


def labeler(db: sqlite3.Connection, name: str, generation: int | None = None) -> Labeler | None:
    """The account with this name that has a password; with `generation`, only if it is still of
    that one.
    """
    row = db.execute(
        "SELECT * FROM labelers WHERE name = ? AND password IS NOT NULL", (name,)
    ).fetchone()
    if row is None or generation not in (None, row["generation"]):
        return None
    return Labeler(row["name"], row["team"], bool(row["admin"]), row["generation"])


def exists(db: sqlite3.Connection, name: str) -> bool:
    return db.execute("SELECT 1 FROM labelers WHERE name = ?", (name,)).fetchone() is not None


def end_sessions(db: sqlite3.Connection, name: str) -> None:
    with writing(db):
        db.execute("UPDATE labelers SET generation = generation + 1 WHERE name = ?", (name,))


def close(db: sqlite3.Connection, name: str) -> None:
    """Nobody can log in under this name until it is invited again; its answers stay."""
    with writing(db):
        db.execute(
            "UPDATE labelers SET password = NULL, invitation = NULL, generation = generation + 1"
            " WHERE name = ?",
            (name,),
        )


def _digest(token: str) -> str:
    """A token has 256 random bits: no slow hash is needed."""
    return hashlib.sha256(token.encode()).hexdigest()
