"""Pictures of training: one small panel per metric, how much reward each policy buys for its KL,
and the time that it took.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from instruct_jax.report.evaluations import BEST_OF_N_SHOWN, Evaluation, evaluations
from instruct_jax.report.looks import BLUE, PURPLE, Look, look
from instruct_jax.report.plots import style
from instruct_jax.report.plots.style import Picture
from instruct_jax.report.run_data import Curve, Run, Stage, slug
from instruct_jax.report.text import duration
from instruct_jax.text import number

MOST_POINTS = 300  # of a line; longer ones are averaged in blocks
ENOUGH_TO_AVERAGE = 24  # points


def curves(run: Run, stages: Sequence[Stage], *, main: bool) -> list[Picture]:
    """The panels of stages of one kind: for each curve one panel, with a line for each stage that
    has rows of it.
    """
    wanted: dict[str, Curve] = {}
    for stage in stages:
        for curve in stage.curves:
            if curve.main == main:
                wanted.setdefault(curve.metric, curve)
    panels = [_panel(run, stages, curve) for curve in wanted.values()]
    return [panel for panel in panels if panel]


def _panel(run: Run, stages: Sequence[Stage], curve: Curve) -> Picture | None:
    stages = [stage for stage in stages if stage.series(curve.metric)[0]]
    if not stages:
        return None
    figure, axes = style.fixed()
    texts = []
    for stage in stages:
        steps, values = stage.series(curve.metric)
        line = look(run, stage.name)
        if len(stages) == 1:
            line = dataclasses.replace(line, line="-")
        draw_line(axes, steps, values, line, style.label(stage.name))
        begin = f"{number(values[0], 3)} at step {steps[0]}"
        end = f"{number(values[-1], 3)} at step {steps[-1]}"
        texts.append(f"{stage.name} from {begin} to {end}")
    axes.set_xlabel("step")
    axes.set_ylabel(style.label(curve.label))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    if len(stages) > 1:
        axes.legend(
            loc="lower left",
            bbox_to_anchor=(0, 0.98),
            ncols=min(len(stages), 3),
            borderaxespad=0,
            borderpad=0.2,
        )
    return Picture(
        f"training-{slug(stages[0].kind)}-{slug(curve.metric)}",
        curve.title,
        f"{curve.title}: {'; '.join(texts)}.",
        figure,
    )


def draw_line(
    axes: Axes,
    x: Sequence[float],
    y: Sequence[float],
    look: Look,
    label: str,
) -> None:
    """Faint as measured, firm as a running mean, where there is enough to average."""
    xs = blocks(np.asarray(x, float))
    ys = blocks(np.asarray(y, float))
    if len(xs) >= ENOUGH_TO_AVERAGE:
        axes.plot(xs, ys, color=look.color, alpha=0.3, linewidth=0.9)
        ys = smooth(ys)
    axes.plot(
        xs,
        ys,
        color=look.color,
        linestyle=look.line,
        marker="o" if len(xs) < 3 else "",
        markersize=4,
        label=label,
    )


def blocks(x: np.ndarray) -> np.ndarray:
    """At most MOST_POINTS means of neighbors."""
    if len(x) <= MOST_POINTS:
        return x
    parts = np.array_split(x, MOST_POINTS)
    return np.array([part.mean() for part in parts])


def smooth(x: np.ndarray) -> np.ndarray:
    """Centered running mean over about a tenth of the line; at the ends over what there is."""
    half = max(len(x) // 20, 1)
    total = np.concatenate([[0.0], np.cumsum(x)])
    place = np.arange(len(x))
    low = np.maximum(place - half, 0)
    high = np.minimum(place + half + 1, len(x))
    return (total[high] - total[low]) / (high - low)


def frontiers(run: Run) -> list[Picture]:
    """Score against KL, one picture for each reward model: scores of two are on two scales."""
    by_reward: dict[str, list[Stage]] = {}
    for stage in run.stages.values():
        kl, _ = _kl_and_score(stage)
        if "reward" in stage.uses and len(kl) > 0:
            reward = stage.uses["reward"]
            by_reward.setdefault(reward, []).append(stage)
    return [_frontier(run, reward, stages) for reward, stages in by_reward.items()]


def _frontier(run: Run, reward: str, stages: Sequence[Stage]) -> Picture:
    """Each step of the policies, and best-of-n at log n - (n - 1)/n nats."""
    figure, axes = style.new()
    texts = []
    starts: dict[str, None] = {}
    for stage in stages:
        kl, score = _kl_and_score(stage)
        model = look(run, stage.name)
        axes.scatter(kl, score, s=7, color=model.color, alpha=0.3, linewidths=0)
        kl = smooth(kl)
        score = smooth(score)
        label = style.label(stage.name)
        axes.plot(kl, score, color=model.color, label=label)
        last_kl = kl[-1]
        last_score = score[-1]
        axes.plot([last_kl], [last_score], markersize=7, **model.points)
        texts.append(f"{stage.name} ends at {_point(last_kl, last_score)}")
        starts[stage.uses.get("start", "the start")] = None
    for evaluation in evaluations(run):
        same_reward = evaluation.stage.uses.get("reward") == reward
        same_start = evaluation.source(evaluation.baseline) in starts
        if evaluation.best_of_n and same_reward and same_start:
            texts.append(_draw_best_of_n(axes, evaluation))
    start = next(iter(starts)) if len(starts) == 1 else "the start"
    style.kl_axis(axes, start)
    axes.set_ylabel("reward-model score")
    style.legend_above(figure, axes, 3)
    return Picture(
        f"frontier-{slug(reward)}",
        f"Score of {reward} against KL",
        f"Score of {reward} against KL from {start}: {'; '.join(texts)}.",
        figure,
    )


def _kl_and_score(stage: Stage) -> tuple[np.ndarray, np.ndarray]:
    """At the steps that have both; KL of an estimate may be below 0, which is drawn as 0."""
    x = []
    y = []
    for row in stage.metrics:
        kl = row.get(f"{stage.kind}/kl", math.nan)
        score = row.get(f"{stage.kind}/score", math.nan)
        if math.isfinite(kl) and math.isfinite(score):
            x.append(max(kl, 0.0))
            y.append(score)
    kl = blocks(np.array(x))
    score = blocks(np.array(y))
    return kl, score


def _point(kl: float, score: float) -> str:
    return f"{number(kl, 1)} nats with a score of {number(score)}"


def _draw_best_of_n(axes: Axes, evaluation: Evaluation) -> str:
    """Returns it in words."""
    points = evaluation.best_of_n
    axes.plot(
        [point["kl"] for point in points],
        [point["reward"] for point in points],
        color=PURPLE,
        marker="P",
        markersize=5,
        linewidth=1,
        linestyle=":",
        label=BEST_OF_N_SHOWN,
    )
    first = points[0]
    last = points[-1]
    for point in (first, last):
        axes.annotate(
            f"n={point['n']}",
            (point["kl"], point["reward"]),
            xytext=(5, -11),
            textcoords="offset points",
            fontsize=8.5,
        )
    end = _point(last["kl"], last["reward"])
    return f"the best of {last['n']} samples of {evaluation.baseline} is at {end}"


def seconds(run: Run) -> Picture | None:
    """Of each stage; a single one needs no picture."""
    spent = run.seconds
    if len(spent) < 2:
        return None
    figure, axes = style.new(height=0.8 + 0.27 * len(spent))
    names = list(spent)[::-1]  # rows are numbered from the bottom
    texts = []
    for y, name in enumerate(names):
        took = spent[name]
        axes.barh([y], [took], color=BLUE, height=0.6)
        style.annotate(axes, duration(took), took, y)
        texts.insert(0, f"{name} {duration(took)}")
    style.rows(axes, names, "seconds")
    axes.margins(x=0.18)
    axes.set_xlim(left=0)
    return Picture(
        "seconds",
        "Time by stage",
        f"Wall-clock time: {', '.join(texts)}.",
        figure,
    )
