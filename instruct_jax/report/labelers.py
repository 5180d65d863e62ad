"""Where the rankings come from: rounds, models, and groups of labelers."""

from collections.abc import Iterator
from typing import Any

from instruct_jax.report import html
from instruct_jax.report.run_data import Run
from instruct_jax.report.text import number, percent


def rankings(run: Run) -> Iterator[str]:
    """Which rankings came from which policy, and in which round; the reward model learned from all
    of them.
    """
    output: dict[str, Any] = run.done.get("compare", {}).get("output", {})
    if not (lineage := output.get("lineage")):
        yield html.absent("the lineage of rankings")
        return
    yield html.paragraph(
        "Each round ranks samples of the newest policies; the reward model learns from the rankings"
        " of all rounds, and PPO starts again. Ranked first: the share of a model's completions"
        " that no other completion of the same prompt was ranked above."
    )
    rows = [
        (
            str(row["round"]),
            row["model"],
            row["completions"],
            percent(row["first"] / row["completions"], 1),
        )
        for row in lineage
    ]
    header = ("round", "model", "completions", "ranked first")
    yield html.table(header, rows, "What the reward model learned from", left=("model",))
    by_round: dict[str, float] = run.evaluation.get("reward_model", {}).get("accuracy_by_round", {})
    if by_round:
        rows = [(name, percent(accuracy, 1)) for name, accuracy in by_round.items()]
        yield html.table(
            ("round", "pairs in the right order"),
            rows,
            "The reward model on held-out prompts of each round",
        )


def labeler_groups(run: Run) -> Iterator[str]:
    """Cross-validation of the reward model (paper 4.1)."""
    output: dict[str, Any] = run.done.get("cross_validation", {}).get("output", {})
    if not output:
        yield html.absent("reward models across groups of labelers (--stages cross_validation)")
        return
    means = {
        part: f"{percent(output[part]['mean'], 1)} ± {number(100 * output[part]['se'], 1)}"
        for part in ("within", "across")
    }
    yield html.paragraph(
        f"Reward models that each left out one group of labelers order {means['within']} of"
        f" held-out pairs of people they learned from, and {means['across']} of people they did not"
        " (mean and standard error over groups; the paper has 72.4 and 69.6)."
    )
    rows = [
        (
            ", ".join(fold["labelers"]),
            *(
                cell
                for part in ("within", "across")
                for cell in (percent(fold[part]["accuracy"], 1), fold[part]["pairs"])
            ),
        )
        for fold in output["folds"]
    ]
    header = ("left out", "other people", "pairs", "these people", "pairs ")
    yield html.table(header, rows, "One reward model for each group: pairs in the right order")
