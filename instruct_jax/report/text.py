"""Text of a report: numbers and lists in sentences, and model output made harmless."""

import html
from collections.abc import Sequence

from instruct_jax.text import plain


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
