"""Text of other people on a page: it stays text, never becomes markup, and hides nothing."""

from markdown_it import MarkdownIt
from markupsafe import Markup, escape

from instruct_jax.text import SHOWN_WHITESPACE, code_of, unseen

JOINERS = "\u200c\u200d"  # harmless, and needed in Persian words and in emoji


def visible(text: str) -> Markup:
    """The text as HTML.

    Control and format characters (right-to-left overrides, zero-width and tag characters, ...) are
    spelled out.
    """
    html = escape(text.replace("\r\n", "\n"))
    for char in set(html):
        if unseen(char) and char not in SHOWN_WHITESPACE + JOINERS:
            code = Markup('<span class="spelled">{}</span>').format(code_of(char))
            html = html.replace(char, code)
    return html


def rendered(markdown: str) -> Markup:
    """The admin's Markdown as HTML; HTML in it is shown as text."""
    return Markup(MarkdownIt("commonmark", {"html": False}).enable("table").render(markdown))
