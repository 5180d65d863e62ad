"""Pictures of reward models against the people whose rankings they learned from; all models of a
run share them.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from instruct_jax.report.looks import Look, look
from instruct_jax.report.plots import style
from instruct_jax.report.plots.style import INK, Picture
from instruct_jax.report.run_data import Run
from instruct_jax.report.text import listed, number

ACCURACIES = {
    "accuracy_train": "rankings it was trained on",
    "accuracy_heldout_prompts": "held-out prompts",
    "accuracy_heldout_labelers": "held-out labelers",
    "accuracy_gold": "against the gold score",
}
Measured = Mapping[str, Mapping[str, Any]]  # reward model -> what was measured of it


def accuracy(run: Run, models: Measured) -> Picture | None:
    shown = [key for key in ACCURACIES if any(m.get(key) is not None for m in models.values())]
    if not shown:
        return None
    figure, axes = style.new(height=1.0 + 0.36 * len(shown))
    keys = shown[::-1]  # rows are numbered from the bottom
    low, texts = 0.5, []
    for name, measured in models.items():
        rows = [y for y, key in enumerate(keys) if measured.get(key) is not None]
        values = [measured[keys[y]] for y in rows]
        low = min([low, *values])
        marks = _marks(look(run, name))
        axes.plot(values, rows, **marks, markersize=8, label=style.label(name))
        if len(models) == 1:
            for y, value in zip(rows, values, strict=True):
                axes.plot([0.5, value], [y, y], color=marks["color"], linewidth=2.5)
                axes.annotate(number(value, 3), (1.0, y), ha="right", va="center")
        said = [f"{ACCURACIES[key]} {number(measured.get(key), 3)}" for key in shown]
        texts.append(f"{name}: {', '.join(said)}")
    style.rows(axes, [ACCURACIES[key] for key in keys], "share of pairs in the right order")
    axes.set_xlim(low, 1.0)
    agreements = {m["labeler_agreement"] for m in models.values() if m.get("labeler_agreement")}
    for agreement in sorted(agreements):
        text = f"labelers agree with each other: {number(agreement, 3)}"
        axes.axvline(agreement, color=INK, linewidth=1.2, linestyle="--", label=text)
        texts.append(text)
    if agreements or len(models) > 1:
        style.legend_above(figure, axes, 2)
    title = "Accuracy of the reward model" if len(models) == 1 else "Accuracy of the reward models"
    alt = f"Share of pairs in the right order. {'; '.join(texts)}."
    return Picture("reward-accuracy", title, alt, figure)


def calibration(run: Run, models: Measured) -> Picture | None:
    measured = {name: m["calibration"] for name, m in models.items() if m.get("calibration")}
    if not measured:
        return None
    figure, axes = style.new()
    axes.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle="--", label="perfect")
    low, texts = 0.5, []
    for name, bins in measured.items():
        x, y, n = (_column(bins, key) for key in ("predicted", "observed", "n"))
        half = 1.96 * np.sqrt(y * (1 - y) / np.maximum(n, 1))
        marks = _marks(look(run, name)) | {"linestyle": look(run, name).line}
        axes.errorbar(
            x,
            y,
            yerr=half,
            markersize=5,
            linewidth=1.4,
            elinewidth=1,
            capsize=2,
            label=style.label(name),
            **marks,
        )
        low = min(low, x.min(), y.min())
        pairs = zip(x, y, strict=True)
        said = [f"{number(a)} predicted, {number(b)} observed" for a, b in pairs]
        texts.append(f"{name} {listed(said)}")
    axes.set_xlim(low - 0.03, 1.02)
    axes.set_ylim(low - 0.03, 1.02)
    axes.set_xlabel("predicted chance that the higher score is preferred")
    axes.set_ylabel("how often it was")
    axes.legend(loc="upper left")
    alt = f"On held-out pairs: {'; '.join(texts)}."
    return Picture("calibration", "Calibration on held-out pairs", alt, figure)


def score_by_length(run: Run, models: Measured) -> Picture | None:
    measured = {
        name: m["score_by_length"] for name, m in models.items() if m.get("score_by_length")
    }
    if not measured:
        return None
    figure, axes = style.new()
    texts = []
    for name, bins in measured.items():
        x, y = _column(bins, "length"), _column(bins, "score")
        marks = _marks(look(run, name)) | {"linestyle": look(run, name).line}
        axes.plot(x, y, markersize=5, label=style.label(name), **marks)
        pairs = zip(x, y, strict=True)
        said = [f"{number(b)} at {number(a, 0)} tokens" for a, b in pairs]
        texts.append(f"{name} {listed(said)}")
    axes.set_xlabel("tokens of prompt and reply")
    axes.set_ylabel("mean reward-model score")
    if len(measured) > 1:
        axes.legend(loc="best")
    alt = f"Mean score: {'; '.join(texts)}."
    return Picture("score-by-length", "Reward-model score by length", alt, figure)


def _column(bins: list[dict[str, float]], key: str) -> np.ndarray:
    return np.array([row[key] for row in bins], float)


def _marks(look: Look) -> dict[str, Any]:
    return {"color": look.color, "marker": look.marker, "linestyle": "none"}
