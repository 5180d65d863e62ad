"""The reward models of a run: what was measured of each, and where its rankings come from."""

from collections.abc import Iterator
from typing import Any

from markupsafe import Markup

from instruct_jax.report import html
from instruct_jax.report.plots import reward_model
from instruct_jax.report.run_data import Run, Stage
from instruct_jax.text import number, percent

ACCURACY = "accuracy_heldout_prompts"
IN_ORDER = "pairs in the right order"


def measured(run: Run) -> dict[str, dict[str, Any]]:
    """Finished reward model -> its output, with the agreement of the labelers it learned from."""
    models = {}
    for stage in run.stages.values():
        if stage.leaves == "scalar" and stage.output:
            agreement = _agreement(run, stage)
            models[stage.name] = {"labeler_agreement": agreement} | stage.output
    return models


def _agreement(run: Run, stage: Stage) -> float | None:
    """How often two labelers order a pair alike, in the rankings that a stage learned from."""
    for use in stage.uses.values():
        if use in run.stages:
            output = run.stages[use].output
            if "labeler_agreement" in output:
                return output["labeler_agreement"]
    return None


def against_people(run: Run) -> Iterator[Markup]:
    """Accuracy, calibration, and score by length."""
    models = measured(run)
    drawn = [
        reward_model.accuracy(run, models),
        reward_model.calibration(run, models),
        reward_model.score_by_length(run, models),
    ]
    yield from html.figures(drawn)
    for name, model in models.items():
        rows = _shares(model.get("per_labeler", {}))
        if rows:
            caption = f"Accuracy of {name} by labeler"
            table = html.table(("labeler", IN_ORDER), rows, caption)
            yield html.folded(f"{name}, by labeler", [table])


def _shares(shares: dict[str, float]) -> list[html.Row]:
    """Rows of a table."""
    rows = []
    for name, share in shares.items():
        rows.append((name, percent(share, 1)))
    return rows


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
        yield _ranked_models(stage)
    for name, model in measured(run).items():
        rows = _shares(model.get("accuracy_by_round", {}))
        if len(rows) > 1:
            caption = f"{name} on held-out prompts of each round"
            yield html.table(("round", IN_ORDER), rows, caption)


def _ranked_models(stage: Stage) -> Markup:
    rows = []
    for row in stage.output["lineage"]:
        completions = row["completions"]
        first = row["first"] / max(completions, 1)
        cells = (
            str(row["round"]),
            row["model"],
            completions,
            percent(first, 1),
        )
        rows.append(cells)
    header = ("round", "model", "completions", "ranked first")
    caption = f"{stage.name}: whose samples were ranked"
    return html.table(header, rows, caption, left=("model",))


def labeler_groups(run: Run) -> Iterator[Markup]:
    """Cross-validation over groups of labelers (paper 4.1)."""
    for stage in run.stages.values():
        if stage.output.get("folds"):
            yield from _folds(stage)


def _folds(stage: Stage) -> Iterator[Markup]:
    within = _mean_and_error(stage.output["within"])
    across = _mean_and_error(stage.output["across"])
    yield html.paragraph(
        f"Reward models that each left out one group of labelers order {within} of held-out pairs"
        f" of people they learned from, and {across} of people they did not (mean and standard"
        " error over groups; the paper has 72.4 and 69.6)."
    )
    rows = []
    for fold in stage.output["folds"]:
        within = fold["within"]
        across = fold["across"]
        row = (
            ", ".join(fold["labelers"]),
            percent(within["accuracy"], 1),
            within["pairs"],
            percent(across["accuracy"], 1),
            across["pairs"],
        )
        rows.append(row)
    header = ("left out", "other people", "pairs", "these people", "pairs ")
    caption = f"{stage.name}: one reward model for each group, {IN_ORDER}"
    yield html.table(header, rows, caption)


def _mean_and_error(part: dict[str, float]) -> str:
    mean = percent(part["mean"], 1)
    error = number(100 * part["se"], 1)
    return f"{mean} ± {error}"
