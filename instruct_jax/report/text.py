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
    if char in SHOWN_WHITESPACE or unicodedata.category(char) not in UNSEEN:
        return char
    return f"\\u{ord(char):04x}" if ord(char) < 0x10000 else f"\\U{ord(char):08x}"


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
            lines.append(f"{message.get('role', '?')}: {message.get('content', '')}")
        else:
            lines.append(str(message))
    return "\n".join(lines)


def number(value: Any, digits: int = 2) -> str:
    """A number with `digits` decimals and a true minus sign; a dash where there is none."""
    if value is None or isinstance(value, str) or not math.isfinite(value):
        return "–"
    text = f"{value:,.{digits}f}"
    is_zero = float(text.replace(",", "")) == 0
    return (text.lstrip("-") if is_zero else text).replace("-", "−")


def percent(value: Any, digits: int = 0) -> str:
    if number(value) == "–":
        return "–"
    return f"{number(100 * value, digits)}\u00a0%"


def rate(win: dict[str, Any]) -> str:
    low, high = win["ci95"]
    return f"{number(win['mean'])}, 95\u00a0% interval {number(low)} to {number(high)}"


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 600:
        return f"{round(seconds) // 60} min {round(seconds) % 60:02d} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def moment(time: object) -> str:
    """2026-01-02T03:04:05+00:00 as 2026-01-02 03:04."""
    return str(time)[:16].replace("T", " ")


def listed(parts: Sequence[str]) -> str:
    """a, b and c."""
    if len(parts) < 2:
        return "".join(parts)
    return ", ".join(parts[:-1]) + " and " + parts[-1]


def count(items: int, noun: str) -> str:
    """3 stages, 1 stage."""
    return f"{items} {noun}" if items == 1 else f"{items} {noun}s"
