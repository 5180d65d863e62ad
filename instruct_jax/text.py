"""Numbers, tables and text of others, as text that people read."""

import math
import unicodedata
from collections.abc import Sequence
from typing import Any

SHOWN_WHITESPACE = "\n\t"
# control, format, surrogate, private use, line and paragraph separators
UNSEEN = ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")


def plural(n: int, noun: str) -> str:
    """The number with its noun, in the plural where it must be."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def table(head: Sequence[str], rows: list[tuple[str, ...]]) -> list[str]:
    """The lines of a table for a terminal, aligned on the left."""
    everything = [head, *rows]
    widths = []
    for column in range(len(head)):
        widths.append(max(len(row[column]) for row in everything))
    lines = []
    for row in everything:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join(cells).rstrip())
    return lines


def in_bytes(size: float) -> str:
    """A number of bytes with its unit."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} TiB"


def number(value: Any, digits: int = 2) -> str:
    """A number with `digits` decimals and a true minus sign; a dash where there is none."""
    if value is None or isinstance(value, str) or not math.isfinite(value):
        return "–"
    text = f"{value:,.{digits}f}"
    is_zero = float(text.replace(",", "")) == 0
    return (text.lstrip("-") if is_zero else text).replace("-", "−")


def percent(value: Any, digits: int = 0) -> str:
    """A share as a percentage; a dash where there is none."""
    if number(value) == "–":
        return "–"
    return f"{number(100 * value, digits)}\u00a0%"


def plain(text: object) -> str:
    """Text that cannot change what surrounds it.

    Control, format (bidi, zero-width) and lone surrogate characters are spelled out.
    """
    return "".join(_spelled(char) for char in str(text))


def _spelled(char: str) -> str:
    if char in SHOWN_WHITESPACE or not unseen(char):
        return char
    return code_of(char)


def unseen(char: str) -> bool:
    """Whether nobody sees the character, although it may change what surrounds it."""
    return unicodedata.category(char) in UNSEEN


def code_of(char: str) -> str:
    r"""The character as it would be written in Python: \\u202e."""
    return f"\\u{ord(char):04x}" if ord(char) < 0x10000 else f"\\U{ord(char):08x}"
