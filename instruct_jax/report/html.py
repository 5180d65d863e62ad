"""Small pieces of HTML, from the templates beside this file.

Every text is escaped there, and made harmless before; Markup is HTML already.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import jinja2
from markupsafe import Markup

from instruct_jax.report.plots.style import Picture, svg
from instruct_jax.text import number, plain

Section = tuple[str, str, Markup]  # anchor, title and HTML
Row = Sequence[Any]  # of a table
MOST_QUOTED = 2000  # characters of a reply: no longer than a person would read


def _shown(value: Any) -> Any:
    """What stands in a template: Markup as it is, all else as harmless text."""
    return value if isinstance(value, Markup) else plain(value)


TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("instruct_jax.report", "."),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    finalize=_shown,
    trim_blocks=True,
    lstrip_blocks=True,
)
PIECES: Any = TEMPLATES.get_template("pieces.html").module


def page(
    command: str,
    name: str,
    started: str,
    abstract: str,
    sections: Sequence[Section],
) -> str:
    """A whole page; `command` is the one that makes it."""
    template = TEMPLATES.get_template("page.html")
    return template.render(
        command=command,
        name=name,
        started=started,
        abstract=abstract,
        sections=sections,
    )


def paragraph(text: str, kind: str = "") -> Markup:
    return PIECES.paragraph(text, kind)


def absent(what: str) -> Markup:
    """The line that stands where a part of the page would be."""
    return paragraph(f"Not in this run: {what}.", "absent")


def subtitle(text: str) -> Markup:
    return PIECES.subtitle(text)


def verdicts(title: str, kind: str, texts: Sequence[str]) -> Markup:
    """Sentences of one kind, held or missed."""
    return PIECES.verdicts(title, kind, texts)


def facts(values: dict[str, Any]) -> Markup:
    return PIECES.listing(values)


def table(
    header: Row,
    rows: Iterable[Row],
    caption: str,
    left: Sequence[str] = (),
    ids: Sequence[str] = (),
) -> Markup:
    """Cells are text, Markup or numbers (two decimals), and stand to the right except in the
    columns `left`; the first one names the row.  `ids`: one for each row, or none.
    """
    cells = []
    for row in rows:
        cells.append([_cell(value) for value in row])
    ids = ids or [""] * len(cells)
    return PIECES.table(header, cells, caption, left, ids)


def _cell(value: Any) -> Any:
    if isinstance(value, (str, int)):
        return value
    return number(value)


def without_empty(header: Row, rows: Iterable[Row]) -> tuple[Row, Sequence[Row]]:
    """The columns that say something in at least one row; the first always stays."""
    first, *columns = zip(header, *rows, strict=True)  # each begins with its header
    kept = [first]
    for column in columns:
        cells = [_cell(value) for value in column[1:]]
        if any(cell != "–" for cell in cells):
            kept.append(column)
    short_header, *short_rows = zip(*kept, strict=True)
    return short_header, short_rows


def figures(pictures: Iterable[Picture | None]) -> list[Markup]:
    """A grid of pictures, as many beside each other as the page is wide; nothing where there are
    none.
    """
    drawn = []
    for picture in pictures:
        if picture:
            drawn.append((picture.title, Markup(svg(picture))))
    return [PIECES.figures(drawn)] if drawn else []


def cards(html: Iterable[Markup]) -> Markup:
    return PIECES.cards(joined(html))


def folded(title: str, html: Iterable[Markup]) -> Markup:
    return PIECES.folded(title, joined(html))


def joined(html: Iterable[Markup]) -> Markup:
    return Markup("\n").join(html)


def verbatim(text: str) -> Markup:
    return PIECES.verbatim(text)


def sample(case: str, prompt: str, replies: Sequence[tuple[str, str, str]]) -> Markup:
    """A prompt and what each model answered: its name, the text, its scores."""
    cut = []
    for name, text, scores in replies:
        cut.append((name, shortened(text), scores))
    return PIECES.sample(case, shortened(prompt), cut)


def shortened(text: str) -> str:
    text = plain(text)
    if len(text) <= MOST_QUOTED:
        return text
    return text[:MOST_QUOTED] + "…"
