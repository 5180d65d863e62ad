"""Pictures of training: one small panel per metric, and how much reward each way of optimising buys
for its KL.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from instruct_jax.report.plots import style
from instruct_jax.report.plots.style import TICKS, Picture
from instruct_jax.report.run_data import Run
from instruct_jax.report.text import model_name, number

NAMES = {
    "pretrain": "pretraining",
    "sft": "SFT",
    "reward": "reward model",
    "ppo_start": "PPO's start",
    "ppo": "PPO",
    "ppo_ptx": "PPO-ptx",
}
RL = ("ppo", "ppo_ptx")
SUPERVISED = (  # title, stages, metric ("*" is the stage), label
    ("Pretraining loss", ("pretrain",), "*/nll", "nats per token"),
    ("SFT loss", ("sft", "ppo_start"), "sft/nll", "nats per token"),
    ("Reward-model loss", ("reward",), "*/loss", "nats per prompt"),
    ("Reward-model accuracy on its training batches", ("reward",), "*/accuracy", "share of pairs"),
)
MAIN = (
    ("Reward-model score of the rollouts", RL, "ppo/score", "score"),
    ("KL from the SFT model", RL, "ppo/kl", "nats per reply"),
    ("Length of the rollouts", RL, "rollout/length", "tokens"),
    ("Rollouts that end by themselves", RL, "rollout/ended", "share"),
    ("Pretraining loss inside PPO-ptx", RL, "ptx/nll", "nats per token"),
    ("Entropy of the policy", RL, "ppo/entropy", "nats per token"),
)
MORE = (
    ("Score minus the KL penalty", RL, "ppo/reward", "reward"),
    ("KL coefficient", RL, "ppo/kl_coef", "β"),
    ("Share of tokens clipped", RL, "policy/clip_fraction", "share"),
    ("Value loss", RL, "value/loss", ""),
    ("Return explained by the value function", RL, "ppo/explained_variance", "share of variance"),
    ("Repetition in the rollouts", RL, "rollout/repetition", "share"),
    ("Sampler against learner", RL, "rollout/logp_gap", "nats per token"),
)
MOST_POINTS = 300  # of a line; longer ones are averaged in blocks
Panel = tuple[str, Sequence[str], str, str]


def curves(run: Run, panels: Sequence[Panel]) -> list[Picture]:
    """The panels for which the run has rows; the two PPO runs share one."""
    return [picture for panel in panels if (picture := _panel(run, *panel))]


def _panel(run: Run, title: str, stages: Sequence[str], metric: str, label: str) -> Picture | None:
    lines = {stage: run.series(stage, metric.replace("*", stage)) for stage in stages}
    lines = {stage: line for stage, line in lines.items() if line[0]}
    if not lines:
        return None
    figure, axes = style.fixed()
    for stage, (steps, values) in lines.items():
        draw_line(axes, steps, values, style.colour(stage), NAMES[stage])
    axes.set_xlabel("iteration" if stages == RL else "step")
    axes.set_ylabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    if len(lines) > 1:
        axes.legend(
            loc="lower left", bbox_to_anchor=(0, 0.98), ncols=2, borderaxespad=0, borderpad=0.2
        )
    said = [
        f"{NAMES[stage]} from {number(v[0], 3)} at step {s[0]} to {number(v[-1], 3)} at step"
        f" {s[-1]}"
        for stage, (s, v) in lines.items()
    ]
    name = f"training-{stages[0]}-{metric.replace('*/', '').replace('/', '-')}"
    return Picture(name, title, f"{title}: {'; '.join(said)}.", figure)


def draw_line(axes: Axes, x: Sequence[float], y: Sequence[float], colour: str, label: str) -> None:
    """Faint as measured, firm as a running mean, where there is enough to average."""
    xs, ys = blocks(np.asarray(x, float)), blocks(np.asarray(y, float))
    if len(xs) < 24:
        axes.plot(
            xs, ys, color=colour, label=label, marker="o" if len(xs) < 3 else "", markersize=4
        )
        return
    axes.plot(xs, ys, color=colour, alpha=0.3, linewidth=0.9)
    axes.plot(xs, smooth(ys), color=colour, label=label)


def blocks(x: np.ndarray) -> np.ndarray:
    """At most MOST_POINTS means of neighbours."""
    if len(x) <= MOST_POINTS:
        return x
    return np.array([part.mean() for part in np.array_split(x, MOST_POINTS)])


def smooth(x: np.ndarray) -> np.ndarray:
    """Centred running mean over about a tenth of the line; at the ends over what there is."""
    half = max(len(x) // 20, 1)
    total = np.concatenate([[0.0], np.cumsum(x)])
    low, high = (
        np.maximum(np.arange(len(x)) - half, 0),
        np.minimum(np.arange(len(x)) + half + 1, len(x)),
    )
    return (total[high] - total[low]) / (high - low)


def frontier(run: Run) -> Picture | None:
    """Score against KL: each iteration of PPO, and best-of-n at log n - (n - 1)/n nats; the KL axis
    goes by its square root (Gao 2022).
    """
    figure, axes = style.new()
    said = []
    for stage in RL:
        kl, score = (
            dict(zip(*run.series(stage, "ppo/kl"), strict=True)),
            dict(zip(*run.series(stage, "ppo/score"), strict=True)),
        )
        steps = sorted(kl.keys() & score.keys())
        if not steps:
            continue
        x, y = (blocks(np.array([values[step] for step in steps])) for values in (kl, score))
        x, colour = np.maximum(x, 0), style.colour(stage)
        axes.scatter(x, y, s=7, color=colour, alpha=0.3, linewidths=0)
        x, y = smooth(x), smooth(y)
        axes.plot(x, y, color=colour, label=NAMES[stage])
        axes.plot(x[-1:], y[-1:], color=colour, marker=style.marker(stage), markersize=7)
        said.append(
            f"{NAMES[stage]} ends at {number(x[-1], 1)} nats with a score of {number(y[-1])}"
        )
    points = sorted(
        (p["kl"], p["reward"], p["n"])
        for p in run.evaluation.get("best_of_n", [])
        if p.get("reward") is not None
    )
    if points:
        x, y, ns = zip(*points, strict=True)
        axes.plot(
            x,
            y,
            color=style.PURPLE,
            marker="P",
            markersize=5,
            linewidth=1,
            linestyle=":",
            label=model_name("best_of_n"),
        )
        for at, kl in enumerate(x):
            if at in (0, len(x) - 1):
                axes.annotate(
                    f"n={ns[at]}",
                    (kl, y[at]),
                    xytext=(5, -11),
                    textcoords="offset points",
                    fontsize=8.5,
                )
        said.append(
            f"the best of {ns[-1]} SFT samples is at {number(x[-1], 1)} nats with a score of"
            f" {number(y[-1])}"
        )
    if not said:
        return None
    axes.set_xscale("function", functions=(lambda kl: np.sqrt(np.maximum(kl, 0)), np.square))
    top = axes.get_xlim()[1]
    axes.set_xlim(0, top)
    axes.set_xticks([tick for tick in TICKS if tick <= top])
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("KL from the SFT model, nats per reply (square-root scale)")
    axes.set_ylabel("reward-model score")
    style.legend_above(figure, axes, 3)
    return Picture(
        "frontier",
        "Reward against KL",
        f"Reward-model score against KL from the SFT model: {'; '.join(said)}.",
        figure,
    )
