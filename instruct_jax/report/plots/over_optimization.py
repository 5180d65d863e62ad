"""Reward and the judge's score over KL, through the kept checkpoints of PPO runs: where reward
rises and the score falls, they part.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from instruct_jax.report.plots import style
from instruct_jax.report.plots.style import TICKS, Picture
from instruct_jax.report.run_data import Run
from instruct_jax.report.text import model_name, number

# step, kl (nats), reward, gold, and the standard errors reward_se, gold_se
Row = Mapping[str, float]


def over_optimisation(run: Run) -> Picture | None:
    """The PPO runs of one run folder."""
    paths = run.evaluation.get("over_optimisation", {})
    judge = "reward model" if run.evaluation.get("judge") == "reward model" else "gold score"
    lines = {
        model_name(stage): (style.colour(stage), rows) for stage, rows in paths.items() if rows
    }
    return picture(lines, run.evaluation.get("best_of_n", []), judge) if lines else None


def picture(
    lines: Mapping[str, tuple[str, Sequence[Row]]], best_of_n: Sequence[Row], judge: str
) -> Picture:
    """Two panels over the KL from SFT, on the scale of its square root (Gao et al.

    2022): reward above, the judge's score below.
    """
    figure, above = style.new(height=5.0)
    above.remove()
    panels = dict(zip(("reward", "gold"), figure.subplots(2, 1, sharex=True), strict=True))
    for key, axes in panels.items():
        for name, (colour, rows) in lines.items():
            x, y = (np.array([row[k] for row in rows]) for k in ("kl", key))
            x, error = (
                np.maximum(x, 0),
                1.96 * np.array([row.get(f"{key}_se", 0.0) for row in rows]),
            )
            axes.fill_between(x, y - error, y + error, color=colour, alpha=0.12, linewidth=0)
            axes.plot(x, y, color=colour, marker="o", markersize=3.5, label=style.label(name))
        if best_of_n:
            points = sorted(best_of_n, key=lambda p: p["kl"])
            look = {
                "color": style.INK,
                "marker": "P",
                "markersize": 5,
                "linewidth": 1,
                "linestyle": ":",
            }
            axes.plot(
                [p["kl"] for p in points],
                [p[key] for p in points],
                label=model_name("best_of_n"),
                **look,
            )
    panels["reward"].set_ylabel("reward-model score")
    panels["gold"].set_ylabel(judge)
    axes = panels["gold"]
    axes.set_xscale("function", functions=(lambda kl: np.sqrt(np.maximum(kl, 0)), np.square))
    axes.set_xlim(0, axes.get_xlim()[1])
    axes.set_xticks([tick for tick in TICKS if tick <= axes.get_xlim()[1]])
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("KL from the SFT model, nats per reply (square-root scale)")
    style.legend_above(figure, panels["reward"], 3)
    said = [_said(name, rows) for name, (_, rows) in lines.items()]
    return Picture(
        "over-optimisation",
        "Reward and score over KL",
        f"Over the KL from SFT: {'; '.join(said)}.",
        figure,
    )


def _said(name: str, rows: Sequence[Row]) -> str:
    last, top = rows[-1], max(rows, key=lambda row: row["gold"])
    return (
        f"{name} ends at {number(last['kl'], 1)} nats with reward {number(last['reward'])} and"
        f" score {number(last['gold'])}, the highest score is {number(top['gold'])} at"
        f" {number(top['kl'], 1)} nats"
    )
