"""Text that people read: numbers, lists, and model output made harmless."""

import html
import math
import unicodedata
from collections.abc import Sequence
from typing import Any

SHOWN_WHITESPACE = "\n\t"
UNSEEN = ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")  # control, format, surrogate, private, separators


def plain(text: object) -> str:
    """Text that cannot change what surrounds it: control, format (bidi, zero-width) and lone
    surrogate characters are spelled out.
    """
    return "".join(_spelled(char) for char in str(text))


def _spelled(char: str) -> str:
    if char in SHOWN_WHITESPACE:
        return char
    if unicodedata.category(char) not in UNSEEN:
        return char
    code = ord(char)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def escape(text: object) -> str:
    """Any text as HTML text or attribute."""
    return html.escape(plain(text))


def prompt_text(prompt: object) -> str:
    """A prompt on disk is text or a list of messages."""
    if not isinstance(prompt, list):
        return str(prompt)
    lines = []
    for message in prompt:
        if isinstance(message, dict):
            role = message.get("role", "?")
            content = message.get("content", "")
            lines.append(f"{role}: {content}")
        else:
            lines.append(str(message))
    return "\n".join(lines)


def number(value: Any, digits: int = 2) -> str:
    """A number with `digits` decimals and a true minus sign; a dash where there is none."""
    if value is None or isinstance(value, str):
        return "–"
    if not math.isfinite(value):
        return "–"
    text = f"{value:,.{digits}f}"
    is_zero = not any(digit in text for digit in "123456789")
    if is_zero:
        text = text.lstrip("-")
    return text.replace("-", "−")


def percent(value: Any, digits: int = 0) -> str:
    if number(value) == "–":
        return "–"
    return f"{number(100 * value, digits)}\u00a0%"


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 600:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    if hours == 0:
        return f"{minutes} min"
    return f"{hours} h {minutes:02d} min"


def moment(time: object) -> str:
    """2026-01-02T03:04:05+00:00 as 2026-01-02 03:04."""
    return str(time)[:16].replace("T", " ")


def listed(parts: Sequence[str]) -> str:
    """a, b and c."""
    if len(parts) < 2:
        return "".join(parts)
    *first, last = parts
    return f"{', '.join(first)} and {last}"


def count(items: int, noun: str) -> str:
    """3 stages, 1 stage."""
    plural = "" if items == 1 else "s"
    return f"{items} {noun}{plural}"
