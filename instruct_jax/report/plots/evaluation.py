"""Pictures of one evaluation: models against each other, on ordinary text, and best-of-n."""

from collections.abc import Callable, Iterable, Mapping

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from instruct_jax.report.evaluations import BASE, Evaluation, Numbers
from instruct_jax.report.looks import BLUE, PURPLE, look_in
from instruct_jax.report.plots import style
from instruct_jax.report.plots.style import INK, Picture
from instruct_jax.report.text import listed
from instruct_jax.text import number, percent

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
    models = models_of(evaluation, groups.values())
    baseline = evaluation.baseline
    figure, axes = style.new(height=3.7)
    axes.axhline(0.5, color=INK, linewidth=1, linestyle="--")
    middle = (len(models) - 1) / 2
    for place, model in enumerate(models):
        shift = 0.8 * (place - middle) / len(models)
        _intervals(axes, evaluation, model, shift)
    for edge in range(1, len(groups)):
        axes.axvline(edge - 0.5, color=INK, alpha=0.15, linewidth=0.8)
    axes.set_xlim(-0.5, len(groups) - 0.5)
    labels = [f"temperature {t}" for t in groups]
    axes.set_xticks(range(len(groups)), labels)
    axes.grid(visible=False, axis="x")
    axes.set_ylim(0, 1)
    axes.set_ylabel(f"preferred to {style.label(baseline)}")
    style.legend_above(figure, axes, 3)

    texts = []
    for temperature, wins in groups.items():
        means = {model: win.mean for model, win in wins.items()}
        rates = _in_words(evaluation, means)
        texts.append(f"at temperature {temperature} {rates}")
    return Picture(
        f"win-rates{evaluation.suffix}",
        f"Win rate against {baseline}",
        f"Share of prompts on which each model beats {baseline}: {'; '.join(texts)}.",
        figure,
    )


def models_of(evaluation: Evaluation, tables: Iterable[Mapping[str, object]]) -> list[str]:
    """Every model that is in a table."""
    models: set[str] = set()
    for table in tables:
        models.update(table)
    return evaluation.ordered(models)


def _intervals(axes: Axes, evaluation: Evaluation, model: str, shift: float) -> None:
    """One model's mean and interval in each group, `shift` beside the middle of the group."""
    look = look_in(evaluation, model)
    for group, wins in enumerate(evaluation.win_rates.values()):
        if model not in wins:
            continue
        win = wins[model]
        below = max(win.mean - win.low, 0)
        above = max(win.high - win.mean, 0)
        axes.errorbar(
            [group + shift],
            [win.mean],
            yerr=[[below], [above]],
            elinewidth=1.4,
            capsize=2.5,
            markersize=6,
            **look.points,
        )
    label = style.label(evaluation.shown(model))
    axes.plot([], [], markersize=6, label=label, **look.points)


def _in_words(evaluation: Evaluation, values: Mapping[str, float], digits: int = 2) -> str:
    """Model and number, as the text for readers who do not see the picture has them."""
    texts = []
    for model in evaluation.ordered(values):
        value = number(values[model], digits)
        texts.append(f"{evaluation.shown(model)} {value}")
    return ", ".join(texts)


def use_cases(evaluation: Evaluation) -> Picture | None:
    means = means_by_case(evaluation)
    if not means:
        return None
    cases = sorted(means, reverse=True)  # rows are numbered from the bottom
    figure, axes = style.new(height=1.1 + 0.34 * len(cases))
    for model in models_of(evaluation, means.values()):
        rows = []
        scores = []
        for y, case in enumerate(cases):
            if model in means[case]:
                rows.append(y)
                scores.append(means[case][model])
        axes.plot(
            scores,
            rows,
            markersize=6,
            alpha=0.85,
            label=style.label(evaluation.shown(model)),
            **look_in(evaluation, model).points,
        )
    names = [case.replace("_", " ") for case in cases]
    labels = [style.label(name, 22) for name in names]
    axes.set_yticks(range(len(cases)), labels)
    axes.set_xlabel(f"{evaluation.score_name}, mean")
    style.legend_above(figure, axes, 3)

    texts = []
    for case in sorted(means):
        scores = _in_words(evaluation, means[case])
        texts.append(f"{case} {scores}")
    return Picture(
        f"use-cases{evaluation.suffix}",
        "Score by use case",
        f"Mean score by use case: {'; '.join(texts)}.",
        figure,
    )


def means_by_case(evaluation: Evaluation) -> dict[str, dict[str, float]]:
    """Use case -> model -> mean score; without the control, which is the baseline once more."""
    means: dict[str, dict[str, float]] = {}
    for case, scores in evaluation.table("by_use_case").items():
        means[case] = {}
        for model, score in scores.items():
            if model != evaluation.control:
                means[case][model] = score["mean"]
    return means


def alignment_tax(evaluation: Evaluation) -> Picture | None:
    nll: dict[str, float] = evaluation.table("pretrain_nll")
    if not nll:
        return None
    figure, axes = style.new(height=0.9 + 0.38 * len(nll))
    models = evaluation.ordered(nll)[::-1]  # rows are numbered from the bottom
    for y, model in enumerate(models):
        loss = nll[model]
        base = nll.get(BASE, loss)
        look = look_in(evaluation, model)
        style.lollipop(axes, y, base, loss, look)
        style.annotate(axes, number(loss, 3), loss, y)
    if BASE in nll:
        axes.axvline(nll[BASE], color=INK, linewidth=1, linestyle="--")
    style.rows(
        axes,
        [evaluation.shown(model) for model in models],
        "loss on held-out pretraining text, nats per token",
    )
    axes.margins(x=0.18)
    losses = _in_words(evaluation, nll, digits=3)
    return Picture(
        f"alignment-tax{evaluation.suffix}",
        "Alignment tax",
        f"Loss on held-out pretraining text: {losses}.",
        figure,
    )


def best_of_n(evaluation: Evaluation) -> Picture | None:
    points = evaluation.best_of_n
    if not points:
        return None
    n = [point["n"] for point in points]
    judged = all(point.get("gold") is not None for point in points)
    figure, axes = style.new(height=3.6)
    axes.remove()
    panels = figure.subplots(2 if judged else 1, 1, sharex=True, squeeze=False)
    below = panels[-1, 0]
    if judged:
        above = panels[0, 0]
        _judged(above, n, points)
        above.set_ylabel(evaluation.score_name)
    rewards = [point["reward"] for point in points]
    below.plot(n, rewards, color=PURPLE, marker="P", markersize=5)
    below.set_ylabel("reward-model score")
    below.set_xscale("log", base=2)
    below.set_xticks(n, [str(k) for k in n], minor=False)
    below.minorticks_off()
    below.set_xlabel("n, samples of which the reward model picks one")

    texts = []
    for point in points:
        gold = number(point.get("gold"), 3)
        reward = number(point["reward"])
        texts.append(f"n={point['n']} {gold} ({reward})")
    return Picture(
        f"best-of-n{evaluation.suffix}",
        f"Best of n samples of {evaluation.baseline}",
        f"Judge's score, and reward-model score in brackets: {listed(texts)}.",
        figure,
    )


def _judged(axes: Axes, n: list[int], points: list[Numbers]) -> None:
    """The judge's score over n, with its 95 % interval."""
    gold = [point["gold"] for point in points]
    half = [1.96 * point.get("se", 0) for point in points]
    axes.errorbar(
        n,
        gold,
        yerr=half,
        color=BLUE,
        marker="o",
        markersize=5,
        capsize=2.5,
    )


def reply_style(evaluation: Evaluation) -> list[Picture]:
    """One small picture for each property of the replies that was counted."""
    pictures = [_one_property(evaluation, key) for key in REPLY_STYLE]
    return [picture for picture in pictures if picture]


def _one_property(evaluation: Evaluation, key: str) -> Picture | None:
    values = {}
    for model, counted in evaluation.table("style").items():
        if key in counted:
            values[model] = counted[key]
    if not values:
        return None
    title, written = REPLY_STYLE[key]
    models = evaluation.ordered(values)
    figure, axes = style.new(height=0.6 + 0.25 * len(values))
    for y, model in enumerate(reversed(models)):
        value = values[model]
        look = look_in(evaluation, model)
        style.lollipop(axes, y, 0, value, look)
        style.annotate(axes, written(value, 1), value, y)
    shown = [evaluation.shown(model) for model in reversed(models)]
    style.rows(axes, shown, "")
    axes.margins(x=0.2)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    if written is percent:
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_xlim(0, 1.2 * max(values.values()) or 1)
    if key == "ended":
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1])

    texts = []
    for model in models:
        value = written(values[model], 1)
        texts.append(f"{evaluation.shown(model)} {value}")
    return Picture(
        f"style-{key}{evaluation.suffix}",
        title,
        f"{title}: {', '.join(texts)}.",
        figure,
    )
