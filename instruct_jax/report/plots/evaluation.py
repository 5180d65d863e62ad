"""Pictures of one evaluation: models against each other, on ordinary text, and best-of-n."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from instruct_jax.report.evaluations import BASE, BEST_OF_N, Evaluation
from instruct_jax.report.looks import PURPLE, look_in
from instruct_jax.report.plots import style
from instruct_jax.report.plots.style import INK, Picture
from instruct_jax.report.text import listed, number, percent

# what is counted in the replies -> title, how it is written
REPLY_STYLE: dict[str, tuple[str, Callable[..., str]]] = {
    "rude": ("Replies with a rude word", percent),
    "fluff": ("Empty phrases per reply", number),
    "length": ("Tokens per reply", number),
    "ended": ("Replies that end by themselves", percent),
}


def win_rates(evaluation: Evaluation) -> Picture | None:
    """The shape of the paper's figure 1: one group per temperature, the baseline's own 0.5 as a
    line.
    """
    groups = evaluation.win_rates
    if not groups:
        return None
    names: list[str] = []
    for wins in groups.values():
        names.extend(wins)
    models = evaluation.ordered(names)
    figure, axes = style.new(height=3.7)
    axes.axhline(0.5, color=INK, linewidth=1, linestyle="--")
    for place, model in enumerate(models):
        shift = (place - (len(models) - 1) / 2) * 0.8 / len(models)
        _intervals(axes, evaluation, model, shift)
    for edge in range(1, len(groups)):
        axes.axvline(edge - 0.5, color=INK, alpha=0.15, linewidth=0.8)
    axes.set_xlim(-0.5, len(groups) - 0.5)
    axes.set_xticks(range(len(groups)), [f"temperature {t}" for t in groups])
    axes.grid(visible=False, axis="x")
    axes.set_ylim(0, 1)
    axes.set_ylabel(f"preferred to {style.label(evaluation.baseline)}")
    style.legend_above(figure, axes, 3)

    texts = []
    for temperature, wins in groups.items():
        means = {model: wins[model]["mean"] for model in models if model in wins}
        texts.append(f"at temperature {temperature} {_values(evaluation, means)}")
    title = f"Win rate against {evaluation.baseline}"
    alt = f"Share of prompts on which each model beats {evaluation.baseline}: {'; '.join(texts)}."
    return Picture(f"win-rates{evaluation.suffix}", title, alt, figure)


def _intervals(axes: Axes, evaluation: Evaluation, model: str, shift: float) -> None:
    """One model's mean and interval in each group, `shift` beside the middle of the group."""
    x, y, below, above = [], [], [], []
    for group, wins in enumerate(evaluation.win_rates.values()):
        if model in wins:
            mean, (low, high) = wins[model]["mean"], wins[model]["ci95"]
            x.append(group + shift)
            y.append(mean)
            below.append(max(mean - low, 0))
            above.append(max(high - mean, 0))
    look = look_in(evaluation, model)
    marks: dict[str, Any] = {
        "color": look.color,
        "marker": look.marker,
        "markerfacecolor": look.face,
        "markersize": 6,
        "linestyle": "none",
    }
    axes.errorbar(x, y, yerr=[below, above], elinewidth=1.4, capsize=2.5, **marks)
    axes.plot([], [], label=style.label(evaluation.shown(model)), **marks)


def _values(evaluation: Evaluation, values: Mapping[str, float], digits: int = 2) -> str:
    """Model and number, as a picture's alternative text has them."""
    shown = [
        f"{evaluation.shown(model)} {number(value, digits)}" for model, value in values.items()
    ]
    return ", ".join(shown)


def use_cases(evaluation: Evaluation) -> Picture | None:
    cases: dict[str, dict[str, Any]] = evaluation.table("by_use_case")
    if not cases:
        return None
    names = sorted(cases)
    models = models_of(evaluation, cases)
    height = {name: len(names) - 1 - row for row, name in enumerate(names)}
    figure, axes = style.new(height=1.1 + 0.34 * len(names))
    for model in models:
        look = look_in(evaluation, model)
        scored = [name for name in names if model in cases[name]]
        axes.plot(
            [cases[name][model]["mean"] for name in scored],
            [height[name] for name in scored],
            color=look.color,
            marker=look.marker,
            markersize=6,
            alpha=0.85,
            linestyle="none",
            label=style.label(evaluation.shown(model)),
        )
    labels = [style.label(name.replace("_", " "), 22) for name in names]
    axes.set_yticks(list(height.values()), labels)
    axes.set_xlabel(f"{evaluation.score_name}, mean")
    style.legend_above(figure, axes, 3)

    texts = []
    for name in names:
        means = {model: cases[name][model]["mean"] for model in models if model in cases[name]}
        texts.append(f"{name} {_values(evaluation, means)}")
    alt = f"Mean score by use case: {'; '.join(texts)}."
    return Picture(f"use-cases{evaluation.suffix}", "Score by use case", alt, figure)


def models_of(evaluation: Evaluation, cases: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Every model that has a score in a use case; the control is the baseline once more."""
    names: list[str] = []
    for scores in cases.values():
        names.extend(scores)
    return [model for model in evaluation.ordered(names) if model != evaluation.control]


def alignment_tax(evaluation: Evaluation) -> Picture | None:
    nll: dict[str, float] = evaluation.table("pretrain_nll")
    if not nll:
        return None
    figure, axes = style.new(height=0.9 + 0.38 * len(nll))
    models = evaluation.ordered(nll)
    for y, model in enumerate(reversed(models)):
        loss, look = nll[model], look_in(evaluation, model)
        axes.plot([nll.get(BASE, loss), loss], [y, y], color=look.color, linewidth=2.5)
        axes.plot([loss], [y], color=look.color, marker=look.marker, markersize=8)
        style.annotate(axes, number(loss, 3), loss, y, right=9)
    if BASE in nll:
        axes.axvline(nll[BASE], color=INK, linewidth=1, linestyle="--")
    shown = [evaluation.shown(model) for model in reversed(models)]
    style.rows(axes, shown, "loss on held-out pretraining text, nats per token")
    axes.margins(x=0.18)
    losses = _values(evaluation, {model: nll[model] for model in models}, 3)
    alt = f"Loss on held-out pretraining text: {losses}."
    return Picture(f"alignment-tax{evaluation.suffix}", "Alignment tax", alt, figure)


def best_of_n(evaluation: Evaluation) -> Picture | None:
    points: list[dict[str, float]] = evaluation.numbers.get("best_of_n") or []
    if not points:
        return None
    points = sorted(points, key=lambda point: point["n"])
    n = [point["n"] for point in points]
    judged = "gold" in points[0]
    figure, axes = style.new(height=3.6)
    axes.remove()
    panels: Sequence[Axes] = figure.subplots(2 if judged else 1, 1, sharex=True, squeeze=False)[
        :, 0
    ]
    if judged:
        panels[0].errorbar(
            n,
            [point["gold"] for point in points],
            yerr=[1.96 * point.get("se", 0) for point in points],
            color=look_in(evaluation, evaluation.baseline).color,
            marker="o",
            markersize=5,
            capsize=2.5,
        )
        panels[0].set_ylabel(evaluation.score_name)
    last, reward = panels[-1], [point["reward"] for point in points]
    last.plot(n, reward, color=PURPLE, marker=look_in(evaluation, BEST_OF_N).marker, markersize=5)
    last.set_ylabel("reward-model score")
    last.set_xscale("log", base=2)
    last.set_xticks(n, [str(k) for k in n], minor=False)
    last.minorticks_off()
    last.set_xlabel("n, samples of which the reward model picks one")
    texts = [
        f"n={point['n']} {number(point.get('gold'), 3)} ({number(point['reward'])})"
        for point in points
    ]
    alt = f"Judge's score, and reward-model score in brackets: {listed(texts)}."
    title = f"Best of n samples of {evaluation.baseline}"
    return Picture(f"best-of-n{evaluation.suffix}", title, alt, figure)


def reply_style(evaluation: Evaluation) -> list[Picture]:
    """One small picture for each property of the replies that was counted."""
    pictures = [_one_property(evaluation, key) for key in REPLY_STYLE]
    return [picture for picture in pictures if picture]


def _one_property(evaluation: Evaluation, key: str) -> Picture | None:
    counted: dict[str, dict[str, float]] = evaluation.table("style")
    values = {m: counted[m][key] for m in evaluation.ordered(counted) if key in counted[m]}
    if not values:
        return None
    title, written = REPLY_STYLE[key]
    figure, axes = style.new(height=0.6 + 0.25 * len(values))
    models = list(values)
    for y, model in enumerate(reversed(models)):
        value, look = values[model], look_in(evaluation, model)
        axes.plot([0, value], [y, y], color=look.color, linewidth=2.5)
        axes.plot([value], [y], color=look.color, marker=look.marker, markersize=6.5)
        style.annotate(axes, written(value, 1), value, y)
    style.rows(axes, [evaluation.shown(model) for model in reversed(models)], "")
    axes.margins(x=0.2)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    if written is percent:
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_xlim(0, 1.2 * max(values.values()) or 1)
    if key == "ended":
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
    texts = [f"{evaluation.shown(model)} {written(value, 1)}" for model, value in values.items()]
    alt = f"{title}: {', '.join(texts)}."
    return Picture(f"style-{key}{evaluation.suffix}", title, alt, figure)
