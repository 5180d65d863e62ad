"""Text of other people on a page: it stays text, never becomes markup, and hides nothing."""

import unicodedata

from markdown_it import MarkdownIt
from markupsafe import Markup, escape

JOINERS = "\u200c\u200d"  # harmless, and needed in Persian words and in emoji
# control, format, surrogate, private use, line and paragraph separators
HIDDEN = ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")


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
    if char in "\n\t" + JOINERS:
        return False
    return unicodedata.category(char) in HIDDEN


def rendered(markdown: str) -> Markup:
    """The admin's Markdown as HTML; HTML in it is shown as text."""
    return Markup(MarkdownIt("commonmark", {"html": False}).enable("table").render(markdown))
