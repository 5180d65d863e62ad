"""Pictures of reward models against the people whose rankings they learned from; all models of a
run share them.
"""

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from instruct_jax.report.looks import look
from instruct_jax.report.plots import style
from instruct_jax.report.plots.style import INK, Picture
from instruct_jax.report.run_data import Run
from instruct_jax.report.text import listed
from instruct_jax.text import number

ACCURACIES = {
    "accuracy_train": "rankings it was trained on",
    "accuracy_heldout_prompts": "held-out prompts",
    "accuracy_heldout_labelers": "held-out labelers",
    "accuracy_gold": "against the gold score",
}
Measured = dict[str, dict[str, Any]]  # reward model -> what was measured of it


def accuracy(run: Run, models: Measured) -> Picture | None:
    known: set[str] = set()
    for measured in models.values():
        for key, value in measured.items():
            if value is not None:
                known.add(key)
    keys = [key for key in ACCURACIES if key in known]
    if not keys:
        return None
    figure, axes = style.new(height=1.0 + 0.36 * len(keys))
    rows = keys[::-1]  # rows are numbered from the bottom
    lowest = 0.5
    texts = []
    for name, measured in models.items():
        values = {}
        for key in keys:
            if measured.get(key) is not None:
                values[key] = measured[key]
        lowest = min([lowest, *values.values()])
        axes.plot(
            list(values.values()),
            [rows.index(key) for key in values],
            markersize=8,
            label=style.label(name),
            **look(run, name).points,
        )
        if len(models) == 1:
            _bars(axes, rows, values, look(run, name).color)
        parts = []
        for key, value in values.items():
            parts.append(f"{ACCURACIES[key]} {number(value, 3)}")
        texts.append(f"{name}: {', '.join(parts)}")
    style.rows(axes, [ACCURACIES[key] for key in rows], "share of pairs in the right order")
    axes.set_xlim(lowest, 1.0)
    texts += _agreements(axes, models)
    style.legend_above(figure, axes, 2)
    return Picture(
        "reward-accuracy",
        "Accuracy on pairs",
        f"Share of pairs in the right order. {'; '.join(texts)}.",
        figure,
    )


def _bars(
    axes: Axes,
    rows: list[str],
    values: dict[str, float],
    color: str,
) -> None:
    """A line from chance to each value, and the value at the right."""
    for key, value in values.items():
        y = rows.index(key)
        axes.plot([0.5, value], [y, y], color=color, linewidth=2.5)
        axes.annotate(number(value, 3), (1.0, y), ha="right", va="center")


def _agreements(axes: Axes, models: Measured) -> list[str]:
    """A line for how often labelers agree with each other; returns them in words."""
    agreements: dict[float, None] = {}
    for measured in models.values():
        agreement = measured.get("labeler_agreement")
        if agreement is not None:
            agreements[agreement] = None
    texts = []
    for agreement in agreements:
        text = f"labelers agree with each other: {number(agreement, 3)}"
        axes.axvline(
            agreement,
            color=INK,
            linewidth=1.2,
            linestyle="--",
            label=text,
        )
        texts.append(text)
    return texts


def calibration(run: Run, models: Measured) -> Picture | None:
    figure, axes = style.new()
    axes.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle="--", label="perfect")
    lowest = 0.5
    texts = []
    for name, measured in models.items():
        bins = measured.get("calibration")
        if not bins:
            continue
        predicted = _column(bins, "predicted")
        observed = _column(bins, "observed")
        n = np.maximum(_column(bins, "n"), 1)
        error = np.sqrt(observed * (1 - observed) / n)
        axes.errorbar(
            predicted,
            observed,
            yerr=1.96 * error,
            markersize=5,
            linewidth=1.4,
            elinewidth=1,
            capsize=2,
            label=style.label(name),
            **look(run, name).path,
        )
        lowest = min(lowest, predicted.min(), observed.min())
        parts = []
        for x, y in zip(predicted, observed, strict=True):
            parts.append(f"{number(x)} predicted, {number(y)} observed")
        texts.append(f"{name} {listed(parts)}")
    if not texts:
        return None
    axes.set_xlim(lowest - 0.03, 1.02)
    axes.set_ylim(lowest - 0.03, 1.02)
    axes.set_xlabel("predicted chance that the higher score is preferred")
    axes.set_ylabel("how often it was")
    axes.legend(loc="upper left")
    return Picture(
        "calibration",
        "Calibration on held-out pairs",
        f"On held-out pairs: {'; '.join(texts)}.",
        figure,
    )


def score_by_length(run: Run, models: Measured) -> Picture | None:
    figure, axes = style.new()
    texts = []
    for name, measured in models.items():
        bins = measured.get("score_by_length")
        if not bins:
            continue
        lengths = _column(bins, "length")
        scores = _column(bins, "score")
        axes.plot(
            lengths,
            scores,
            markersize=5,
            label=style.label(name),
            **look(run, name).path,
        )
        parts = []
        for length, score in zip(lengths, scores, strict=True):
            parts.append(f"{number(score)} at {number(length, 0)} tokens")
        texts.append(f"{name} {listed(parts)}")
    if not texts:
        return None
    axes.set_xlabel("tokens of prompt and reply")
    axes.set_ylabel("mean reward-model score")
    if len(texts) > 1:
        axes.legend(loc="best")
    return Picture(
        "score-by-length",
        "Reward-model score by length",
        f"Mean score: {'; '.join(texts)}.",
        figure,
    )


def _column(bins: list[dict[str, float]], key: str) -> np.ndarray:
    return np.array([part[key] for part in bins], float)
