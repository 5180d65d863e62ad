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
from instruct_jax.report.plots.evaluation import models_of
from instruct_jax.report.plots.over_optimization import Line, picture
from instruct_jax.report.plots.style import Picture
from instruct_jax.report.run_data import Run, read_run
from instruct_jax.report.text import listed, moment
from instruct_jax.runtime.folders import write_atomic
from instruct_jax.text import number

Row = dict[str, float]
Checkpoints = list[Row]  # of a policy through its kept checkpoints
Seeds = dict[int, Run]  # what the run of each seed left
Arms = dict[str, Seeds]

# number of a model -> its digits in the table
MEANS = {"win_rate": 2, "gold": 2, "kl": 2, "nll": 3}


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
        seeds = arms.setdefault(run.arm, {})
        seeds[run.seed] = read_run(run.folder)
    numbers = json.dumps(summary(arms), indent=1)
    write_atomic(out / "summary.json", numbers + "\n")
    with style.styled():
        climbed = html.joined(over_optimization(arms))
        compared = html.joined(models(arms))
        drawn = over_optimization_picture(arms)
        if drawn:
            style.write_png(drawn, out / f"{drawn.name}.png")
    sections = [
        ("over-optimization", "Reward, the judge's score, and KL", climbed),
        ("models", "Every model of every arm", compared),
    ]
    names = listed(list(arms))
    seeds = listed(_seeds(arms))
    page = html.page(
        command="study",
        name=out.resolve().name,
        started=_started(arms),
        abstract=f"A study of {names}, each over the seeds {seeds}.",
        sections=sections,
    )
    write_atomic(out / "study.html", page)
    return out / "study.html"


def _seeds(arms: Arms) -> list[str]:
    seeds: set[int] = set()
    for runs in arms.values():
        seeds.update(runs)
    return [str(seed) for seed in sorted(seeds)]


def _started(arms: Arms) -> str:
    """When the first run began."""
    times = []
    for runs in arms.values():
        for run in runs.values():
            if "started" in run.about:
                times.append(str(run.about["started"]))
    return moment(min(times, default="unknown"))


def _evaluation(run: Run) -> Evaluation | None:
    measured = evaluations(run)
    return measured[0] if measured else None


def _evaluations(arms: Arms) -> list[Evaluation]:
    """Those of all runs that have one."""
    results = []
    for runs in arms.values():
        for run in runs.values():
            evaluation = _evaluation(run)
            if evaluation:
                results.append(evaluation)
    return results


def summary(arms: Arms) -> dict[str, Any]:
    """arm -> {"models": model -> seed -> win rate, score, KL, loss on pretraining text; "path":
    policy -> the mean over seeds at each kept step}.
    """
    results = {}
    for arm, runs in arms.items():
        by_model: dict[str, dict[int, Row]] = {}
        for seed, run in runs.items():
            for model, row in _models(run).items():
                by_model.setdefault(model, {})[seed] = row
        results[arm] = {"models": by_model, "path": _mean_paths(runs)}
    return results


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
    rows: dict[str, Row] = {}
    for model in models_of(evaluation, [evaluation.wins, *columns.values()]):
        row: Row = {}
        win = evaluation.wins.get(model)
        if win:
            row = {"win_rate": win.mean, "low": win.low, "high": win.high}
        for key, column in columns.items():
            if model in column:
                row[key] = column[model]
        rows[model] = row
    return rows


def _mean_paths(runs: Seeds) -> dict[str, Checkpoints]:
    """Policy with kept checkpoints -> the mean of its paths over the seeds."""
    paths: dict[str, list[Checkpoints]] = {}
    for run in runs.values():
        evaluation = _evaluation(run)
        if evaluation:
            for policy, rows in evaluation.table("over_optimization").items():
                paths.setdefault(policy, []).append(rows)
    return {policy: mean_path(of_seeds) for policy, of_seeds in paths.items()}


def mean_path(paths: Sequence[Checkpoints]) -> Checkpoints:
    """Means over seeds at the steps that all paths have, with the standard error over seeds (over
    prompts where there is one seed).
    """
    by_step = []
    for path in paths:
        by_step.append({row["step"]: row for row in path})
    steps = set(by_step[0]).intersection(*by_step[1:])
    means = []
    for step in sorted(steps):
        rows = [path[step] for path in by_step]
        means.append(_mean_row(rows))
    return means


def _mean_row(rows: Sequence[Row]) -> Row:
    """`rows`: the same step of each seed."""
    first = rows[0]
    mean = {"step": first["step"], "kl": _mean(rows, "kl")}
    for key in ("reward", "gold"):
        mean[key] = _mean(rows, key)
        error = first[f"{key}_se"]
        if len(rows) > 1:
            spread = np.std([row[key] for row in rows], ddof=1)
            error = float(spread / len(rows) ** 0.5)
        mean[f"{key}_se"] = error
    return mean


def _mean(rows: Sequence[Row], key: str) -> float:
    return float(np.mean([row[key] for row in rows]))


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
    for line in _lines(arms):
        for point in line.rows:
            row = (
                line.name,
                int(point["step"]),
                point["kl"],
                point["reward"],
                point["gold"],
                number(point["gold_se"], 3),
            )
            rows.append(row)
    header = ("arm", "step", "KL, nats", "reward", "score", "standard error")
    table = html.table(header, rows, "Means over seeds at the kept checkpoints")
    yield html.folded("The numbers", [table])


def _lines(arms: Arms) -> list[Line]:
    """One for each arm, or for each policy of an arm that has several."""
    lines: list[Line] = []
    for arm, runs in arms.items():
        paths = _mean_paths(runs)
        for policy, path in paths.items():
            name = arm if len(paths) == 1 else f"{arm}, {policy}"
            if path:
                lines.append(Line(name, numbered(len(lines)), path))
    return lines


def over_optimization_picture(arms: Arms) -> Picture | None:
    """The arms on one pair of panels, and best-of-n, all as means over seeds."""
    lines = _lines(arms)
    if not lines:
        return None
    measured = _evaluations(arms)
    score_name = "gold score"
    if any(evaluation.judged_by_reward_model for evaluation in measured):
        score_name = "reward-model score"
    baselines = {evaluation.baseline for evaluation in measured}
    baseline = baselines.pop() if len(baselines) == 1 else "the baseline"
    points = _mean_best_of_n(measured)
    return picture("over-optimization", lines, points, score_name, baseline)


def _mean_best_of_n(measured: Sequence[Evaluation]) -> list[Row]:
    """KL, reward and score at each n, means over all evaluations."""
    by_n: dict[int, list[Row]] = {}
    for evaluation in measured:
        for point in evaluation.best_of_n:
            by_n.setdefault(point["n"], []).append(point)
    means = []
    for n in sorted(by_n):
        points = by_n[n]
        means.append({key: _mean(points, key) for key in ("kl", "reward", "gold")})
    return means


def models(arms: Arms) -> Iterator[Markup]:
    for arm, runs in arms.items():
        measured = _evaluations({arm: runs})
        if measured:
            yield _table(arm, runs, measured[0])
        else:
            yield html.absent(f"an evaluation of the arm {arm}")


def _table(arm: str, runs: Seeds, first: Evaluation) -> Markup:
    """`first`: the evaluation that names and orders the models."""
    by_seed = {}
    for seed in sorted(runs):
        numbers = _models(runs[seed])
        if numbers:
            by_seed[seed] = numbers
    rows = []
    for model in models_of(first, by_seed.values()):
        of_seeds = [numbers.get(model, {}) for numbers in by_seed.values()]
        row = [first.shown(model)]
        row += [_rate(numbers) for numbers in of_seeds]
        for key, digits in MEANS.items():
            known = [numbers for numbers in of_seeds if key in numbers]
            row.append(number(_mean(known, key), digits) if known else "–")
        rows.append(row)
    seeds = [f"wins, seed {seed}" for seed in by_seed]
    header = ("model", *seeds, "wins", "score", "KL to the baseline, nats", "pretraining loss")
    header, rows = html.without_empty(header, rows)
    caption = (
        f"{arm}: wins against the baseline of the same run, with 95 % intervals; means over seeds"
    )
    return html.table(header, rows, caption)


def _rate(row: Row) -> str:
    if "win_rate" not in row:
        return "–"
    mean = number(row["win_rate"])
    low = number(row["low"])
    high = number(row["high"])
    return f"{mean} ({low} to {high})"
