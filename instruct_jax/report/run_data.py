"""What a run folder holds, read once; whatever is missing is empty."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

TRAINED = ("pretrain", "sft", "reward", "ppo_start", "ppo", "ppo_ptx")  # stages with metrics.jsonl
# in the order of the chain
STAGES = (
    "pretrain",
    "sft",
    "compare",
    "reward",
    "cross_validation",
    "select",
    "ppo_start",
    "ppo",
    "ppo_ptx",
    "evaluate",
)

Row = dict[str, float]


@dataclasses.dataclass(frozen=True)
class Run:
    name: str
    summary: dict[str, Any]
    evaluation: dict[str, Any]
    metrics: dict[str, list[Row]]  # by stage
    done: dict[str, dict[str, Any]]  # by stage
    sessions: dict[str, list[dict[str, Any]]]  # by stage
    # of the PPO stages: seconds of each phase, tokens sampled, by iteration
    phases: dict[str, list[Row]]
    about: dict[str, Any]  # run.json
    config: str  # text of config.yaml

    @property
    def seconds(self) -> dict[str, float]:
        """By stage, in the order of the chain."""
        found = {
            stage: done["seconds"] for stage, done in self.done.items() if "seconds" in done
        } | self.summary.get("seconds", {})
        return {stage: found[stage] for stage in sorted(found, key=_place)}

    def series(self, stage: str, key: str) -> tuple[list[int], list[float]]:
        """Steps and values of one metric; rows without it, or not finite, are left out."""
        rows = [(int(row["step"]), row[key]) for row in self.metrics.get(stage, []) if key in row]
        rows = [(step, value) for step, value in rows if math.isfinite(value)]
        return [step for step, _ in rows], [value for _, value in rows]


def read_run(folder: Path) -> Run:
    stages = sorted((path.name for path in folder.iterdir() if path.is_dir()), key=_place)
    config = folder / "config.yaml"
    return Run(
        name=folder.resolve().name,
        summary=_json(folder / "summary.json"),
        evaluation=_json(folder / "evaluate" / "evaluation.json"),
        metrics={s: rows for s in stages if (rows := _lines(folder / s / "metrics.jsonl"))},
        done={s: record for s in stages if (record := _json(folder / s / "done.json"))},
        sessions={s: rows for s in stages if (rows := _lines(folder / s / "sessions.jsonl"))},
        phases={s: rows for s in stages if (rows := _lines(folder / s / "phases.jsonl"))},
        about=_json(folder / "run.json"),
        config=config.read_text(encoding="utf-8", errors="replace") if config.exists() else "",
    )


def _place(stage: str) -> tuple[int, str]:
    return (STAGES.index(stage) if stage in STAGES else len(STAGES), stage)


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _lines(path: Path) -> list[dict[str, Any]]:
    """The complete rows: a run that goes on, or was killed, may leave half a last one."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1] if line]
