"""Small pictures for the admin's page: SVG in the page, coloured by its style sheet."""

import math
from collections.abc import Sequence

from markupsafe import Markup

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 420, 150, 42, 12, 20  # of a picture, and of its margins
WIDEST = 48  # a bar


def bars(values: Sequence[float], first: str, last: str, alt: str) -> Markup:
    """A bar for each value; the first and the last of them are named."""
    most, wide = max(1, *values), (WIDTH - LEFT) / len(values)
    marks = [_bar(i, wide, value / most) for i, value in enumerate(values)]
    ends = [_text(LEFT, HEIGHT - 5, first, "start"), _text(WIDTH, HEIGHT - 5, last, "end")]
    return _picture([*_axis([(0, "0"), (1, f"{most:g}")]), *marks, *ends], alt)


def named_bars(values: Sequence[tuple[str, float]], alt: str) -> Markup:
    """A bar for each value, its name below."""
    if not values:
        return Markup()
    most, wide = max(1, *(value for _, value in values)), (WIDTH - LEFT) / len(values)
    marks = [
        part
        for i, (name, value) in enumerate(values)
        for part in (_bar(i, wide, value / most), _name(i, wide, name))
    ]
    return _picture([*_axis([(0, "0"), (1, f"{most:g}")]), *marks], alt)


def shares(points: Sequence[tuple[str, float, float, float]], alt: str) -> Markup:
    """(label, share, low, high) as dots with intervals over 0 to 100 %; what is not finite is left
    out.
    """
    if not points:
        return Markup()
    wide, marks = (WIDTH - LEFT) / len(points), []
    for i, (label, share, low, high) in enumerate(points):
        middle = LEFT + (i + 0.5) * wide
        if all(map(math.isfinite, (share, low, high))):
            marks += [
                _line(middle, _y(low), middle, _y(high), "stroke"),
                _rect(middle - 3, _y(share) - 3, 6, 6),
            ]
        marks.append(_name(i, wide, label))
    return _picture([*_axis([(0, "0 %"), (0.5, "50 %"), (1, "100 %")]), *marks], alt)


def _bar(i: int, wide: float, share: float) -> Markup:
    width = min(wide - 2, WIDEST)
    return _rect(LEFT + (i + 0.5) * wide - width / 2, _y(share), width, _y(0) - _y(share))


def _name(i: int, wide: float, name: str) -> Markup:
    """As much of it as there is room for, a letter being 6 wide."""
    room = max(int(wide / 6), 2)
    return _text(
        LEFT + (i + 0.5) * wide,
        HEIGHT - 5,
        name if len(name) <= room else name[: room - 1] + "…",
        "middle",
    )


def _y(share: float) -> float:
    return TOP + (1 - share) * (HEIGHT - BOTTOM - TOP)


def _axis(ticks: Sequence[tuple[float, str]]) -> list[Markup]:
    return [
        part
        for at, name in ticks
        for part in (
            _line(LEFT, _y(at), WIDTH, _y(at), "axis"),
            _text(LEFT - 4, _y(at) + 4, name, "end"),
        )
    ]


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


def _picture(parts: Sequence[Markup], alt: str) -> Markup:
    body = Markup("").join(parts)
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, HEIGHT, alt, body
    )
