"""What every stage was made from: the graph of a run as a drawing of links, and the details that
the links lead to.
"""

import dataclasses
import json
import re
from collections.abc import Iterator

from markupsafe import Markup

from instruct_jax.report import html, layers
from instruct_jax.report.run_data import Run, Stage, anchors
from instruct_jax.report.text import duration, listed, moment
from instruct_jax.text import plain

MOST_LETTERS = 14  # of a name in a box; the whole one is its tooltip
HASH = re.compile(r"sha256:([0-9a-f]{10})[0-9a-f]*")


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


@dataclasses.dataclass(frozen=True)
class Box:
    anchor: str  # of the details that it leads to
    name: str
    label: str  # the name, cut to fit
    kind: str  # what a stage leaves; "outside" or "data"
    note: str
    left: float
    top: float


def uses_of(run: Run, stage: Stage) -> list[Use]:
    """The models and stages that it uses, then the data."""
    uses = []
    for key, name in stage.uses.items():
        where = "stage" if name in run.stages else "outside"
        source = Source(name, where)
        value = stage.inputs.get(f"uses.{key}", "")
        uses.append(Use(source, key, short(value)))
    for key, value in stage.data.items():
        source = Source(key, "data")
        uses.append(Use(source, f"data.{key}", short(value)))
    return uses


def short(value: object) -> str:
    """Hashes by their first ten digits, all else as it is."""
    return HASH.sub(r"\1", str(value))


def graph(run: Run) -> Markup:
    """The drawing, an SVG of links, with the same in words for screen readers."""
    places = columns(run)
    ids = _anchors(run)
    lines: dict[layers.Edge, str] = {}
    for stage in run.stages.values():
        target = Source(stage.name, "stage")
        for use in uses_of(run, stage):
            if places[use.source] >= places[target]:
                continue  # a graph that no chain writes
            edge = (ids[use.source], ids[target])
            if use.is_start:
                lines[edge] = "start"
            lines.setdefault(edge, "data" if use.source.where == "data" else "used")
    by_id = {ids[source]: column for source, column in places.items()}
    drawing = layers.draw(by_id, list(lines))
    boxes = []
    for source, anchor in ids.items():
        left, top = drawing.boxes[anchor]
        boxes.append(_box(run, source, anchor, left, top))
    return html.PIECES.lineage(
        drawing=drawing,
        lines=lines,
        boxes=boxes,
        width=layers.BOX_WIDTH,
        height=layers.BOX_HEIGHT,
        words=words(run),
    )


def words(run: Run) -> str:
    """The graph as sentences."""
    sentences = []
    for stage in run.stages.values():
        starts: list[str] = []
        others: list[str] = []
        for use in uses_of(run, stage):
            kind = starts if use.is_start else others
            if use.source.in_words not in kind:
                kind.append(use.source.in_words)
        parts = []
        if starts:
            parts.append(f"starts from {listed(starts)}")
        if others:
            parts.append(f"uses {listed(others)}")
        origin = " and ".join(parts) or "starts from nothing"
        sentences.append(f"{stage.name} {origin}.")
    return " ".join(sentences)


def columns(run: Run) -> dict[Source, int]:
    """A stage stands right of all that it uses; what is no stage, right before its first use."""
    stages: dict[Source, int] = {}
    others: dict[Source, int] = {}
    for stage in run.stages.values():
        uses = uses_of(run, stage)
        before = [stages.get(use.source, 0) for use in uses]
        column = 1 + max(before, default=-1)
        stages[Source(stage.name, "stage")] = column
        for use in uses:
            if use.source.where != "stage":
                first = others.get(use.source, column)
                others[use.source] = min(first, column - 1)
    return others | stages


def _box(run: Run, source: Source, anchor: str, left: float, top: float) -> Box:
    kind, note = _kind_and_note(run, source)
    return Box(
        anchor=anchor,
        name=source.name,
        label=_cut(source.name),
        kind=kind,
        note=note,
        left=left,
        top=top,
    )


def _kind_and_note(run: Run, source: Source) -> tuple[str, str]:
    """What decides the color of a box, and what it says below the name."""
    if source.where == "data":
        return "data", "data"
    if source.where == "outside":
        return "outside", "from outside"
    stage = run.stages[source.name]
    time = _rounded(stage)
    if stage.kind == stage.name:
        return stage.leaves, time
    return stage.leaves, f"{_cut(stage.kind)} · {time}"


def _time(stage: Stage) -> str:
    if not stage.done:
        return "not finished"
    return duration(stage.done.get("seconds", 0))


def _rounded(stage: Stage) -> str:
    """The time to a minute, short enough for a box."""
    if not stage.done:
        return "not finished"
    seconds = stage.done.get("seconds", 0)
    if seconds < 60:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d}" if hours else f"{minutes} min"


def _cut(name: str) -> str:
    name = " ".join(plain(name).split())
    if len(name) <= MOST_LETTERS:
        return name
    half = MOST_LETTERS // 2
    begin = name[:half]
    end = name[1 - half :]
    return f"{begin}…{end}"


def _anchors(run: Run) -> dict[Source, str]:
    """Source -> id of its details."""
    names = {source: f"{source.where} {source.name}" for source in columns(run)}
    ids = anchors("of", names.values())
    return {source: ids[name] for source, name in names.items()}


def details(run: Run) -> Iterator[Markup]:
    """A card for each stage, and a table of what is from outside the run."""
    ids = _anchors(run)
    cards = [_card(run, stage, ids) for stage in run.stages.values()]
    if cards:
        yield html.cards(cards)
    yield from _outside(run, ids)
    done = {stage.name: stage.done for stage in run.stages.values()}
    if any(done.values()):
        text = json.dumps(done, indent=1, ensure_ascii=False)
        yield html.folded("Hashes and outputs of the stages", [html.verbatim(text)])


def _outside(run: Run, ids: dict[Source, str]) -> Iterator[Markup]:
    rows = []
    row_ids = []
    for source, anchor in ids.items():
        if source.where != "stage":
            users, hashes = _used_by(run, source)
            rows.append((source.name, source.where, users, hashes))
            row_ids.append(anchor)
    if rows:
        header = ("from outside this run", "what", "used by", "hash")
        caption = "What the stages used that this run did not make"
        yield html.table(header, rows, caption, left=header[1:], ids=row_ids)


def _used_by(run: Run, source: Source) -> tuple[str, str]:
    """The names of the stages, and the hashes of what they read."""
    stages: dict[str, None] = {}
    hashes: dict[str, None] = {}
    for stage in run.stages.values():
        for use in uses_of(run, stage):
            if use.source == source:
                stages[stage.name] = None
                hashes[use.value] = None
    hashes.pop("", None)
    return ", ".join(stages), ", ".join(hashes)


def _card(run: Run, stage: Stage, ids: dict[Source, str]) -> Markup:
    facts = {"leaves": stage.leaves, "time": _time(stage)}
    if "finished" in stage.done:
        facts["finished"] = moment(stage.done["finished"])
    if stage.seconds_per_step:
        facts["speed"] = f"{stage.seconds_per_step:.3g} s a step"
    if stage.output:
        facts["output"] = ", ".join(stage.output)
    return html.PIECES.stage(
        anchor=ids[Source(stage.name, "stage")],
        name=stage.name,
        kind=stage.kind,
        facts=facts,
        uses=uses_of(run, stage),
        ids=ids,
        inputs={key: short(value) for key, value in stage.inputs.items()},
    )
