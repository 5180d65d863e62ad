"""Text that people read: names of models, numbers, and model output made harmless."""

import html
import math
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

MODELS = {  # in the order of the paper's figure 1, weakest first
    "base": "base",
    "base_prompted": "base, prompted",
    "sft": "SFT",
    "sft_control": "SFT again (control)",
    "best_of_n": "best of n",
    "ppo_start": "PPO's start",
    "ppo": "PPO",
    "ppo_ptx": "PPO-ptx",
}
IN_SENTENCES = {
    "base": "the base model",
    "base_prompted": "the prompted base model",
    "best_of_n": "best-of-n",
}
_SHOWN_WHITESPACE = "\n\t"


def ordered(models: Iterable[str]) -> list[str]:
    """Known models in the paper's order, then the others by name."""
    known = list(MODELS)
    return sorted(
        models, key=lambda name: (known.index(name) if name in known else len(known), name)
    )


def model_name(model: str) -> str:
    return MODELS.get(model, plain(model))


def in_sentence(model: str) -> str:
    return IN_SENTENCES.get(model, model_name(model))


def plain(text: object) -> str:
    """Text that cannot change what surrounds it: control, format (bidi, zero-width) and lone
    surrogate characters are spelled out.
    """
    return "".join(_spelled(char) for char in str(text))


def _spelled(char: str) -> str:
    if char in _SHOWN_WHITESPACE or unicodedata.category(char) not in (
        "Cc",
        "Cf",
        "Cs",
        "Co",
        "Zl",
        "Zp",
    ):
        return char
    return f"\\u{ord(char):04x}" if ord(char) < 0x10000 else f"\\U{ord(char):08x}"


def escape(text: object) -> str:
    """Any text as HTML text or attribute."""
    return html.escape(plain(text))


def prompt_text(prompt: object) -> str:
    """A prompt on disk is text or a list of messages."""
    if isinstance(prompt, list):
        return "\n".join(
            f"{m.get('role', '?')}: {m.get('content', '')}" if isinstance(m, dict) else str(m)
            for m in prompt
        )
    return str(prompt)


def number(value: Any, digits: int = 2) -> str:
    """A number with `digits` decimals and a true minus sign; a dash where there is none."""
    if value is None or isinstance(value, str) or not math.isfinite(value):
        return "–"
    text = f"{value:,.{digits}f}"
    return (text if float(text.replace(",", "")) else text.lstrip("-")).replace("-", "−")


def percent(value: Any, digits: int = 0) -> str:
    return (
        number(value, digits) if number(value) == "–" else f"{number(100 * value, digits)}\u00a0%"
    )


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 600:
        return f"{round(seconds) // 60} min {round(seconds) % 60:02d} s"
    minutes, hours = round(seconds / 60), int(round(seconds / 60) // 60)
    return f"{minutes} min" if minutes < 60 else f"{hours} h {minutes % 60:02d} min"


def listed(parts: Sequence[str]) -> str:
    """a, b and c."""
    return (
        parts[0]
        if len(parts) == 1
        else ", ".join(parts[:-1]) + " and " + parts[-1]
        if parts
        else ""
    )
