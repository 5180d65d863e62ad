"""The one exception of bad data: it says where, what was found, and how to repair it."""

from collections.abc import Iterable
from typing import Any


def shorten(value: Any, limit: int = 60) -> str:
    """The value as it would be typed in Python, at most `limit` characters."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def shown(name: str, limit: int = 60) -> str:
    """A field or key as it stands, where that can be shown on one line."""
    return name if len(name) <= limit and name.isprintable() else shorten(name, limit)


def names(found: Iterable[Any], limit: int = 200) -> str:
    """The sorted names in brackets, at most `limit` characters: a field may be named by a megabyte."""
    return shorten(sorted(found), limit)


class DataError(ValueError):
    """Data that cannot be used.  The message names file, line, field, value and the repair."""


class FieldError(DataError):
    """One record is bad; whoever knows file and line says it again with them."""

    def __init__(self, field: str, value: Any, reason: str, repair: str):
        super().__init__(f"{shown(field)}={shorten(value)} {reason}; {repair}")
