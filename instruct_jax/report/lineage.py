"""What every stage was made from: the graph of a run as a drawing of links, and the details that the
links lead to.
"""

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

from markupsafe import Markup

from instruct_jax.report import html, layers
from instruct_jax.report.run_data import Run, Stage, anchors
from instruct_jax.report.text import duration, listed, moment, plain

MOST_LETTERS = 16  # of a name in a box; the whole one is its tooltip
HASH = "sha256:"


@dataclasses.dataclass(frozen=True)
class Source:
    """Something that a stage was made from."""

    name: str
    where: str  # "stage", "outside" or "data"

    @property
    def in_words(self) -> str:
        return f"the data {self.name}" if self.where == "data" else self.name


@dataclasses.dataclass(frozen=True)
class Use:
    source: Source
    key: str  # of the stage's settings, or of the run's data
    value: str  # hash, empty where the stage is not finished

    @property
    def is_start(self) -> bool:
        return self.key == "start"


def uses_of(run: Run, stage: Stage) -> list[Use]:
    """The models and stages that it uses, then the data."""
    inputs: dict[str, Any] = stage.done.get("inputs") or {}
    found = []
    for key, name in stage.uses.items():
        where = "stage" if name in run.stages else "outside"
        found.append(Use(Source(name, where), key, short(inputs.get(f"uses.{key}", ""))))
    for key, value in stage.data.items():
        found.append(Use(Source(key, "data"), f"data.{key}", short(value)))
    return found


def short(value: object) -> str:
    """A hash by its first ten digits, all else as it is."""
    text = str(value)
    return text.removeprefix(HASH)[:10] if text.startswith(HASH) else text


def graph(run: Run) -> Markup:
    """The drawing, an SVG of links, with the same in words for screen readers."""
    places = columns(run)
    starts: dict[tuple[Source, Source], bool] = {}
    for stage in run.stages.values():
        target = Source(stage.name, "stage")
        for use in uses_of(run, stage):
            if places[use.source] < places[target]:
                edge = (use.source, target)
                starts[edge] = use.is_start or starts.get(edge, False)
    drawing = layers.draw(places, list(starts))
    ids = _anchors(run)
    boxes = []
    for source, (left, top) in drawing.boxes.items():
        kind, note = _kind_and_note(run, source)
        boxes.append(
            {
                "anchor": ids[source],
                "name": plain(source.name),
                "label": _cut(source.name),
                "kind": kind,
                "note": note,
                "left": left,
                "top": top,
            }
        )
    edges = [(path, starts[edge]) for edge, path in drawing.paths.items()]
    return html.PIECES.lineage(
        drawing, layers.BOX_WIDTH, layers.BOX_HEIGHT, boxes, edges, words(run)
    )


def words(run: Run) -> str:
    """The graph as sentences."""
    sentences = []
    for stage in run.stages.values():
        uses = uses_of(run, stage)
        starts = [use.source.in_words for use in uses if use.is_start]
        others = [use.source.in_words for use in uses if not use.is_start]
        parts = []
        if starts:
            parts.append(f"starts from {listed(starts)}")
        if others:
            parts.append(f"uses {listed(list(dict.fromkeys(others)))}")
        sentences.append(f"{stage.name} {' and '.join(parts) or 'starts from nothing'}.")
    return " ".join(sentences)


def columns(run: Run) -> dict[Source, int]:
    """A stage stands right of all that it uses; what is no stage, right before its first use."""
    stages: dict[Source, int] = {}
    others: dict[Source, int] = {}
    for stage in run.stages.values():
        column = 0
        uses = uses_of(run, stage)
        for use in uses:
            column = max(column, 1 + stages.get(use.source, 0))
        stages[Source(stage.name, "stage")] = column
        for use in uses:
            if use.source.where != "stage":
                others[use.source] = min(others.get(use.source, column), column - 1)
    return others | stages


def _kind_and_note(run: Run, source: Source) -> tuple[str, str]:
    """What a box says below its name, and which color its edge has."""
    if source.where == "data":
        return "data", "data"
    if source.where == "outside":
        return "outside", "from outside"
    stage = run.stages[source.name]
    note = _time(stage) if stage.kind == stage.name else f"{_cut(stage.kind)} · {_time(stage)}"
    return stage.leaves, note


def _time(stage: Stage) -> str:
    if not stage.done:
        return "not finished"
    return duration(stage.done.get("seconds", 0))


def _cut(name: str) -> str:
    name = " ".join(plain(name).split())
    if len(name) <= MOST_LETTERS:
        return name
    return f"{name[: MOST_LETTERS // 2]}…{name[1 - MOST_LETTERS // 2 :]}"


def _anchors(run: Run) -> dict[Source, str]:
    """Source -> id of its details."""
    ids: dict[Source, str] = {}
    names = [f"{source.where} {source.name}" for source in columns(run)]
    for source, anchor in zip(columns(run), anchors("of", names).values(), strict=True):
        ids[source] = anchor
    return ids


def details(run: Run) -> Iterator[Markup]:
    """A card for each stage, and a table of what is from outside the run."""
    ids = _anchors(run)
    cards = [_card(run, stage, ids) for stage in run.stages.values()]
    if cards:
        yield html.cards(cards)
    rows, row_ids = [], []
    for source, anchor in ids.items():
        if source.where != "stage":
            rows.append([source.name, source.where, *_used_by(run, source)])
            row_ids.append(anchor)
    if rows:
        header = ("from outside this run", "what", "used by", "hash")
        caption = "What the stages used that this run did not make"
        yield html.table(header, rows, caption, left=header[1:], ids=row_ids)
    finished = {name: stage.done for name, stage in run.stages.items() if stage.done}
    if finished:
        text = json.dumps(finished, indent=1, ensure_ascii=False)
        yield html.folded("Hashes and outputs of the stages", [html.verbatim(text)])


def _used_by(run: Run, source: Source) -> tuple[str, str]:
    stages, hashes = [], []
    for stage in run.stages.values():
        for use in uses_of(run, stage):
            if use.source == source:
                stages.append(stage.name)
                hashes.append(use.value)
    return ", ".join(dict.fromkeys(stages)), ", ".join(dict.fromkeys(filter(None, hashes)))


def _card(run: Run, stage: Stage, ids: dict[Source, str]) -> Markup:
    facts = {"leaves": stage.leaves, "time": _time(stage)}
    if "finished" in stage.done:
        facts["finished"] = moment(stage.done["finished"])
    if stage.seconds_per_step:
        facts["speed"] = f"{stage.seconds_per_step:.3g} s a step"
    if stage.output:
        facts["output"] = ", ".join(stage.output)
    uses = uses_of(run, stage)
    sources = [(use.key, use.source.name, ids[use.source], use.value) for use in uses]
    inputs: dict[str, Any] = stage.done.get("inputs") or {}
    shown = {key: short(value) for key, value in inputs.items()}
    anchor = ids[Source(stage.name, "stage")]
    return html.PIECES.stage(anchor, stage.name, stage.kind, facts, sources, shown)
