"""Reward and the judge's score over KL, through the kept checkpoints of policies: where the reward
rises and the score falls, the reward model is over-optimized.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from instruct_jax.report.evaluations import BEST_OF_N_SHOWN, Evaluation
from instruct_jax.report.looks import Look, look_in
from instruct_jax.report.plots import style
from instruct_jax.report.plots.style import INK, Picture
from instruct_jax.text import number

# step, kl (nats), reward, gold, and the standard errors reward_se, gold_se
Row = Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Line:
    """The path of one policy, or of one arm of a study."""

    name: str
    look: Look
    rows: Sequence[Row]


def over_optimization(evaluation: Evaluation) -> Picture | None:
    """The policies of one run."""
    lines = []
    for model, rows in evaluation.table("over_optimization").items():
        if rows:
            name = evaluation.shown(model)
            look = look_in(evaluation, model)
            lines.append(Line(name, look, rows))
    if not lines:
        return None
    return picture(
        f"over-optimization{evaluation.suffix}",
        lines,
        evaluation.best_of_n,
        evaluation.score_name,
        evaluation.baseline,
    )


def picture(
    name: str,
    lines: Sequence[Line],
    best_of_n: Sequence[Row],
    score_name: str,
    baseline: str,
) -> Picture:
    """Two panels over the KL from the baseline: reward above, the judge's score below."""
    figure, axes = style.new(height=5.0)
    axes.remove()
    above, below = figure.subplots(2, 1, sharex=True)
    for axes, key in ((above, "reward"), (below, "gold")):
        for line in lines:
            _draw(axes, line, key)
        if best_of_n:
            _draw_best_of_n(axes, best_of_n, key)
    above.set_ylabel("reward-model score")
    below.set_ylabel(score_name)
    style.kl_axis(below, baseline)
    style.legend_above(figure, above, 3)
    texts = [_in_words(line) for line in lines]
    return Picture(
        name,
        "Reward and score over KL",
        f"Over the KL from {baseline}: {'; '.join(texts)}.",
        figure,
    )


def _draw(axes: Axes, line: Line, key: str) -> None:
    kl = np.maximum(_column(line.rows, "kl"), 0)
    mean = _column(line.rows, key)
    half = 1.96 * _column(line.rows, f"{key}_se")
    axes.fill_between(
        kl,
        mean - half,
        mean + half,
        color=line.look.color,
        alpha=0.12,
        linewidth=0,
    )
    label = style.label(line.name)
    axes.plot(kl, mean, markersize=3.5, label=label, **line.look.path)


def _draw_best_of_n(axes: Axes, points: Sequence[Row], key: str) -> None:
    axes.plot(
        _column(points, "kl"),
        _column(points, key),
        color=INK,
        marker="P",
        markersize=5,
        linewidth=1,
        linestyle=":",
        label=BEST_OF_N_SHOWN,
    )


def _column(rows: Sequence[Row], key: str) -> np.ndarray:
    return np.array([row.get(key, 0.0) for row in rows])


def _in_words(line: Line) -> str:
    last = line.rows[-1]
    top = max(line.rows, key=lambda row: row["gold"])
    reward = number(last["reward"])
    score = number(last["gold"])
    end = number(last["kl"], 1)
    highest = number(top["gold"])
    where = number(top["kl"], 1)
    return (
        f"{line.name} ends at {end} nats with reward {reward} and score {score}, the highest score"
        f" is {highest} at {where} nats"
    )
