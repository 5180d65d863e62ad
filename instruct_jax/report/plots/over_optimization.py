"""Reward and the judge's score over KL, through the kept checkpoints of policies: where the reward
rises and the score falls, the reward model is over-optimized.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from instruct_jax.report.evaluations import BEST_OF_N, SHOWN, Evaluation
from instruct_jax.report.looks import Look, look_in
from instruct_jax.report.plots import style
from instruct_jax.report.plots.style import INK, Picture
from instruct_jax.report.text import number

# step, kl (nats), reward, gold, and the standard errors reward_se, gold_se
Row = Mapping[str, float]
Line = tuple[Look, Sequence[Row]]


def over_optimization(evaluation: Evaluation) -> Picture | None:
    """The policies of one run."""
    lines: dict[str, Line] = {}
    for model, rows in evaluation.table("over_optimization").items():
        if rows:
            lines[evaluation.shown(model)] = (look_in(evaluation, model), rows)
    if not lines:
        return None
    name = f"over-optimization{evaluation.suffix}"
    best_of_n = evaluation.numbers.get("best_of_n") or []
    return picture(name, lines, best_of_n, evaluation.score_name, evaluation.baseline)


def picture(
    name: str, lines: Mapping[str, Line], best_of_n: Sequence[Row], score_name: str, baseline: str
) -> Picture:
    """Two panels over the KL from the baseline: reward above, the judge's score below."""
    figure, axes = style.new(height=5.0)
    axes.remove()
    above, below = figure.subplots(2, 1, sharex=True)
    for panel, key in ((above, "reward"), (below, "gold")):
        for line, (look, rows) in lines.items():
            _draw(panel, rows, key, look, line)
        if best_of_n:
            points = sorted(best_of_n, key=lambda point: point["kl"])
            kl = [point["kl"] for point in points]
            score = [point[key] for point in points]
            marks = {"marker": "P", "markersize": 5, "linewidth": 1, "linestyle": ":"}
            panel.plot(kl, score, color=INK, label=SHOWN[BEST_OF_N], **marks)
    above.set_ylabel("reward-model score")
    below.set_ylabel(score_name)
    style.kl_axis(below, baseline)
    style.legend_above(figure, above, 3)
    texts = [_in_words(line, rows) for line, (_, rows) in lines.items()]
    alt = f"Over the KL from {baseline}: {'; '.join(texts)}."
    return Picture(name, "Reward and score over KL", alt, figure)


def _draw(axes: Axes, rows: Sequence[Row], key: str, look: Look, label: str) -> None:
    kl = np.maximum([row["kl"] for row in rows], 0)
    mean = np.array([row[key] for row in rows])
    half = 1.96 * np.array([row.get(f"{key}_se", 0.0) for row in rows])
    color = look.color
    axes.fill_between(kl, mean - half, mean + half, color=color, alpha=0.12, linewidth=0)
    marks = {"marker": look.marker, "markersize": 3.5, "linestyle": look.line}
    axes.plot(kl, mean, color=color, label=style.label(label), **marks)


def _in_words(name: str, rows: Sequence[Row]) -> str:
    last = rows[-1]
    top = max(rows, key=lambda row: row["gold"])
    return (
        f"{name} ends at {number(last['kl'], 1)} nats with reward {number(last['reward'])}"
        f" and score {number(last['gold'])}, the highest score is {number(top['gold'])} at"
        f" {number(top['kl'], 1)} nats"
    )
