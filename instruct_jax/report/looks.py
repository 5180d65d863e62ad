"""Which color, marker and line each model has in every picture of a page.

The base, what the first evaluation calls its baseline, and the best of n always look the same; the
others go by their place in the run. Color-blind readers have the marker and the line.
"""

import dataclasses
import zlib
from typing import Any

from instruct_jax.report.evaluations import BASE, BEST_OF_N, Evaluation, baseline_of
from instruct_jax.report.run_data import Run

BLUE = "#3f86e0"
GREY = "#8a94a3"
BROWN = "#b98a3e"
PURPLE = "#a069d6"
COLORS = ("#e5772e", "#21a179", "#c0447f", "#1886a5", "#a68a12", "#9a5b33")
# one more than there are colors: a pair comes again after 42 models
MARKERS = ("o", "D", "X", "p", "<", ">", "h")
LINES = ("-", "--", "-.", ":")


@dataclasses.dataclass(frozen=True)
class Look:
    color: str
    marker: str
    line: str = "-"
    hollow: bool = False

    @property
    def points(self) -> dict[str, Any]:
        """As arguments of matplotlib: markers without a line."""
        return {
            "color": self.color,
            "marker": self.marker,
            "markerfacecolor": "none" if self.hollow else self.color,
            "linestyle": "none",
        }

    @property
    def path(self) -> dict[str, Any]:
        """As arguments of matplotlib: markers on a line."""
        return self.points | {"linestyle": self.line}


def look(run: Run, source: str) -> Look:
    """Of a stage of the run, or a model from outside."""
    if source == baseline_of(run):
        return Look(BLUE, "s")
    if source == _root(run):
        return Look(GREY, "v")
    places = _places(run, source)
    if source in places:
        return numbered(places.index(source))
    return numbered(zlib.crc32(source.encode("utf-8", "replace")))


def numbered(place: int) -> Look:
    return Look(
        color=COLORS[place % len(COLORS)],
        marker=MARKERS[place % len(MARKERS)],
        line=LINES[place % len(LINES)],
    )


def look_in(evaluation: Evaluation, model: str) -> Look:
    """Of a model of an evaluation."""
    prompted = evaluation.prompted(model)
    if prompted == BASE:
        return Look(BROWN, "^")
    if prompted is not None:
        return dataclasses.replace(look_in(evaluation, prompted), hollow=True)
    if model == BEST_OF_N:
        return Look(PURPLE, "P", ":")
    if model == evaluation.control:
        baseline = look_in(evaluation, evaluation.baseline)
        return dataclasses.replace(baseline, hollow=True)
    source = evaluation.source(model)
    is_baseline = source == baseline_of(evaluation.run)
    if model == BASE and not is_baseline:
        return Look(GREY, "v")
    return look(evaluation.run, source)


def _root(run: Run) -> str | None:
    """The first policy that starts from nothing."""
    for stage in run.stages.values():
        if stage.leaves == "policy" and "start" not in stage.uses:
            return stage.name
    return None


def _places(run: Run, source: str) -> list[str]:
    """Those that share a picture with `source` and have no look of their own: what is evaluated,
    then other policies; or the stages that leave the same thing.
    """
    own = run.stages.get(source)
    leaves = "policy" if own is None else own.leaves
    evaluated: list[str] = []
    alike: list[str] = []
    for stage in run.stages.values():
        if stage.leaves == leaves:
            alike.append(stage.name)
        if stage.leaves == "findings" and leaves == "policy":
            evaluated += stage.models.values()
    special = (_root(run), baseline_of(run))
    unique = dict.fromkeys([*evaluated, *alike])
    return [name for name in unique if name not in special]
