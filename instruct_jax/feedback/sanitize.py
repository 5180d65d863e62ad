"""Somebody's text on a page: always text, never markup, and nothing in it works unseen."""

import unicodedata

from markdown_it import MarkdownIt
from markupsafe import Markup, escape

JOINERS = "\u200c\u200d"  # of Persian words and of emoji: harmless, and needed


def visible(text: str) -> Markup:
    """The text as HTML.

    Control and format characters (right-to-left overrides, zero-width and tag characters, ...) are
    spelled out.
    """
    html = escape(text.replace("\r\n", "\n"))
    for char in filter(_hidden, set(html)):
        code = f"\\u{ord(char):04x}" if ord(char) < 0x10000 else f"\\U{ord(char):08x}"
        html = html.replace(char, Markup('<span class="spelled">{}</span>').format(code))
    return html


def _hidden(char: str) -> bool:
    return char not in "\n\t" + JOINERS and unicodedata.category(char) in (
        "Cc",
        "Cf",
        "Cs",
        "Co",
        "Zl",
        "Zp",
    )


def rendered(markdown: str) -> Markup:
    """The admin's Markdown as HTML; HTML in it is shown as text."""
    return Markup(MarkdownIt("commonmark", {"html": False}).enable("table").render(markdown))
