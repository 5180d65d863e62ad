"""Pictures of the evaluation: models against each other, the reward model against people,
best-of-n, and time.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from instruct_jax.report.plots import style
from instruct_jax.report.plots.style import Picture
from instruct_jax.report.run_data import Run
from instruct_jax.report.text import duration, listed, model_name, number, ordered, percent

INK = style.INK
ACCURACIES = {
    "accuracy_train": "rankings it was trained on",
    "accuracy_heldout_prompts": "held-out prompts",
    "accuracy_heldout_labelers": "held-out labelers",
    "accuracy_gold": "against the gold score",
}
MANNERS = {
    "rude": "Replies with a rude word",
    "fluff": "Empty phrases per reply",
    "length": "Tokens per reply",
    "ended": "Replies that end by themselves",
}


def win_rates(run: Run) -> Picture | None:
    """The shape of the paper's figure 1: one group per temperature, the SFT model's own 0.5 as a
    line.
    """
    groups = {t: wins for t, wins in run.evaluation.get("win_rate_vs_sft", {}).items() if wins}
    if not groups and run.summary.get("win_rate_vs_sft"):
        groups = {"": run.summary["win_rate_vs_sft"]}
    if not groups:
        return None
    models = ordered({model for wins in groups.values() for model in wins})
    figure, axes = style.new(height=3.7)
    axes.axhline(0.5, color=INK, linewidth=1, linestyle="--")
    for place, model in enumerate(models):
        at = [
            (group + (place - (len(models) - 1) / 2) * 0.8 / len(models), wins[model])
            for group, wins in enumerate(groups.values())
            if model in wins
        ]
        x, y = [a for a, _ in at], [win["mean"] for _, win in at]
        spread = [
            [max(win["mean"] - win["ci95"][0], 0) for _, win in at],
            [max(win["ci95"][1] - win["mean"], 0) for _, win in at],
        ]
        colour, hollow = style.colour(model), model == "sft_control"
        face = "none" if hollow else colour
        look = {
            "color": colour,
            "marker": style.marker(model),
            "markerfacecolor": face,
            "markersize": 6,
            "linestyle": "none",
        }
        axes.errorbar(x, y, yerr=spread, elinewidth=1.4, capsize=2.5, **look)
        axes.plot([], [], label=style.label(model_name(model)), **look)
    for edge in range(1, len(groups)):
        axes.axvline(edge - 0.5, color=INK, alpha=0.15, linewidth=0.8)
    axes.set_xlim(-0.5, len(groups) - 0.5)
    axes.set_xticks(range(len(groups)), [f"temperature {t}" if t else "" for t in groups])
    axes.grid(visible=False, axis="x")
    axes.set_ylim(0, 1)
    axes.set_ylabel("preferred to the SFT model")
    style.legend_above(figure, axes, 3)
    said = [
        (f"at temperature {t} " if t else "")
        + ", ".join(f"{model_name(m)} {number(wins[m]['mean'])}" for m in models if m in wins)
        for t, wins in groups.items()
    ]
    return Picture(
        "win-rates",
        "Win rate against the SFT model",
        f"Share of prompts on which each model beats SFT: {'; '.join(said)}.",
        figure,
    )


def use_cases(run: Run) -> Picture | None:
    cases: dict[str, Any] = run.evaluation.get("by_use_case", {})
    if not cases:
        return None
    names = sorted(cases, reverse=True)
    models = [
        m for m in ordered({m for scores in cases.values() for m in scores}) if m != "sft_control"
    ]
    figure, axes = style.new(height=1.1 + 0.34 * len(names))
    for model in models:
        at = [
            (cases[name][model]["mean"], y) for y, name in enumerate(names) if model in cases[name]
        ]
        axes.plot(
            [x for x, _ in at],
            [y for _, y in at],
            color=style.colour(model),
            marker=style.marker(model),
            markersize=6,
            alpha=0.85,
            linestyle="none",
            label=style.label(model_name(model)),
        )
    axes.set_yticks(range(len(names)), [style.label(name.replace("_", " "), 22) for name in names])
    axes.set_xlabel(f"{_judge(run)}, mean")
    style.legend_above(figure, axes, 3)
    said = [
        f"{name} "
        + ", ".join(
            f"{model_name(m)} {number(cases[name][m]['mean'])}" for m in models if m in cases[name]
        )
        for name in reversed(names)
    ]
    return Picture(
        "use-cases", "Score by use case", f"Mean score by use case: {'; '.join(said)}.", figure
    )


def alignment_tax(run: Run) -> Picture | None:
    nll: dict[str, float] = run.evaluation.get("pretrain_nll") or run.summary.get(
        "pretrain_nll", {}
    )
    if not nll:
        return None
    figure, axes = style.new(height=0.9 + 0.38 * len(nll))
    models = ordered(nll)[::-1]
    for y, model in enumerate(models):
        axes.plot(
            [nll.get("base", nll[model]), nll[model]],
            [y, y],
            color=style.colour(model),
            linewidth=2.5,
        )
        axes.plot(
            [nll[model]], [y], color=style.colour(model), marker=style.marker(model), markersize=8
        )
        axes.annotate(
            number(nll[model], 3),
            (nll[model], y),
            xytext=(9, 0),
            textcoords="offset points",
            va="center",
        )
    if "base" in nll:
        axes.axvline(nll["base"], color=INK, linewidth=1, linestyle="--")
    _rows(
        axes, [model_name(m) for m in models], "loss on held-out pretraining text, nats per token"
    )
    axes.margins(x=0.18)
    said = [f"{model_name(m)} {number(nll[m], 3)}" for m in models[::-1]]
    return Picture(
        "alignment-tax",
        "Alignment tax",
        f"Loss on held-out pretraining text: {', '.join(said)}.",
        figure,
    )


def accuracy(run: Run) -> Picture | None:
    found: dict[str, Any] = {
        **run.summary.get("reward_model", {}),
        **run.evaluation.get("reward_model", {}),
    }
    shown = {text: found[key] for key, text in ACCURACIES.items() if found.get(key) is not None}
    if not shown:
        return None
    figure, axes = style.new(height=1.0 + 0.36 * len(shown))
    names = list(shown)[::-1]
    axes.barh(range(len(names)), [shown[name] for name in names], color=style.PURPLE, height=0.55)
    for y, name in enumerate(names):
        axes.annotate(number(shown[name], 3), (1.0, y), ha="right", va="center")
    _rows(axes, names, "share of pairs in the right order")
    axes.set_xlim(0.5, 1.0)
    said = [f"{name} {number(value, 3)}" for name, value in shown.items()]
    if (agreement := found.get("labeler_agreement")) is not None:
        axes.axvline(
            agreement,
            color=INK,
            linewidth=1.2,
            linestyle="--",
            label=f"labelers agree with each other: {number(agreement, 3)}",
        )
        said.append(f"labelers agree with each other on {number(agreement, 3)}")
        style.legend_above(figure, axes)
    return Picture(
        "reward-accuracy",
        "Accuracy of the reward model",
        f"Share of pairs ordered rightly: {', '.join(said)}.",
        figure,
    )


def calibration(run: Run) -> Picture | None:
    bins: list[dict[str, float]] = run.evaluation.get("reward_model", {}).get("calibration", [])
    if not bins:
        return None
    figure, axes = style.new()
    x, y, n = (np.array([b[key] for b in bins], float) for key in ("predicted", "observed", "n"))
    axes.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle="--", label="perfect")
    half = 1.96 * np.sqrt(y * (1 - y) / np.maximum(n, 1))
    axes.errorbar(
        x,
        y,
        yerr=half,
        color=style.PURPLE,
        marker="o",
        markersize=5,
        linewidth=1.4,
        elinewidth=1,
        capsize=2,
        label="reward model",
    )
    low = min(x.min(), y.min(), 0.5) - 0.03
    axes.set_xlim(low, 1.02)
    axes.set_ylim(low, 1.02)
    axes.set_xlabel("predicted chance that the higher score is preferred")
    axes.set_ylabel("how often it was")
    axes.legend(loc="upper left")
    said = listed(
        [f"{number(a)} predicted, {number(b)} observed" for a, b in zip(x, y, strict=True)]
    )
    return Picture(
        "calibration", "Calibration of the reward model", f"On held-out pairs: {said}.", figure
    )


def score_by_length(run: Run) -> Picture | None:
    bins: list[dict[str, float]] = run.evaluation.get("reward_model", {}).get("score_by_length", [])
    if not bins:
        return None
    figure, axes = style.new()
    axes.plot(
        [b["length"] for b in bins],
        [b["score"] for b in bins],
        color=style.PURPLE,
        marker="o",
        markersize=5,
    )
    axes.set_xlabel("tokens of prompt and reply")
    axes.set_ylabel("mean reward-model score")
    said = listed([f"{number(b['score'])} at {number(b['length'], 0)} tokens" for b in bins])
    return Picture(
        "score-by-length", "Reward-model score by length", f"Mean score: {said}.", figure
    )


def best_of_n(run: Run) -> Picture | None:
    points: list[dict[str, float]] = sorted(
        run.evaluation.get("best_of_n", []), key=lambda p: p["n"]
    )
    if not points:
        return None
    figure, above = style.new(height=3.6)
    above.remove()
    above, below = figure.subplots(2, 1, sharex=True)
    n, gold = [p["n"] for p in points], [p["gold"] for p in points]
    above.errorbar(
        n,
        gold,
        yerr=[1.96 * p.get("se", 0) for p in points],
        color=style.GREEN,
        marker="o",
        markersize=5,
        capsize=2.5,
    )
    above.set_ylabel(_judge(run))
    below.plot(n, [p["reward"] for p in points], color=style.PURPLE, marker="P", markersize=5)
    below.set_ylabel("reward-model score")
    below.set_xscale("log", base=2)
    below.set_xticks(n, [str(k) for k in n], minor=False)
    below.minorticks_off()
    below.set_xlabel("n, samples of which the reward model picks one")
    said = listed([f"n={p['n']} {number(p['gold'], 3)} ({number(p['reward'])})" for p in points])
    return Picture(
        "best-of-n",
        "Best of n",
        f"Judge's score, and reward-model score in brackets: {said}.",
        figure,
    )


def reply_style(run: Run) -> list[Picture]:
    """One small picture for each manner that was counted."""
    found: Mapping[str, Mapping[str, float]] = run.evaluation.get("style", {})
    pictures = []
    for key, name in MANNERS.items():
        models = [m for m in ordered(found) if key in found[m]][::-1]
        if not models:
            continue
        figure, axes = style.new(height=0.6 + 0.25 * len(models))
        show = percent if key in ("rude", "ended") else number
        for y, model in enumerate(models):
            value = found[model][key]
            axes.plot([0, value], [y, y], color=style.colour(model), linewidth=2.5)
            axes.plot(
                [value],
                [y],
                color=style.colour(model),
                marker=style.marker(model),
                markersize=6.5,
            )
            axes.annotate(
                show(value, 1),
                (value, y),
                xytext=(8, 0),
                textcoords="offset points",
                va="center",
                fontsize=8.5,
            )
        _rows(axes, [model_name(m) for m in models], "")
        axes.margins(x=0.2)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        if show is percent:
            axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
            axes.set_xlim(0, 1.2 * max(found[m][key] for m in models) or 1)
        if key == "ended":
            axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
        said = ", ".join(f"{model_name(m)} {show(found[m][key], 1)}" for m in models[::-1])
        pictures.append(Picture(f"style-{key}", name, f"{name}: {said}.", figure))
    return pictures


def seconds(run: Run) -> Picture | None:
    if not (spent := run.seconds):
        return None
    figure, axes = style.new(height=0.8 + 0.27 * len(spent))
    names = list(spent)[::-1]
    axes.barh(range(len(names)), [spent[name] for name in names], color=style.BLUE, height=0.6)
    for y, name in enumerate(names):
        axes.annotate(
            duration(spent[name]),
            (spent[name], y),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
        )
    _rows(axes, [name.replace("_", "-") for name in names], "seconds")
    axes.margins(x=0.18)
    axes.set_xlim(left=0)
    said = [f"{name} {duration(value)}" for name, value in spent.items()]
    return Picture("seconds", "Time by stage", f"Wall-clock time: {', '.join(said)}.", figure)


def _rows(axes: Axes, names: list[str], label: str) -> None:
    axes.set_yticks(range(len(names)), [style.label(name) for name in names])
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.set_xlabel(label)
    axes.grid(visible=False, axis="y")


def _judge(run: Run) -> str:
    return "reward-model score" if run.evaluation.get("judge") == "reward model" else "gold score"
