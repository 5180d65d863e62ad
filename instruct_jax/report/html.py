"""Small pieces of HTML.

Every argument named `html` is markup already; all else is escaped here.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from instruct_jax.report.plots import style
from instruct_jax.report.plots.style import Picture
from instruct_jax.report.text import escape, number, plain


def paragraph(text: str, kind: str = "") -> str:
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def absent(what: str) -> str:
    """The line that stands where a part of the page would be."""
    return paragraph(f"Not in this run: {what}.", "absent")


def section(anchor: str, title: str, html: Iterable[str]) -> str:
    return f'<section id="{anchor}"><h2>{escape(title)}</h2>\n' + "\n".join(html) + "\n</section>"


def table(
    header: Sequence[str], rows: Iterable[Sequence[Any]], caption: str, left: Sequence[str] = ()
) -> str:
    """Cells are text or numbers (two decimals), and stand to the right except in the columns
    `left`; the first one names the row.
    """
    kinds = [' class="text"' if column in left else "" for column in header]
    head = "".join(
        f'<th scope="col"{kind}>{escape(cell)}</th>'
        for kind, cell in zip(kinds, header, strict=True)
    )
    body = "\n".join(
        f'<tr><th scope="row">{escape(first)}</th>'
        + "".join(
            f"<td{kind}>{_cell(cell)}</td>" for kind, cell in zip(kinds[1:], rest, strict=True)
        )
        + "</tr>"
        for first, *rest in rows
    )
    name = escape(caption)
    return (
        '<div class="scroll" role="region" tabindex="0"'
        f' aria-label="{name}"><table><caption>{name}</caption>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )


def _cell(value: Any) -> str:
    return escape(value if isinstance(value, (str, int)) else number(value))


def figures(pictures: Iterable[Picture | None]) -> list[str]:
    """A grid of pictures, as many beside each other as the page is wide; nothing where there are
    none.
    """
    drawn = [
        f"<figure><figcaption>{escape(p.title)}</figcaption>{style.svg(p)}</figure>"
        for p in pictures
        if p
    ]
    return [f'<div class="grid">{"".join(drawn)}</div>'] if drawn else []


def folded(title: str, html: Iterable[str]) -> str:
    return f"<details><summary>{escape(title)}</summary>\n" + "\n".join(html) + "\n</details>"


def verbatim(text: str) -> str:
    return f'<pre tabindex="0">{escape(text)}</pre>'


def quoted(text: str, most: int = 2000) -> str:
    """What a model wrote: its line breaks kept, its direction kept inside, and no longer than a
    person would read.
    """
    cut = plain(text)[:most] + ("…" if len(plain(text)) > most else "")
    return (
        f'<bdi class="quote">{escape(cut)}</bdi>'
        if cut.strip()
        else '<span class="absent">(empty)</span>'
    )
