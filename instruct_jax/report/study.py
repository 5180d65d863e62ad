"""study.html: the arms of a study beside each other, over their seeds."""

import importlib.resources
import json
import string
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from instruct_jax.report import html
from instruct_jax.report.findings import headline
from instruct_jax.report.plots import style
from instruct_jax.report.plots.over_optimization import picture
from instruct_jax.report.plots.style import Picture
from instruct_jax.report.run_data import Run, read_run
from instruct_jax.report.text import escape, listed, model_name, number, ordered
from instruct_jax.runtime.folders import write_atomic

SHADES = ("#c43c5c", "#e5772e", "#c9a227", "#21a179", "#3f86e0", "#8a5bd0")
Row = dict[str, float]
Arms = dict[str, dict[int, Run]]  # arm -> seed -> what its run left


class Made(Protocol):
    """One run of a study."""

    @property
    def arm(self) -> str: ...
    @property
    def seed(self) -> int: ...
    @property
    def folder(self) -> Path: ...


def build_study(out: Path, runs: Sequence[Made]) -> Path:
    """Writes out/summary.json, out/study.html and its picture from the run folders, finished or
    not; returns the page.
    """
    arms: Arms = {}
    for run in runs:
        arms.setdefault(run.arm, {})[run.seed] = read_run(run.folder)
    write_atomic(out / "summary.json", json.dumps(summary(arms), indent=1) + "\n")
    sections = (
        ("over-optimisation", "Reward, the judge's score, and KL", over_optimisation(arms)),
        ("models", "Every model of every arm", models(arms)),
    )
    seeds = sorted({seed for runs_of in arms.values() for seed in runs_of})
    started = min(
        (
            str(run.about.get("started", ""))
            for runs_of in arms.values()
            for run in runs_of.values()
        ),
        default="",
    )
    with style.styled():
        parts = [html.section(anchor, title, part) for anchor, title, part in sections]
        if drawn := over_optimization_picture(arms):
            style.write_png(drawn, out / f"{drawn.name}.png")
    template = (
        importlib.resources.files("instruct_jax.report")
        .joinpath("page.html")
        .read_text(encoding="utf-8")
    )
    page = string.Template(template).substitute(
        name=escape(out.resolve().name),
        started=escape(started[:16].replace("T", " ")),
        abstract=escape(
            f"A study of {listed([name for name in arms])}, each over the seeds"
            f" {listed([str(seed) for seed in seeds])}."
        ),
        contents="".join(
            f'<li><a href="#{anchor}">{escape(title)}</a></li>' for anchor, title, _ in sections
        ),
        sections="\n".join(parts),
    )
    write_atomic(out / "study.html", page)
    return out / "study.html"


def summary(arms: Arms) -> dict[str, Any]:
    """arm -> {"models": model -> seed -> win rate, score, KL, loss on pretraining text; "path": the
    mean over seeds at each kept step}.
    """
    found = {}
    for arm, runs in arms.items():
        by_model: dict[str, dict[int, Row]] = {}
        for seed, run in runs.items():
            for model, row in _models(run).items():
                by_model.setdefault(model, {})[seed] = row
        found[arm] = {
            "models": by_model,
            "path": {name: mean_path(paths) for name, paths in _paths(runs).items()},
        }
    return found


def _models(run: Run) -> dict[str, Row]:
    wins, nll, kl = (
        headline(run.summary, run.evaluation),
        run.evaluation.get("pretrain_nll", {}),
        run.evaluation.get("kl_to_sft", {}),
    )
    gold = next(iter(run.evaluation.get("gold_score", {}).values()), {})
    return {
        model: (
            {"win_rate": win["mean"], "low": win["ci95"][0], "high": win["ci95"][1]}
            | {
                key: of[model]
                for key, of in (("gold", gold), ("kl", kl), ("nll", nll))
                if model in of
            }
        )
        for model, win in wins.items()
    }


def _paths(runs: dict[int, Run]) -> dict[str, list[list[Row]]]:
    """PPO stage -> the path of each seed."""
    found: dict[str, list[list[Row]]] = {}
    for run in runs.values():
        for stage, rows in run.evaluation.get("over_optimisation", {}).items():
            found.setdefault(stage, []).append(rows)
    return found


def mean_path(paths: Sequence[Sequence[Row]]) -> list[Row]:
    """Means over seeds at the steps that all paths have, with the standard error over seeds (over
    prompts where there is one seed).
    """
    steps = sorted(set.intersection(*({row["step"] for row in path} for path in paths)))
    rows = []
    for step in steps:
        at = [next(row for row in path if row["step"] == step) for path in paths]
        row = {"step": step, "kl": float(np.mean([r["kl"] for r in at]))}
        for key in ("reward", "gold"):
            values = np.array([r[key] for r in at])
            error = (
                values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else at[0][f"{key}_se"]
            )
            row |= {key: float(values.mean()), f"{key}_se": float(error)}
        rows.append(row)
    return rows


def over_optimisation(arms: Arms) -> Iterator[str]:
    drawn = over_optimization_picture(arms)
    if drawn is None:
        yield html.absent("PPO runs with kept checkpoints (ppo.keep_every)")
        return
    yield html.paragraph(
        "Each line is one arm, from SFT on, through its kept checkpoints; means over seeds, bands"
        " of 95 %. The reward model is what PPO climbs, the judge is what it is for. Dotted: the"
        " best of n SFT samples by the same reward model."
    )
    yield from html.figures([drawn])
    rows = [
        (
            f"{arm}, {model_name(stage)}",
            int(row["step"]),
            row["kl"],
            row["reward"],
            row["gold"],
            number(row["gold_se"], 3),
        )
        for arm, runs in arms.items()
        for stage, paths in _paths(runs).items()
        for row in mean_path(paths)
    ]
    header = ("arm", "iteration", "KL, nats", "reward", "score", "standard error")
    yield html.folded(
        "The numbers", [html.table(header, rows, "Means over seeds at the kept checkpoints")]
    )


def over_optimization_picture(arms: Arms) -> Picture | None:
    """The arms on one pair of panels, and best-of-n, all as means over seeds."""
    lines = {
        arm if len(by_stage) == 1 else f"{arm}, {model_name(stage)}": mean_path(paths)
        for arm, runs in arms.items()
        if (by_stage := _paths(runs))
        for stage, paths in by_stage.items()
    }
    if not lines:
        return None
    coloured = {
        name: (SHADES[i % len(SHADES)], rows) for i, (name, rows) in enumerate(lines.items())
    }
    every = [run.evaluation for runs in arms.values() for run in runs.values()]
    curves = [e["best_of_n"] for e in every if e.get("best_of_n")]
    points = [
        {
            key: float(np.mean([p[key] for c in curves for p in c if p["n"] == n]))
            for key in ("kl", "reward", "gold")
        }
        for n in sorted({p["n"] for c in curves for p in c})
    ]
    judge = "reward model" if any(e.get("judge") == "reward model" for e in every) else "gold score"
    return picture(coloured, points, judge)


def models(arms: Arms) -> Iterator[str]:
    found = summary(arms)
    for arm, of in found.items():
        seeds = sorted({seed for by_seed in of["models"].values() for seed in by_seed})
        if not seeds:
            yield html.absent(f"an evaluation of the arm {arm}")
            continue
        rows = [
            (
                model_name(model),
                *(_rate(of["models"][model].get(seed)) for seed in seeds),
                *(_mean(of["models"][model], key) for key in ("win_rate", "gold", "kl")),
                number(_mean(of["models"][model], "nll"), 3),
            )
            for model in ordered(of["models"])
        ]
        header = (
            "model",
            *(f"wins, seed {seed}" for seed in seeds),
            "wins",
            "score",
            "KL to SFT, nats",
            "pretraining loss",
        )
        yield html.table(
            header,
            rows,
            f"{arm}: wins against the SFT model of the same run, with 95 % intervals; means over"
            " seeds",
        )


def _rate(row: Row | None) -> str:
    return (
        "–"
        if row is None
        else f"{number(row['win_rate'])} ({number(row['low'])} to {number(row['high'])})"
    )


def _mean(by_seed: dict[int, Row], key: str) -> float | None:
    values = [row[key] for row in by_seed.values() if key in row]
    return float(np.mean(values)) if values else None
