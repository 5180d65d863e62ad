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
    """An account that can log in."""

    name: str
    team: Group
    admin: bool
    generation: int  # sessions carry it; those of an older one have ended


class TooManyTries(Exception):
    """Too many tries to log in, of one name or from one address."""


def hashed(password: str, salt: bytes) -> str:
    """SALT$HASH in hex digits."""
    digest = hashlib.scrypt(password.encode(), salt=salt, **SCRYPT)
    return f"{salt.hex()}${digest.hex()}"


def matches(password: str, stored: str) -> bool:
    """Whether `stored` is the hash of the password."""
    salt = bytes.fromhex(stored.partition("$")[0])
    return hmac.compare_digest(hashed(password, salt), stored)


def form_key(secret: str, who: str) -> str:
    """The token that a form must bring back (CSRF).

    The pages in this visitor's browser know it, and no other site does.
    """
    text = f"form\n{who}"
    return hmac.new(secret.encode(), text.encode(), hashlib.sha256).hexdigest()


def invite(db: sqlite3.Connection, name: str, team: Group, *, admin: bool, now: float) -> str:
    """Makes an invitation, and an account where there is none; returns the token of its link.

    An account that exists keeps its answers and loses its password, so that a forgotten one can be
    replaced.  ConfigError where the name is bad, or the account has another group or role.
    """
    require(
        0 < len(name) <= 60 and name.isprintable() and name == name.strip(),
        f"NAME={name!r} must be 1 to 60 printable characters",
    )
    token = secrets.token_urlsafe(32)
    with writing(db):
        row = db.execute("SELECT team, admin FROM labelers WHERE name = ?", (name,)).fetchone()
        if row is not None:
            require(
                row["team"] == team,
                f"{name} has an account in another group; choose another name, or that group",
            )
            require(
                row["admin"] == admin,
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
    """The name that an invitation is for; None where it is used, lapsed or wrong."""
    row = db.execute(
        "SELECT name FROM labelers WHERE invitation = ? AND invited_until > ?",
        (_digest(token), now),
    ).fetchone()
    return None if row is None else row["name"]


def accept(db: sqlite3.Connection, token: str, password: str, now: float) -> Labeler | None:
    """Uses an invitation, once: the account has this password from now on.

    None where the invitation is used, lapsed or wrong.
    """
    if invited(db, token, now) is None:  # before the slow hash, so that strangers cost nothing
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
    db: sqlite3.Connection,
    name: str,
    password: str,
    address: str,
    now: float,
) -> Labeler | None:
    """The labeler, or None where name or password is wrong; TooManyTries beyond the limit."""
    # A try counts before its password is checked, so that many at once do not slip through.
    with writing(db, synced=False):
        db.execute("DELETE FROM attempts WHERE at < ?", (now - WINDOW,))
        count = "SELECT count(*) FROM attempts WHERE"
        by_name = db.execute(f"{count} name = ?", (name,)).fetchone()[0]
        by_address = db.execute(f"{count} address = ?", (address,)).fetchone()[0]
        if by_name >= TRIES or by_address >= TRIES_OF_ADDRESS:
            raise TooManyTries
        added = db.execute("INSERT INTO attempts VALUES (?, ?, ?)", (name, address, now))
        attempt = added.lastrowid
    row = db.execute("SELECT password FROM labelers WHERE name = ?", (name,)).fetchone()
    stored = NOBODY
    if row is not None and row["password"] is not None:
        stored = row["password"]
    if not matches(password, stored):
        return None
    with writing(db, synced=False):
        db.execute("DELETE FROM attempts WHERE rowid = ?", (attempt,))
    return labeler(db, name)


def labeler(db: sqlite3.Connection, name: str, generation: int | None = None) -> Labeler | None:
    """The account with this name, if it has a password and, where given, this generation."""
    row = db.execute(
        "SELECT * FROM labelers WHERE name = ? AND password IS NOT NULL", (name,)
    ).fetchone()
    if row is None or generation not in (None, row["generation"]):
        return None
    return Labeler(row["name"], row["team"], bool(row["admin"]), row["generation"])


def exists(db: sqlite3.Connection, name: str) -> bool:
    """Whether there is an account with this name, open or closed."""
    return db.execute("SELECT 1 FROM labelers WHERE name = ?", (name,)).fetchone() is not None


def end_sessions(db: sqlite3.Connection, name: str) -> None:
    """Logs the labeler out everywhere."""
    with writing(db):
        db.execute("UPDATE labelers SET generation = generation + 1 WHERE name = ?", (name,))


def close(db: sqlite3.Connection, name: str) -> None:
    """Ends an account: nobody can log in until it is invited again; its answers stay."""
    with writing(db):
        db.execute(
            "UPDATE labelers SET password = NULL, invitation = NULL, generation = generation + 1"
            " WHERE name = ?",
            (name,),
        )


def _digest(token: str) -> str:
    """The hash of a token, which needs no slow one because it has 256 random bits."""
    return hashlib.sha256(token.encode()).hexdigest()
