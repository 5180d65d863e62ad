"""What a run folder holds, read once; whatever is missing is empty.

Which stages there are, what they use and which curves they have is in graph.json: this room knows
no stage by its name or kind.
"""

import dataclasses
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

Row = dict[str, float]
THIS_PAGE = "report"  # the kind of the stage that makes the page; it is not a part of it


@dataclasses.dataclass(frozen=True)
class Curve:
    metric: str  # in metrics.jsonl
    title: str
    label: str  # of the axis: the unit
    main: bool  # False: folded away


@dataclasses.dataclass(frozen=True)
class Stage:
    name: str
    kind: str
    leaves: str  # "policy", "scalar", "records" or "findings"
    uses: dict[str, str]  # key -> a stage of the run, or a model from outside
    curves: tuple[Curve, ...]
    settings: dict[str, Any]  # its section of config.yaml
    done: dict[str, Any]  # done.json; empty while the stage is not finished
    metrics: list[Row]
    sessions: list[dict[str, Any]]
    phases: list[Row]  # seconds of each phase, and tokens sampled, by iteration
    evaluation: dict[str, Any]  # evaluation.json

    @property
    def output(self) -> dict[str, Any]:
        return self.done.get("output") or {}

    @property
    def inputs(self) -> dict[str, Any]:
        """What it was made from: settings, and hashes of data and of what it uses."""
        return self.done.get("inputs") or {}

    @property
    def models(self) -> dict[str, str]:
        """Of a stage that compares models: their names -> the stages that they are."""
        return _under("models.", self.uses)

    @property
    def data(self) -> dict[str, str]:
        """Key of the data that it read -> hash."""
        return _under("data.", self.inputs)

    @property
    def seconds_per_step(self) -> float | None:
        """Of the last session that knows it."""
        known = [session.get("seconds_per_step") for session in self.sessions]
        known = [seconds for seconds in known if seconds]
        return known[-1] if known else None

    def series(self, metric: str) -> tuple[list[int], list[float]]:
        """Steps and values of one metric; rows without it, with NaN or Inf are left out."""
        steps = []
        values = []
        for row in self.metrics:
            if math.isfinite(row.get(metric, math.nan)):
                steps.append(int(row["step"]))
                values.append(row[metric])
        return steps, values


@dataclasses.dataclass(frozen=True)
class Run:
    name: str
    stages: dict[str, Stage]  # in the order of graph.json, in which they run
    summary: dict[str, Any]
    about: dict[str, Any]  # run.json
    config: str  # text of config.yaml

    @property
    def seconds(self) -> dict[str, float]:
        """By finished stage."""
        seconds = {}
        for name, stage in self.stages.items():
            if "seconds" in stage.done:
                seconds[name] = stage.done["seconds"]
        return seconds

    @property
    def bases(self) -> set[str]:
        """Models from outside the run that stages start from."""
        starts = {stage.uses.get("start", "") for stage in self.stages.values()}
        return starts - set(self.stages)

    def starts(self, name: str) -> list[str]:
        """What a stage started from, nearest first; the last one may be from outside the run."""
        chain: list[str] = []
        while name in self.stages:
            start = self.stages[name].uses.get("start")
            if start is None or start in chain:
                break
            chain.append(start)
            name = start
        return chain

    def by_kind(self) -> Iterator[tuple[str, list[Stage]]]:
        """The kinds in the order of their first stage, each with its stages."""
        kinds: dict[str, list[Stage]] = {}
        for stage in self.stages.values():
            kinds.setdefault(stage.kind, []).append(stage)
        yield from kinds.items()


def read_run(folder: Path) -> Run:
    config = folder / "config.yaml"
    text = config.read_text(encoding="utf-8", errors="replace") if config.exists() else ""
    settings = _settings(text)
    graph = _json(folder / "graph.json").get("stages", [])
    stages = {
        entry["name"]: _stage(folder / entry["name"], entry, settings.get(entry["name"]))
        for entry in graph
        if entry["kind"] != THIS_PAGE
    }
    return Run(
        name=folder.resolve().name,
        stages=stages,
        summary=_json(folder / "summary.json"),
        about=_json(folder / "run.json"),
        config=text,
    )


def _stage(folder: Path, entry: Mapping[str, Any], settings: dict[str, Any] | None) -> Stage:
    return Stage(
        name=entry["name"],
        kind=entry["kind"],
        leaves=entry["leaves"],
        uses=dict(entry["uses"]),
        curves=tuple(Curve(**curve) for curve in entry.get("curves", [])),
        settings=settings or {},
        done=_json(folder / "done.json"),
        metrics=_lines(folder / "metrics.jsonl"),
        sessions=_lines(folder / "sessions.jsonl"),
        phases=_lines(folder / "phases.jsonl"),
        evaluation=_json(folder / "evaluation.json"),
    )


def _under(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values whose keys begin with the prefix, by the rest of the key."""
    under = {}
    for key, value in values.items():
        if key.startswith(prefix):
            under[key.removeprefix(prefix)] = value
    return under


def _settings(text: str) -> dict[str, Any]:
    """The section `stages` of config.yaml; empty where it cannot be read."""
    try:
        config = yaml.safe_load(text)
    except yaml.YAMLError:
        return {}
    if not isinstance(config, dict):
        return {}
    return config.get("stages") or {}


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _lines(path: Path) -> list[dict[str, Any]]:
    """The complete rows: a run in progress, or one that was killed, may leave half a last one."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1] if line]


def anchors(prefix: str, names: Iterable[str]) -> dict[str, str]:
    """Name -> the id of its place in the page: only letters that need no escaping, no id twice."""
    ids: dict[str, str] = {}
    for name in names:
        anchor = f"{prefix}-{slug(name)}"
        while anchor in ids.values():
            anchor += "-"
        ids[name] = anchor
    return ids


def slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.]+", "-", text).strip("-")
