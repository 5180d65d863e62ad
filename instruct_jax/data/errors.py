"""The one exception of bad data: it says where, what was found, and how to repair it."""

from typing import Any


def shorten(value: Any, limit: int = 60) -> str:
    """The value as it would be typed in Python, at most `limit` characters."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


class DataError(ValueError):
    """Data that cannot be used.  The message names file, line, field, value and the repair."""


class FieldError(DataError):
    """One record is bad; whoever knows file and line says it again with them."""

    def __init__(self, field: str, value: Any, reason: str, repair: str):
        super().__init__(f"{field}={shorten(value)} {reason}; {repair}")
