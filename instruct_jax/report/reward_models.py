"""The reward models of a run: what was measured of each, and where its rankings come from."""

from collections.abc import Iterator
from typing import Any

from markupsafe import Markup

from instruct_jax.report import html
from instruct_jax.report.plots import reward_model
from instruct_jax.report.run_data import Run, Stage
from instruct_jax.report.text import number, percent

ACCURACY = "accuracy_heldout_prompts"


def measured(run: Run) -> dict[str, dict[str, Any]]:
    """Finished reward model -> its output, with the agreement of the labelers it learned from."""
    found = {}
    for stage in run.stages.values():
        if stage.leaves == "scalar" and stage.output:
            found[stage.name] = stage.output | {"labeler_agreement": _agreement(run, stage)}
    return found


def _agreement(run: Run, stage: Stage) -> float | None:
    """How often two labelers order a pair alike, in the rankings that a stage learned from."""
    for use in stage.uses.values():
        if use in run.stages and "labeler_agreement" in run.stages[use].output:
            return run.stages[use].output["labeler_agreement"]
    of_summary = run.summary.get("reward_models", {}).get(stage.name, {})
    return of_summary.get("labeler_agreement")


def against_people(run: Run) -> Iterator[Markup]:
    """Accuracy, calibration, and score by length."""
    models = measured(run)
    drawn = [
        reward_model.accuracy(run, models),
        reward_model.calibration(run, models),
        reward_model.score_by_length(run, models),
    ]
    yield from html.figures(drawn)
    header = ("labeler", "pairs in the right order")
    for name, model in models.items():
        by_labeler: dict[str, float] = model.get("per_labeler") or {}
        if by_labeler:
            rows = [(labeler, percent(share, 1)) for labeler, share in by_labeler.items()]
            yield html.folded(
                f"{name}, by labeler",
                [html.table(header, rows, f"Accuracy of {name} by labeler")],
            )


def rankings(run: Run) -> Iterator[Markup]:
    """Which rankings came from which policy, and in which round."""
    ranked = [stage for stage in run.stages.values() if stage.output.get("lineage")]
    if ranked:
        yield html.paragraph(
            "Each round ranks samples of the policies it names; a reward model learns from the"
            " rankings of all rounds. Ranked first: the share of a model's completions that no"
            " other completion of the same prompt was ranked above."
        )
    for stage in ranked:
        rows = []
        for row in stage.output["lineage"]:
            first = row["first"] / max(row["completions"], 1)
            rows.append((str(row["round"]), row["model"], row["completions"], percent(first, 1)))
        header = ("round", "model", "completions", "ranked first")
        caption = f"{stage.name}: whose samples were ranked"
        yield html.table(header, rows, caption, left=("model",))
    for name, model in measured(run).items():
        by_round: dict[str, float] = model.get("accuracy_by_round") or {}
        if by_round:
            rows = [(name, percent(accuracy, 1)) for name, accuracy in by_round.items()]
            caption = f"{name} on held-out prompts of each round"
            yield html.table(("round", "pairs in the right order"), rows, caption)


def labeler_groups(run: Run) -> Iterator[Markup]:
    """Cross-validation over groups of labelers (paper 4.1)."""
    for stage in run.stages.values():
        if stage.output.get("folds"):
            yield from _folds(stage)


def _folds(stage: Stage) -> Iterator[Markup]:
    within, across = (_mean_and_error(stage.output[part]) for part in ("within", "across"))
    yield html.paragraph(
        f"Reward models that each left out one group of labelers order {within} of held-out pairs"
        f" of people they learned from, and {across} of people they did not (mean and standard"
        " error over groups; the paper has 72.4 and 69.6)."
    )
    rows = []
    for fold in stage.output["folds"]:
        row = [", ".join(fold["labelers"])]
        for part in ("within", "across"):
            row += [percent(fold[part]["accuracy"], 1), fold[part]["pairs"]]
        rows.append(row)
    header = ("left out", "other people", "pairs", "these people", "pairs ")
    caption = f"{stage.name}: one reward model for each group, pairs in the right order"
    yield html.table(header, rows, caption)


def _mean_and_error(part: dict[str, float]) -> str:
    return f"{percent(part['mean'], 1)} ± {number(100 * part['se'], 1)}"
