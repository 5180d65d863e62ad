"""Small plots for the admin's page: SVG in the page, colored by its style sheet."""

import math
from collections.abc import Sequence

from markupsafe import Markup

# pixels
WIDTH, HEIGHT = 420, 150  # of a plot
LEFT, TOP, BOTTOM = 42, 12, 20  # its margins
WIDEST = 48  # bar
LETTER = 6  # about the width of a letter


def bars(values: Sequence[float], first: str, last: str, alt: str) -> Markup:
    """A bar for each value; the first and the last of them are named."""
    most = max(1, *values)
    marks = _axis([(0, "0"), (1, f"{most:g}")])
    wide = _column_width(len(values))
    for i, value in enumerate(values):
        marks.append(_bar(i, wide, value / most))
    marks.append(_text(LEFT, HEIGHT - 5, first, "start"))
    marks.append(_text(WIDTH, HEIGHT - 5, last, "end"))
    return _plot(marks, alt)


def named_bars(values: Sequence[tuple[str, float]], alt: str) -> Markup:
    """A bar for each value, its name below."""
    if not values:
        return Markup()
    most = max(1, *(value for _, value in values))
    marks = _axis([(0, "0"), (1, f"{most:g}")])
    wide = _column_width(len(values))
    for i, (name, value) in enumerate(values):
        marks.append(_bar(i, wide, value / most))
        marks.append(_name(i, wide, name))
    return _plot(marks, alt)


def shares(points: Sequence[tuple[str, float, float, float]], alt: str) -> Markup:
    """(label, share, low, high) as dots with intervals over 0 to 100 %, without NaN and Inf."""
    if not points:
        return Markup()
    marks = _axis([(0, "0 %"), (0.5, "50 %"), (1, "100 %")])
    wide = _column_width(len(points))
    for i, (label, share, low, high) in enumerate(points):
        middle = _middle(i, wide)
        if all(math.isfinite(value) for value in (share, low, high)):
            marks.append(_line(middle, _y(low), middle, _y(high), "stroke"))
            marks.append(_rect(middle - 3, _y(share) - 3, 6, 6))
        marks.append(_name(i, wide, label))
    return _plot(marks, alt)


def _column_width(columns: int) -> float:
    return (WIDTH - LEFT) / columns


def _bar(i: int, wide: float, share: float) -> Markup:
    width = min(wide - 2, WIDEST)
    left = _middle(i, wide) - width / 2
    top = _y(share)
    return _rect(left, top, width, _y(0) - top)


def _name(i: int, wide: float, name: str) -> Markup:
    """As much of the name as there is room for."""
    room = max(int(wide / LETTER), 2)
    if len(name) > room:
        name = name[: room - 1] + "…"
    return _text(_middle(i, wide), HEIGHT - 5, name, "middle")


def _middle(i: int, wide: float) -> float:
    """Of column i, in pixels from the left."""
    return LEFT + (i + 0.5) * wide


def _y(share: float) -> float:
    return TOP + (1 - share) * (HEIGHT - BOTTOM - TOP)


def _axis(ticks: Sequence[tuple[float, str]]) -> list[Markup]:
    marks = []
    for share, name in ticks:
        y = _y(share)
        marks.append(_line(LEFT, y, WIDTH, y, "axis"))
        marks.append(_text(LEFT - 4, y + 4, name, "end"))
    return marks


def _rect(x: float, y: float, width: float, height: float) -> Markup:
    return Markup(
        '<rect class="mark" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>'
    ).format(x, y, width, height)


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    return Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(
        kind, x1, y1, x2, y2
    )


def _text(x: float, y: float, text: str, anchor: str) -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(
        x, y, anchor, text
    )


def _plot(marks: Sequence[Markup], alt: str) -> Markup:
    body = Markup("").join(marks)
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, HEIGHT, alt, body
    )
