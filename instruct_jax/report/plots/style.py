"""How pictures look: one palette, thin lines, no background; drawn without pyplot, so nothing
global is left behind.

In SVG every stroke of INK becomes currentColor, so the page's text color, light or dark, is the
picture's.
"""

import dataclasses
import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from instruct_jax.report.looks import Look
from instruct_jax.report.text import escape
from instruct_jax.text import plain

INK = "#1c2128"
# nats, of axes that show KL by its square root
KL_TICKS = (0, 0.2, 1, 2, 5, 10, 20, 40, 80, 160, 320, 640)
WIDTH, HEIGHT = 4.7, 3.1  # inches; fits a phone without shrinking the text much
STYLE: dict[Any, Any] = {
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "axes.unicode_minus": True,
    "grid.color": INK,
    "grid.alpha": 0.13,
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.6,
    "text.color": INK,
    "text.parse_math": False,  # a "$" in somebody's text is a dollar
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "legend.handlelength": 1.4,
    "legend.columnspacing": 1.2,
    "svg.fonttype": "none",
    "svg.hashsalt": "instruct_jax",  # the same numbers make the same file
}


@dataclasses.dataclass(frozen=True)
class Picture:
    name: str  # of its file
    title: str
    alt: str  # what it shows, in words and numbers
    figure: Figure


@contextmanager
def styled() -> Iterator[None]:
    """Inside, pictures are drawn and written in the project's style, whatever the user's
    matplotlibrc says.
    """
    with warnings.catch_warnings(), mpl.rc_context():
        # SVG leaves the choice of the font to the browser
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        yield


def new(width: float = WIDTH, height: float = HEIGHT) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.04, h_pad=0.04)  # type: ignore[union-attr, call-arg]
    return figure, figure.add_subplot()


def fixed() -> tuple[Figure, Axes]:
    """A small panel with margins that suit any metric: four times as fast as a layout that measures
    its labels.
    """
    figure = Figure(figsize=(WIDTH, 2.5))
    return figure, figure.add_axes((0.15, 0.19, 0.82, 0.7))


def label(text: object, most: int = 28) -> str:
    """Somebody's text as a label: one short line."""
    line = " ".join(plain(text).split())
    if line.startswith("_"):
        line = f" {line}"  # matplotlib leaves labels that begin with _ out of the legend
    if len(line) <= most:
        return line
    return line[: most - 1] + "…"


def legend_above(figure: Figure, axes: Axes, columns: int = 4) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=columns, borderaxespad=0.2)


def rows(axes: Axes, names: Sequence[str], text: str) -> None:
    """One row of the picture for each name, from the bottom; `text` stands below."""
    labels = [label(name) for name in names]
    axes.set_yticks(range(len(names)), labels)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.set_xlabel(text)
    axes.grid(visible=False, axis="y")


def annotate(axes: Axes, text: str, x: float, y: float) -> None:
    """`text` to the right of a point."""
    axes.annotate(
        text,
        (x, y),
        xytext=(8, 0),
        textcoords="offset points",
        va="center",
    )


def lollipop(axes: Axes, y: float, start: float, end: float, look: Look) -> None:
    """A line from `start` to `end` with a marker there, in the row `y`."""
    axes.plot([start, end], [y, y], color=look.color, linewidth=2.5)
    axes.plot([end], [y], markersize=7, **look.points)


def kl_axis(axes: Axes, origin: str) -> None:
    """The x axis as KL by its square root (Gao et al. 2022), from 0 on; `origin` is the model that
    it is measured from.
    """
    axes.set_xscale("function", functions=(_root, np.square))
    top = axes.get_xlim()[1]
    axes.set_xlim(0, top)
    axes.set_xticks([tick for tick in KL_TICKS if tick <= top])
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel(f"KL from {label(origin)}, nats per reply (square-root scale)")


def _root(kl: np.ndarray) -> np.ndarray:
    return np.sqrt(np.maximum(kl, 0))


def svg(picture: Picture) -> str:
    """An <svg> element to stand in a page: no header, its own ids, the alt text as its name."""
    with io.StringIO() as out:
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        FigureCanvasSVG(picture.figure).print_svg(out, metadata=nothing)
        text = out.getvalue()
    body = text[text.index(">", text.index("<svg")) + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>", "", body, flags=re.S)
    body = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{picture.name}-", body)
    body = body.replace(INK, "currentColor")
    inches = picture.figure.get_size_inches()
    width, height = (round(72 * inch, 2) for inch in inches)
    named = f'role="img" aria-label="{escape(picture.alt)}"'
    return f'<svg viewBox="0 0 {width:g} {height:g}" {named}>{body.strip()}'


def write_png(picture: Picture, path: Path, *, dpi: int = 160) -> None:
    """On white: a README shows it on a page of any color."""
    FigureCanvasAgg(picture.figure)
    picture.figure.savefig(
        path,
        dpi=dpi,
        facecolor="white",
        metadata={"Software": None, "Description": plain(picture.alt)},
    )
