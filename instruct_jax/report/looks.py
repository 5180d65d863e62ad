"""Which color, marker and line each model has in every picture of a page.

The base, what the first evaluation calls its baseline, and the best of n always look the same; the
others go by their place in the run. Color-blind readers have the marker and the line.
"""

import dataclasses
import zlib

from instruct_jax.report.evaluations import BASE, BEST_OF_N, PROMPTED, Evaluation, baseline_of
from instruct_jax.report.run_data import Run

BLUE, GREY, BROWN, PURPLE = "#3f86e0", "#8a94a3", "#b98a3e", "#a069d6"
COLORS = ("#e5772e", "#21a179", "#c0447f", "#1886a5", "#a68a12", "#9a5b33")
MARKERS = ("o", "D", "X", "p", "<", ">", "h")  # as many as colors, and one: few pairs come twice
LINES = ("-", "--", "-.", ":")


@dataclasses.dataclass(frozen=True)
class Look:
    color: str
    marker: str
    line: str = "-"
    hollow: bool = False

    @property
    def face(self) -> str:
        """The color inside the marker."""
        return "none" if self.hollow else self.color


def look(run: Run, source: str) -> Look:
    """Of a stage of the run, or a model from outside."""
    if source == baseline_of(run):
        return Look(BLUE, "s")
    if source == _root(run):
        return Look(GREY, "v")
    places = _places(run, source)
    place = (
        places.index(source) if source in places else zlib.crc32(source.encode("utf-8", "replace"))
    )
    return numbered(place)


def numbered(place: int) -> Look:
    return Look(
        COLORS[place % len(COLORS)], MARKERS[place % len(MARKERS)], LINES[place % len(LINES)]
    )


def look_in(evaluation: Evaluation, model: str) -> Look:
    """Of a model of an evaluation."""
    if model == PROMPTED:
        return Look(BROWN, "^")
    if model == BEST_OF_N:
        return Look(PURPLE, "P", ":")
    if model == evaluation.control:
        return dataclasses.replace(look_in(evaluation, evaluation.baseline), hollow=True)
    source = evaluation.source(model)
    if model == BASE and source != baseline_of(evaluation.run):
        return Look(GREY, "v")
    return look(evaluation.run, source)


def _root(run: Run) -> str | None:
    """The stage that the run begins with, where it starts from nothing."""
    roots = [s.name for s in run.stages.values() if s.leaves == "policy" and "start" not in s.uses]
    return roots[0] if roots else None


def _places(run: Run, source: str) -> list[str]:
    """Those that share a picture with `source` and have no look of their own: what is evaluated,
    then other policies; or the stages that leave the same thing.
    """
    stage = run.stages.get(source)
    if stage is not None and stage.leaves != "policy":
        return [s.name for s in run.stages.values() if s.leaves == stage.leaves]
    evaluated: list[str] = []
    policies: list[str] = []
    for stage in run.stages.values():
        if stage.leaves == "policy":
            policies.append(stage.name)
        elif stage.leaves == "findings":
            evaluated += stage.models.values()
    special = (_root(run), baseline_of(run))
    return [name for name in dict.fromkeys([*evaluated, *policies]) if name not in special]
