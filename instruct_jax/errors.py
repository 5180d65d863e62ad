"""Errors that a user can act on.

Each says where, what was found and how to fix it, and knows the exit code of the command line.
"""

import json
from collections.abc import Iterable
from typing import Any


def shorten(value: Any, limit: int = 60) -> str:
    """The value as it would be typed: null, true and false as in YAML and JSON, all else as in
    Python; at most `limit` characters.
    """
    is_word = value is None or isinstance(value, bool)
    text = json.dumps(value) if is_word else repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def shown(name: str, limit: int = 60) -> str:
    """A field or key as it stands, where that can be shown on one line."""
    return name if len(name) <= limit and name.isprintable() else shorten(name, limit)


def names(found: Iterable[Any], limit: int = 200) -> str:
    """The sorted names in brackets, at most `limit` characters: a field may be named by
    a megabyte.
    """
    return shorten(sorted(found), limit)


class InstructError(Exception):
    """The base of all errors that are no bugs: the command line prints the message alone and ends
    with `exit_code`.
    """

    exit_code = 2


class ConfigError(InstructError, ValueError):
    """A config that cannot be run.  The message names the key, the value and the fix."""


class RunError(InstructError, ValueError):
    """A run folder does not belong to what is asked of it.

    The message names the place, both values and the fix.
    """


class NonFiniteError(InstructError, FloatingPointError):
    """A metric of a step is NaN or Inf."""

    exit_code = 1


class DataError(InstructError, ValueError):
    """Data that cannot be used.  The message names file, line, field, value and the fix."""


class FieldError(DataError):
    """One record is bad; whoever knows file and line says it again with them."""

    def __init__(self, field: str, value: Any, reason: str, repair: str):
        super().__init__(f"{shown(field)}={shorten(value)} {reason}; {repair}")
        self.field = field


def require(condition: bool, message: str) -> None:
    """Raises ConfigError(message) unless the condition holds.

    Messages give the key, the value and the fix.
    """
    if not condition:
        raise ConfigError(message)
