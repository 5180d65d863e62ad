"""The sections of the page, each from what a run holds.  A section that has nothing to show for a
run is left out.
"""

import math
import statistics
from collections.abc import Callable, Iterator
from typing import Any

from markupsafe import Markup

from instruct_jax.report import html, lineage, reward_models
from instruct_jax.report.evaluations import BEST_OF_N, Evaluation, evaluations
from instruct_jax.report.findings import control_holds, findings
from instruct_jax.report.plots import evaluation as evaluation_plots
from instruct_jax.report.plots import over_optimization, training
from instruct_jax.report.reward_models import ACCURACY, measured
from instruct_jax.report.run_data import Run, Stage
from instruct_jax.report.text import count, duration, listed, number, percent, prompt_text, rate

SAMPLES_OPEN = 6  # prompts; the others are folded
PHASES = ("rollout", "experience", "update", "tokens_per_second")
Part = Iterator[Markup]


def sections(run: Run) -> list[tuple[str, str, Markup]]:
    """Anchor, title and HTML of each section that the run has something for."""
    parts = []
    for anchor, title, part in SECTIONS:
        pieces = list(part(run))
        if pieces:
            parts.append((anchor, title, html.joined(pieces)))
    return parts


def abstract(run: Run) -> str:
    """The run in one paragraph of plain words."""
    finished = [name for name, stage in run.stages.items() if stage.done]
    missing = [name for name, stage in run.stages.items() if not stage.done]
    sentences = []
    if finished:
        sentences.append(f"This run went through {listed(finished)}.")
    else:
        sentences.append("This run has not finished a stage yet.")
    if missing:
        sentences.append(f"Not finished: {listed(missing)}.")
    measurements = evaluations(run)
    for evaluation in measurements:
        prefix = f"{evaluation.name}: " if len(measurements) > 1 else ""
        sentences += [prefix + sentence for sentence in _preferences(evaluation)]
    if not any(evaluation.wins for evaluation in measurements):
        sentences += _what_was_learned(run)
    sentences += _reward_accuracy(run)
    if run.seconds:
        hardware = run.summary.get("hardware")
        on = f" on {hardware}" if hardware else ""
        sentences.append(f"All of it took {duration(sum(run.seconds.values()))}{on}.")
    return " ".join(sentences)


def _preferences(evaluation: Evaluation) -> Iterator[str]:
    wins, baseline = evaluation.wins, evaluation.baseline
    models = [model for model in (BEST_OF_N, *evaluation.ours) if model in wins]
    models.sort(key=lambda model: -wins[model]["mean"])
    if models:
        judge = "the reward model" if evaluation.judged_by_reward_model else "the gold score"
        shares = [f"{evaluation.spoken(m)} {percent(wins[m]['mean'])}" for m in models]
        prompts = count(wins[models[0]]["n"], "held-out prompt")
        yield f"Preferred to {baseline} on {prompts}, judged by {judge}: {listed(shares)}."
    control = wins.get(evaluation.control)
    if control and not control_holds(control):
        share = percent(control["mean"])
        yield f"Beware: {baseline} against other samples of itself wins {share} and not about half."
    if evaluation.untuned:
        strongest = max(evaluation.untuned, key=lambda model: wins[model]["mean"])
        share = percent(wins[strongest]["mean"])
        yield f"The best untuned model, {evaluation.spoken(strongest)}, is preferred on {share}."


def _what_was_learned(run: Run) -> Iterator[str]:
    for stage in run.stages.values():
        row = _first_curve(stage)
        if row:
            title, label, _, begin, end = row
            unit = f" {label}" if label else ""
            yield (f"{title} of {stage.name}: from {number(begin)} to {number(end)}{unit}.")


def _reward_accuracy(run: Run) -> Iterator[str]:
    models = measured(run)
    for name, scores in models.items():
        accuracy, agreement = scores.get(ACCURACY), scores.get("labeler_agreement")
        if accuracy is None:
            continue
        called = "The reward model" if len(models) == 1 else name
        sentence = f"{called} orders {percent(accuracy)} of held-out pairs as the labelers do"
        if agreement is not None:
            sentence += f", who agree with each other on {percent(agreement)}"
        yield f"{sentence}."


def _first_curve(stage: Stage) -> tuple[str, str, int, float, float] | None:
    """Title, unit, steps, and the mean over the first and last tenth of its first curve."""
    for curve in stage.curves:
        steps, values = stage.series(curve.metric)
        if steps:
            tenth = max(len(values) // 10, 1)
            begin, end = statistics.fmean(values[:tenth]), statistics.fmean(values[-tenth:])
            return curve.title, curve.label, steps[-1], begin, end
    return None


def _each(part: Callable[[Evaluation], Part]) -> Callable[[Run], Part]:
    """A part of one evaluation as the part of a run: one after the other, named where there are
    several.
    """

    def of_run(run: Run) -> Part:
        measurements = evaluations(run)
        for evaluation in measurements:
            pieces = list(part(evaluation))
            if pieces and len(measurements) > 1:
                yield html.subtitle(evaluation.name)
            yield from pieces

    return of_run


def key_numbers(run: Run) -> Part:
    yield from _each(_models)(run)
    rows = []
    for stage in run.stages.values():
        row = _first_curve(stage)
        if row:
            title, label, steps, begin, end = row
            curve = f"{title}, {label}" if label else title
            rows.append((stage.name, curve, f"{steps:,}", begin, end))
    if rows:
        header = ("stage", "curve", "steps", "start", "end")
        caption = "Training, means over the first and the last tenth of the steps"
        yield html.table(header, rows, caption, left=("curve",))
    facts = _facts(run)
    if facts:
        yield html.facts(facts)


def _models(evaluation: Evaluation) -> Part:
    wins, gold = evaluation.wins, evaluation.scores
    kl, nll = evaluation.table("kl"), evaluation.table("pretrain_nll")
    rows = []
    for model in evaluation.ordered([*wins, *gold, *kl, *nll]):
        win = rate(wins[model]).replace(", 95\u00a0% interval", " ·") if model in wins else "–"
        loss = number(nll.get(model), 3)
        rows.append((evaluation.shown(model), win, gold.get(model), kl.get(model), loss))
    if not rows:
        return
    header, filled = html.without_empty(
        (
            "model",
            f"wins against {evaluation.baseline} · 95 % interval",
            evaluation.score_name,
            f"KL to {evaluation.baseline}, nats",
            "pretraining loss",
        ),
        rows,
    )
    caption = "Models, at the first temperature of the evaluation"
    yield html.table(header, filled, caption, left=[name for name in header if "wins" in name])


def _facts(run: Run) -> dict[str, str]:
    models = measured(run)
    facts = {}
    for name, scores in models.items():
        facts |= {
            f"{name}, held-out prompts": percent(scores.get(ACCURACY), 1),
            f"{name}, held-out labelers": percent(scores.get("accuracy_heldout_labelers"), 1),
            f"{name}: preferring the longer reply": percent(scores.get("accuracy_longer"), 1),
            f"{name}: labelers with each other": percent(scores.get("labeler_agreement"), 1),
        }
    for stage in run.stages.values():
        probes: dict[str, float] = stage.output.get("copy_probes") or {}
        for probe, share in probes.items():
            facts[f"{stage.name}, copy probes, {probe}"] = percent(share)
    summary = run.summary
    facts |= {
        "compiled after warm-up": number(summary.get("recompiles_after_warmup"), 0),
        "peak memory": number(summary.get("peak_memory_gib"), 1) + " GiB",
        "time": duration(sum(run.seconds.values())) if run.seconds else "–",
        "hardware": str(summary.get("hardware") or "–"),
        "seed": str(summary.get("seed", "–")),
    }
    return {name: value for name, value in facts.items() if not value.startswith("–")}


def what_held(run: Run) -> Part:
    found = findings(run)
    for kind, verdict, wanted in (
        ("missed", "✗ {}: does not hold", False),
        ("held", "✓ {}: holds", True),
    ):
        texts = []
        for finding in found:
            if finding.held is wanted:
                of = f"{finding.evaluation}: " if finding.evaluation else ""
                texts.append(of + finding.text)
        if texts:
            title = verdict.format(f"{len(texts)} of {len(found)}")
            yield html.verdicts(title, kind, texts)


def preference(evaluation: Evaluation) -> Part:
    drawn = [evaluation_plots.win_rates(evaluation), evaluation_plots.use_cases(evaluation)]
    pictures = html.figures(drawn)
    if not pictures:
        return
    baseline = evaluation.baseline
    yield html.paragraph(
        f"How often each model's reply scores higher than that of {baseline} on the same prompt, a"
        f" tie counting one half, with 95 % intervals. The control is {baseline} against other"
        " samples of itself: it should stand on the dashed line."
    )
    if evaluation.judged_by_reward_model:
        text = (
            "There is no gold score here, so a reward model judges: it favors what was trained on"
            " it."
        )
        yield html.paragraph(text, "missed")
    yield from pictures
    yield from _against_others(evaluation)
    yield from _win_table(evaluation)
    yield from _case_table(evaluation)


def _against_others(evaluation: Evaluation) -> Part:
    against: dict[str, dict[str, Any]] = evaluation.table("win_rate_vs")
    names: list[str] = []
    for wins in against.values():
        names.extend(wins)
    rows = []
    for model in evaluation.ordered(names):
        cells = [rate(wins[model]) if model in wins else "–" for wins in against.values()]
        rows.append([evaluation.shown(model), *cells])
    if rows:
        header = ("model", *(f"against {evaluation.shown(other)}" for other in against))
        caption = "Wins against models from outside this run, at the first temperature"
        yield html.table(header, rows, caption, left=header[1:])


def _win_table(evaluation: Evaluation) -> Part:
    scores: dict[str, dict[str, float]] = evaluation.table("gold_score")
    rows = []
    for temperature, wins in evaluation.win_rates.items():
        means = scores.get(temperature, {})
        for model in evaluation.ordered(wins):
            name = f"{evaluation.shown(model)}, temperature {temperature}"
            rows.append((name, rate(wins[model]), wins[model]["n"], means.get(model)))
    if rows:
        header = ("model", "wins", "prompts", "mean score")
        table = html.table(header, rows, "Win rates and mean scores", left=("wins",))
        yield html.folded("The numbers: win rates", [table])


def _case_table(evaluation: Evaluation) -> Part:
    cases: dict[str, dict[str, Any]] = evaluation.table("by_use_case")
    models = evaluation_plots.models_of(evaluation, cases)
    rows = []
    for case, scores in cases.items():
        prompts = max((score["n"] for score in scores.values()), default=0)
        means = [scores.get(model, {}).get("mean") for model in models]
        rows.append([case.replace("_", " "), prompts, *means])
    if rows:
        header = ["use case", "prompts", *map(evaluation.shown, models)]
        table = html.table(header, rows, "Mean score by use case")
        yield html.folded("The numbers: use cases", [table])


def optimization(run: Run) -> Part:
    drawn = list(training.frontiers(run))
    for evaluation in evaluations(run):
        pictures = (
            evaluation_plots.best_of_n(evaluation),
            over_optimization.over_optimization(evaluation),
        )
        drawn += [picture for picture in pictures if picture]
    yield from html.figures(drawn)


def tax(evaluation: Evaluation) -> Part:
    pictures = html.figures([evaluation_plots.alignment_tax(evaluation)])
    if pictures:
        yield html.paragraph(
            "What tuning costs on ordinary text. PPO-ptx mixes pretraining gradients into PPO to"
            " keep the cost down."
        )
        yield from pictures


def reply_style(evaluation: Evaluation) -> Part:
    yield from html.figures(evaluation_plots.reply_style(evaluation))
    counted: dict[str, dict[str, float]] = evaluation.table("style")
    rows = []
    for model in evaluation.ordered(counted):
        style = counted[model]
        rows.append(
            (
                evaluation.shown(model),
                percent(style.get("rude"), 1),
                style.get("fluff"),
                number(style.get("length"), 1),
                percent(style.get("ended"), 1),
            )
        )
    if rows:
        header, filled = html.without_empty(
            ("model", "with a rude word", "empty phrases", "tokens", "ended"), rows
        )
        yield html.folded("The numbers", [html.table(header, filled, "Style of the replies")])


def samples(evaluation: Evaluation) -> Part:
    shown: list[dict[str, Any]] = evaluation.numbers.get("samples") or []
    if not shown:
        return
    yield html.paragraph(
        "The first prompts of each use case, chosen by position and not by how well any model did."
    )
    cards = [_card(evaluation, sample) for sample in shown]
    yield from cards[:SAMPLES_OPEN]
    rest = cards[SAMPLES_OPEN:]
    if rest:
        yield html.folded(count(len(rest), "more prompt"), rest)


def _card(evaluation: Evaluation, sample: dict[str, Any]) -> Markup:
    completions: dict[str, dict[str, Any]] = sample["completions"]
    replies = []
    for model in evaluation.ordered(completions):
        reply = completions[model]
        scores = [
            f"{name} {number(reply[name])}"
            for name in ("gold", "reward")
            if reply.get(name) is not None
        ]
        replies.append((evaluation.shown(model), reply["text"], " · ".join(scores)))
    case = str(sample.get("use_case", "all")).replace("_", " ")
    return html.sample(case, prompt_text(sample["prompt"]), replies)


def training_curves(run: Run) -> Part:
    """The stages of a kind share their panels."""
    drawn = []
    for _, stages in run.by_kind():
        drawn += training.curves(run, stages, main=True)
    yield from html.figures(drawn)
    for kind, stages in run.by_kind():
        more = html.figures(training.curves(run, stages, main=False))
        if more:
            yield html.folded(f"More curves of {kind}", more)


def lineage_graph(run: Run) -> Part:
    if run.stages:
        yield html.paragraph(
            "What each stage was made from, from left to right: a solid line is where it started,"
            " a dashed line what else it used. A box leads to the details of its stage."
        )
        yield lineage.graph(run)


def stage_details(run: Run) -> Part:
    yield from html.figures([training.seconds(run)])
    yield from lineage.details(run)
    rows = []
    for stage in run.stages.values():
        if stage.phases:
            rows.append((stage.name, *(_median(stage, phase) for phase in PHASES)))
    if rows:
        header = ("stage", "rollout, s", "experience, s", "update, s", "sampled tokens/s")
        yield html.table(header, rows, "Phases of a step, medians")


def _median(stage: Stage, phase: str) -> float:
    values = [row[phase] for row in stage.phases if phase in row]
    return statistics.median(values) if values else math.nan


def provenance(run: Run) -> Part:
    versions = {
        key: run.about[key]
        for key in ("command", "started", "commit", "python")
        if key in run.about
    }
    versions |= run.about.get("versions", {})
    if versions:
        rows = [
            (name, " ".join(value) if isinstance(value, list) else str(value))
            for name, value in versions.items()
        ]
        yield html.table(("", "version"), rows, "Command, commit and versions", left=("version",))
    else:
        yield html.absent("run.json, which names the versions")
    if run.config:
        yield html.folded("config.yaml", [html.verbatim(run.config)])
    else:
        yield html.absent("config.yaml")


SECTIONS: tuple[tuple[str, str, Callable[[Run], Part]], ...] = (
    ("numbers", "Key numbers", key_numbers),
    ("findings", "What held, and what did not", what_held),
    ("lineage", "Lineage", lineage_graph),
    ("preference", "Preference over the baseline", _each(preference)),
    ("optimization", "Reward, KL and best-of-n", optimization),
    ("tax", "Alignment tax", _each(tax)),
    ("reward-model", "Reward models", reward_models.against_people),
    ("rankings", "Whose samples were ranked", reward_models.rankings),
    ("labelers", "Across groups of labelers", reward_models.labeler_groups),
    ("style", "Style of the replies", _each(reply_style)),
    ("samples", "Samples side by side", _each(samples)),
    ("training", "Training curves", training_curves),
    ("stages", "Stages", stage_details),
    ("provenance", "Command and versions", provenance),
)
