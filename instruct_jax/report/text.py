"""Text of a report: numbers and lists in sentences, and model output made harmless."""

import html
from collections.abc import Sequence
from typing import Any

from instruct_jax.text import number, plain


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
