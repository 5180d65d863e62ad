"""Pictures of training: one small panel per metric, how much reward each policy buys for its KL,
and the time that it took.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from instruct_jax.report.evaluations import BEST_OF_N, SHOWN, evaluations
from instruct_jax.report.looks import BLUE, PURPLE, Look, look
from instruct_jax.report.plots import style
from instruct_jax.report.plots.style import Picture
from instruct_jax.report.run_data import Curve, Run, Stage, slug
from instruct_jax.report.text import duration, number

MOST_POINTS = 300  # of a line; longer ones are averaged in blocks


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
    lines = {}
    for stage in stages:
        steps, values = stage.series(curve.metric)
        if steps:
            lines[stage.name] = (steps, values)
    if not lines:
        return None
    figure, axes = style.fixed()
    texts = []
    for name, (steps, values) in lines.items():
        draw_line(axes, steps, values, look(run, name), style.label(name))
        begin, end = number(values[0], 3), number(values[-1], 3)
        texts.append(f"{name} from {begin} at step {steps[0]} to {end} at step {steps[-1]}")
    axes.set_xlabel("step")
    axes.set_ylabel(style.label(curve.label))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    if len(lines) > 1:
        where = {"loc": "lower left", "bbox_to_anchor": (0, 0.98)}
        axes.legend(**where, ncols=min(len(lines), 3), borderaxespad=0, borderpad=0.2)
    name = f"training-{slug(stages[0].kind)}-{slug(curve.metric)}"
    return Picture(name, curve.title, f"{curve.title}: {'; '.join(texts)}.", figure)


def draw_line(axes: Axes, x: Sequence[float], y: Sequence[float], look: Look, label: str) -> None:
    """Faint as measured, firm as a running mean, where there is enough to average."""
    xs, ys = blocks(np.asarray(x, float)), blocks(np.asarray(y, float))
    color = look.color
    if len(xs) < 24:
        marker = "o" if len(xs) < 3 else ""
        axes.plot(
            xs, ys, color=color, linestyle=look.line, label=label, marker=marker, markersize=4
        )
        return
    axes.plot(xs, ys, color=color, alpha=0.3, linewidth=0.9)
    axes.plot(xs, smooth(ys), color=color, linestyle=look.line, label=label)


def blocks(x: np.ndarray) -> np.ndarray:
    """At most MOST_POINTS means of neighbors."""
    if len(x) <= MOST_POINTS:
        return x
    return np.array([part.mean() for part in np.array_split(x, MOST_POINTS)])


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
        if "reward" in stage.uses and len(_kl_and_score(stage)[0]):
            by_reward.setdefault(stage.uses["reward"], []).append(stage)
    return [_frontier(run, reward, stages) for reward, stages in by_reward.items()]


def _frontier(run: Run, reward: str, stages: Sequence[Stage]) -> Picture:
    """Each step of the policies, and best-of-n at log n - (n - 1)/n nats."""
    figure, axes = style.new()
    texts = []
    for stage in stages:
        kl, score = _kl_and_score(stage)
        marks = look(run, stage.name)
        axes.scatter(kl, score, s=7, color=marks.color, alpha=0.3, linewidths=0)
        kl, score = smooth(kl), smooth(score)
        axes.plot(kl, score, color=marks.color, label=style.label(stage.name))
        axes.plot(kl[-1:], score[-1:], color=marks.color, marker=marks.marker, markersize=7)
        end = f"{number(kl[-1], 1)} nats with a score of {number(score[-1])}"
        texts.append(f"{stage.name} ends at {end}")
    origins = list(dict.fromkeys(stage.uses.get("start", "its start") for stage in stages))
    texts += _best_of_n(axes, run, reward, origins)
    origin = origins[0] if len(origins) == 1 else "the start"
    style.kl_axis(axes, origin)
    axes.set_ylabel("reward-model score")
    style.legend_above(figure, axes, 3)
    alt = f"Score of {reward} against KL from {origin}: {'; '.join(texts)}."
    return Picture(f"frontier-{slug(reward)}", f"Score of {reward} against KL", alt, figure)


def _kl_and_score(stage: Stage) -> tuple[np.ndarray, np.ndarray]:
    """At the steps that have both; KL of an estimate may be below 0, which is drawn as 0."""
    kl = dict(zip(*stage.series(f"{stage.kind}/kl"), strict=True))
    score = dict(zip(*stage.series(f"{stage.kind}/score"), strict=True))
    steps = sorted(kl.keys() & score.keys())
    x = blocks(np.array([kl[step] for step in steps]))
    y = blocks(np.array([score[step] for step in steps]))
    return np.maximum(x, 0), y


def _best_of_n(axes: Axes, run: Run, reward: str, origins: Sequence[str]) -> list[str]:
    """Draws the curves of the evaluations that have the same reward model and baseline; returns
    them in words.
    """
    texts = []
    for evaluation in evaluations(run):
        points = [p for p in evaluation.numbers.get("best_of_n") or [] if "reward" in p]
        baseline = evaluation.source(evaluation.baseline)
        same = evaluation.stage.uses.get("reward") == reward and baseline in origins
        if not points or not same:
            continue
        points.sort(key=lambda point: point["n"])
        kl = [point["kl"] for point in points]
        score = [point["reward"] for point in points]
        marks = {"marker": "P", "markersize": 5, "linewidth": 1, "linestyle": ":"}
        axes.plot(kl, score, color=PURPLE, label=SHOWN[BEST_OF_N], **marks)
        for point in (points[0], points[-1]):
            where = {"xytext": (5, -11), "textcoords": "offset points", "fontsize": 8.5}
            axes.annotate(f"n={point['n']}", (point["kl"], point["reward"]), **where)
        end = f"{number(kl[-1], 1)} nats with a score of {number(score[-1])}"
        texts.append(f"the best of {points[-1]['n']} samples of {baseline} is at {end}")
    return texts


def seconds(run: Run) -> Picture | None:
    spent = run.seconds
    if not spent:
        return None
    figure, axes = style.new(height=0.8 + 0.27 * len(spent))
    names = list(spent)[::-1]
    axes.barh(range(len(names)), [spent[name] for name in names], color=BLUE, height=0.6)
    for y, name in enumerate(names):
        style.annotate(axes, duration(spent[name]), spent[name], y, right=5)
    style.rows(axes, names, "seconds")
    axes.margins(x=0.18)
    axes.set_xlim(left=0)
    texts = [f"{name} {duration(value)}" for name, value in spent.items()]
    return Picture("seconds", "Time by stage", f"Wall-clock time: {', '.join(texts)}.", figure)
