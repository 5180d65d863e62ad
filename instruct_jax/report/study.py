"""study.html: the arms of a study beside each other, over their seeds.

Of a run with several evaluations the first one counts.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from markupsafe import Markup

from instruct_jax.report import html
from instruct_jax.report.evaluations import Evaluation, evaluations
from instruct_jax.report.looks import numbered
from instruct_jax.report.plots import style
from instruct_jax.report.plots.over_optimization import Line, picture
from instruct_jax.report.plots.style import Picture
from instruct_jax.report.run_data import Run, read_run
from instruct_jax.report.text import listed, moment, number
from instruct_jax.runtime.folders import write_atomic

Row = dict[str, float]
Arms = dict[str, dict[int, Run]]  # arm -> seed -> what its run left


class ArmRun(Protocol):
    """One run of a study."""

    @property
    def arm(self) -> str: ...
    @property
    def seed(self) -> int: ...
    @property
    def folder(self) -> Path: ...


def build_study(out: Path, runs: Sequence[ArmRun]) -> Path:
    """Writes out/summary.json, out/study.html and its picture from the run folders, finished or
    not; returns the page.
    """
    arms: Arms = {}
    for run in runs:
        arms.setdefault(run.arm, {})[run.seed] = read_run(run.folder)
    write_atomic(out / "summary.json", json.dumps(summary(arms), indent=1) + "\n")
    with style.styled():
        sections = [
            (
                "over-optimization",
                "Reward, the judge's score, and KL",
                html.joined(over_optimization(arms)),
            ),
            ("models", "Every model of every arm", html.joined(models(arms))),
        ]
        drawn = over_optimization_picture(arms)
        if drawn:
            style.write_png(drawn, out / f"{drawn.name}.png")
    abstract = f"A study of {listed(list(arms))}, each over the seeds {listed(_seeds(arms))}."
    write_atomic(
        out / "study.html", html.page(out.resolve().name, _started(arms), abstract, sections)
    )
    return out / "study.html"


def _seeds(arms: Arms) -> list[str]:
    seeds: set[int] = set()
    for runs in arms.values():
        seeds.update(runs)
    return [str(seed) for seed in sorted(seeds)]


def _started(arms: Arms) -> str:
    """When the first run began."""
    times: list[str] = []
    for runs in arms.values():
        times += [str(run.about["started"]) for run in runs.values() if "started" in run.about]
    return moment(min(times, default="unknown"))


def _evaluation(run: Run) -> Evaluation | None:
    measured = evaluations(run)
    return measured[0] if measured else None


def summary(arms: Arms) -> dict[str, Any]:
    """arm -> {"models": model -> seed -> win rate, score, KL, loss on pretraining text; "path":
    policy -> the mean over seeds at each kept step}.
    """
    found = {}
    for arm, runs in arms.items():
        by_model: dict[str, dict[int, Row]] = {}
        for seed, run in runs.items():
            for model, row in _models(run).items():
                by_model.setdefault(model, {})[seed] = row
        paths = {name: mean_path(path) for name, path in _paths(runs).items()}
        found[arm] = {"models": by_model, "path": paths}
    return found


def _models(run: Run) -> dict[str, Row]:
    """Model -> its numbers, as far as they were measured; in the order of the page of the run."""
    evaluation = _evaluation(run)
    if evaluation is None:
        return {}
    columns = {
        "gold": evaluation.scores,
        "kl": evaluation.table("kl"),
        "nll": evaluation.table("pretrain_nll"),
    }
    names = list(evaluation.wins)
    for column in columns.values():
        names.extend(column)
    rows: dict[str, Row] = {}
    for model in evaluation.ordered(names):
        row: Row = {}
        if model in evaluation.wins:
            win = evaluation.wins[model]
            row = {"win_rate": win["mean"], "low": win["ci95"][0], "high": win["ci95"][1]}
        for key, column in columns.items():
            if model in column:
                row[key] = column[model]
        rows[model] = row
    return rows


def _paths(runs: dict[int, Run]) -> dict[str, list[list[Row]]]:
    """Policy with kept checkpoints -> the path of each seed."""
    found: dict[str, list[list[Row]]] = {}
    for run in runs.values():
        evaluation = _evaluation(run)
        if evaluation is not None:
            for name, rows in evaluation.table("over_optimization").items():
                found.setdefault(name, []).append(rows)
    return found


def mean_path(paths: Sequence[Sequence[Row]]) -> list[Row]:
    """Means over seeds at the steps that all paths have, with the standard error over seeds (over
    prompts where there is one seed).
    """
    by_step = [{row["step"]: row for row in path} for path in paths]
    steps = set(by_step[0]).intersection(*by_step[1:])
    rows = []
    for step in sorted(steps):
        at_step = [path[step] for path in by_step]
        mean_row = {"step": step, "kl": float(np.mean([row["kl"] for row in at_step]))}
        for key in ("reward", "gold"):
            values = np.array([row[key] for row in at_step])
            if len(values) > 1:
                error = values.std(ddof=1) / len(values) ** 0.5
            else:
                error = at_step[0][f"{key}_se"]
            mean_row[key] = float(values.mean())
            mean_row[f"{key}_se"] = float(error)
        rows.append(mean_row)
    return rows


def over_optimization(arms: Arms) -> Iterator[Markup]:
    drawn = over_optimization_picture(arms)
    if drawn is None:
        yield html.absent("policies with kept checkpoints (keep_every)")
        return
    yield html.paragraph(
        "Each line is one arm, from the baseline on, through its kept checkpoints; means over"
        " seeds, bands of 95 %. The reward model is what the policy climbs, the judge is what it is"
        " for. Dotted: the best of n samples of the baseline by the same reward model."
    )
    yield from html.figures([drawn])
    rows = []
    for name, path in _mean_paths(arms).items():
        for row in path:
            error = number(row["gold_se"], 3)
            rows.append((name, int(row["step"]), row["kl"], row["reward"], row["gold"], error))
    header = ("arm", "step", "KL, nats", "reward", "score", "standard error")
    table = html.table(header, rows, "Means over seeds at the kept checkpoints")
    yield html.folded("The numbers", [table])


def _mean_paths(arms: Arms) -> dict[str, list[Row]]:
    """Arm, or arm and policy where it has several -> the mean over its seeds."""
    found = {}
    for arm, runs in arms.items():
        by_policy = _paths(runs)
        for policy, paths in by_policy.items():
            name = arm if len(by_policy) == 1 else f"{arm}, {policy}"
            found[name] = mean_path(paths)
    return found


def over_optimization_picture(arms: Arms) -> Picture | None:
    """The arms on one pair of panels, and best-of-n, all as means over seeds."""
    lines: dict[str, Line] = {}
    for name, path in _mean_paths(arms).items():
        if path:
            lines[name] = (numbered(len(lines)), path)
    if not lines:
        return None
    measured: list[Evaluation] = []
    for runs in arms.values():
        every = [_evaluation(run) for run in runs.values()]
        measured += [evaluation for evaluation in every if evaluation is not None]
    judged = any(evaluation.judged_by_reward_model for evaluation in measured)
    score_name = "reward-model score" if judged else "gold score"
    baselines = {evaluation.baseline for evaluation in measured}
    baseline = baselines.pop() if len(baselines) == 1 else "the baseline"
    points = _mean_best_of_n(measured)
    return picture("over-optimization", lines, points, score_name, baseline)


def _mean_best_of_n(measured: Sequence[Evaluation]) -> list[Row]:
    """KL, reward and score at each n, means over all evaluations."""
    by_n: dict[int, list[Row]] = {}
    for evaluation in measured:
        for point in evaluation.numbers.get("best_of_n") or []:
            by_n.setdefault(point["n"], []).append(point)
    means = []
    for _, points in sorted(by_n.items()):
        row = {key: float(np.mean([p[key] for p in points])) for key in ("kl", "reward", "gold")}
        means.append(row)
    return means


def models(arms: Arms) -> Iterator[Markup]:
    for arm, runs in arms.items():
        by_seed = {seed: _models(run) for seed, run in sorted(runs.items())}
        by_seed = {seed: rows for seed, rows in by_seed.items() if rows}
        if not by_seed:
            yield html.absent(f"an evaluation of the arm {arm}")
            continue
        names: dict[str, None] = {}
        for rows in by_seed.values():
            names |= dict.fromkeys(rows)
        shown = next(filter(None, map(_evaluation, runs.values()))).shown
        table = [
            _model_row(shown(name), [rows.get(name, {}) for rows in by_seed.values()])
            for name in names
        ]
        wins = [f"wins, seed {seed}" for seed in by_seed]
        header, filled = html.without_empty(
            ("model", *wins, "wins", "score", "KL to the baseline, nats", "pretraining loss"), table
        )
        caption = (
            f"{arm}: wins against the baseline of the same run, with 95 % intervals; means over"
            " seeds"
        )
        yield html.table(header, filled, caption)


def _model_row(name: str, of_seeds: Sequence[Row]) -> list[Any]:
    """Name, wins of each seed, and means over the seeds."""
    means = {}
    for key in ("win_rate", "gold", "kl", "nll"):
        values = [row[key] for row in of_seeds if key in row]
        means[key] = float(np.mean(values)) if values else None
    wins = [_rate(row) for row in of_seeds]
    return [name, *wins, means["win_rate"], means["gold"], means["kl"], number(means["nll"], 3)]


def _rate(row: Row) -> str:
    if "win_rate" not in row:
        return "–"
    return f"{number(row['win_rate'])} ({number(row['low'])} to {number(row['high'])})"
