"""The sections of the page, each from what a run holds.  A section that has nothing to show for a
run is left out.
"""

import dataclasses
import math
import statistics
from collections.abc import Callable, Iterator, Sequence

from markupsafe import Markup

from instruct_jax.report import html, lineage, reward_models
from instruct_jax.report.evaluations import BEST_OF_N, Evaluation, Numbers, evaluations
from instruct_jax.report.findings import Finding, findings, mixes_text, strongest_untuned
from instruct_jax.report.plots import evaluation as evaluation_plots
from instruct_jax.report.plots import over_optimization, training
from instruct_jax.report.plots.evaluation import models_of
from instruct_jax.report.plots.style import Picture
from instruct_jax.report.reward_models import ACCURACY, measured
from instruct_jax.report.run_data import Run, Stage
from instruct_jax.report.text import duration, listed, prompt_text
from instruct_jax.text import number, percent, plural

SAMPLES_OPEN = 6  # prompts; the others are folded
ACCURACY_FACTS = {
    "held-out prompts": ACCURACY,
    "held-out labelers": "accuracy_heldout_labelers",
    "preferring the longer reply": "accuracy_longer",
    "labelers with each other": "labeler_agreement",
}
PHASES = {  # of phases.jsonl -> column of the table
    "rollout": "rollout, s",
    "experience": "experience, s",
    "update": "update, s",
    "tokens_per_second": "sampled tokens/s",
}
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
    finished = []
    missing = []
    for stage in run.stages.values():
        part = finished if stage.done else missing
        part.append(stage.name)
    sentences = ["This run has not finished a stage yet."]
    if finished:
        sentences = [f"This run went through {listed(finished)}."]
    if missing:
        sentences.append(f"Not finished: {listed(missing)}.")
    measurements = evaluations(run)
    for evaluation in measurements:
        prefix = f"{evaluation.name}: " if len(measurements) > 1 else ""
        for sentence in _preferences(evaluation):
            sentences.append(prefix + sentence)
    if not any(evaluation.wins for evaluation in measurements):
        sentences += _what_was_learned(run)
    sentences += _reward_accuracy(run)
    if run.seconds:
        hardware = run.summary.get("hardware")
        where = f" on {hardware}" if hardware else ""
        total = duration(sum(run.seconds.values()))
        sentences.append(f"All of it took {total}{where}.")
    return " ".join(sentences)


def _preferences(evaluation: Evaluation) -> Iterator[str]:
    wins = evaluation.wins
    baseline = evaluation.baseline
    models = [model for model in (BEST_OF_N, *evaluation.ours) if model in wins]
    models.sort(key=lambda model: wins[model].mean, reverse=True)
    if models:
        judge = "the reward model" if evaluation.judged_by_reward_model else "the gold score"
        shares = []
        for model in models:
            share = percent(wins[model].mean)
            shares.append(f"{evaluation.spoken(model)} {share}")
        prompts = plural(wins[models[0]].n, "held-out prompt")
        yield f"Preferred to {baseline} on {prompts}, judged by {judge}: {listed(shares)}."
    control = wins.get(evaluation.control)
    if control and not control.is_even:
        share = percent(control.mean)
        yield f"Beware: {baseline} against other samples of itself wins {share} and not about half."
    strongest = strongest_untuned(evaluation)
    if strongest:
        name = evaluation.spoken(strongest)
        share = percent(wins[strongest].mean)
        yield f"The best untuned model, {name}, is preferred on {share}."


def _what_was_learned(run: Run) -> Iterator[str]:
    for stage in run.stages.values():
        learned = _learned(stage)
        if learned:
            unit = f" {learned.unit}" if learned.unit else ""
            begin = number(learned.begin)
            end = number(learned.end)
            yield f"{learned.title} of {stage.name}: from {begin} to {end}{unit}."


def _reward_accuracy(run: Run) -> Iterator[str]:
    models = measured(run)
    for name, scores in models.items():
        accuracy = scores.get(ACCURACY)
        agreement = scores.get("labeler_agreement")
        if accuracy is None:
            continue
        called = "The reward model" if len(models) == 1 else name
        people = "as the labelers do"
        if agreement is not None:
            people += f", who agree with each other on {percent(agreement)}"
        yield f"{called} orders {percent(accuracy)} of held-out pairs {people}."


@dataclasses.dataclass(frozen=True)
class Learned:
    """The first curve of a stage."""

    title: str
    unit: str
    steps: int
    begin: float  # mean over the first tenth of the steps
    end: float  # and over the last


def _learned(stage: Stage) -> Learned | None:
    for curve in stage.curves:
        steps, values = stage.series(curve.metric)
        if steps:
            tenth = max(len(values) // 10, 1)
            begin = statistics.fmean(values[:tenth])
            end = statistics.fmean(values[-tenth:])
            return Learned(curve.title, curve.label, steps[-1], begin, end)
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
    for evaluation in evaluations(run):
        yield from _models(evaluation)
    rows = []
    for stage in run.stages.values():
        learned = _learned(stage)
        if learned:
            curve = f"{learned.title}, {learned.unit}" if learned.unit else learned.title
            row = (
                stage.name,
                curve,
                f"{learned.steps:,}",
                learned.begin,
                learned.end,
            )
            rows.append(row)
    if rows:
        header = ("stage", "curve", "steps", "start", "end")
        caption = "Training, means over the first and the last tenth of the steps"
        yield html.table(header, rows, caption, left=("curve",))
    facts = _facts(run)
    if facts:
        yield html.facts(facts)


def _models(evaluation: Evaluation) -> Part:
    columns = (
        evaluation.wins,
        evaluation.scores,
        evaluation.table("kl"),
        evaluation.table("pretrain_nll"),
    )
    wins, scores, kl, nll = columns
    rows = []
    for model in models_of(evaluation, columns):
        win = wins.get(model)
        row = (
            evaluation.shown(model),
            f"{number(win.mean)} · {win.interval}" if win else "–",
            scores.get(model),
            kl.get(model),
            number(nll.get(model), 3),
        )
        rows.append(row)
    won = f"wins against {evaluation.baseline} · 95 % interval"
    header = (
        "model",
        won,
        evaluation.score_name,
        f"KL to {evaluation.baseline}, nats",
        "pretraining loss",
    )
    caption = f"{evaluation.name}: models at the first temperature"
    if rows:
        header, rows = html.without_empty(header, rows)
        yield html.table(header, rows, caption, left=(won,))


def _facts(run: Run) -> dict[str, str]:
    """Those that the run knows."""
    facts = {}
    for name, scores in measured(run).items():
        for text, key in ACCURACY_FACTS.items():
            facts[f"{name}: {text}"] = percent(scores.get(key), 1)
    for stage in run.stages.values():
        loss = stage.output.get("nll_held_out")
        facts[f"{stage.name}: loss on held-out demonstrations"] = number(loss, 3)
        probes: dict[str, float] = stage.output.get("copy_probes") or {}
        for probe, share in probes.items():
            facts[f"{stage.name}: copy probes, {probe}"] = percent(share)
    summary = run.summary
    spent = sum(run.seconds.values())
    total = duration(spent) if run.seconds else "–"
    facts |= {
        "compiled after warm-up": number(summary.get("recompiles_after_warmup"), 0),
        "peak memory": number(summary.get("peak_memory_gib"), 1) + " GiB",
        "time": total,
        "hardware": str(summary.get("hardware") or "–"),
        "seed": str(summary.get("seed", "–")),
    }
    return {name: value for name, value in facts.items() if not value.startswith("–")}


def what_held(run: Run) -> Part:
    results = findings(run)
    yield from _verdicts(results, "missed", "✗ {} of {}: does not hold")
    yield from _verdicts(results, "held", "✓ {} of {}: holds")


def _verdicts(results: Sequence[Finding], kind: str, title: str) -> Part:
    texts = []
    for finding in results:
        if finding.held == (kind == "held"):
            prefix = f"{finding.evaluation}: " if finding.evaluation else ""
            texts.append(prefix + finding.text)
    if texts:
        counted = title.format(len(texts), len(results))
        yield html.verdicts(counted, kind, texts)


def preference(evaluation: Evaluation) -> Part:
    win_rates = evaluation_plots.win_rates(evaluation)
    use_cases = evaluation_plots.use_cases(evaluation)
    pictures = html.figures([win_rates, use_cases])
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
            "There is no gold score here: a reward model judges, and favors what learned from it."
        )
        yield html.paragraph(text, "missed")
    yield from pictures
    yield from _against_others(evaluation)
    yield from _win_table(evaluation)
    yield from _case_table(evaluation)


def _against_others(evaluation: Evaluation) -> Part:
    against = evaluation.wins_against_others
    rows = []
    for model in models_of(evaluation, against.values()):
        row = [evaluation.shown(model)]
        for wins in against.values():
            row.append(str(wins.get(model, "–")))
        rows.append(row)
    if rows:
        header = ("model", *(f"against {other}" for other in against))
        caption = "Wins against models from outside this run, at the first temperature"
        yield html.table(header, rows, caption, left=header[1:])


def _win_table(evaluation: Evaluation) -> Part:
    rows = []
    for temperature, wins in evaluation.win_rates.items():
        means: dict[str, float] = evaluation.table("gold_score").get(temperature, {})
        for model in evaluation.ordered(wins):
            win = wins[model]
            row = (
                f"{evaluation.shown(model)}, temperature {temperature}",
                str(win),
                win.n,
                means.get(model),
            )
            rows.append(row)
    if rows:
        header = ("model", "wins", "prompts", "mean score")
        table = html.table(header, rows, "Win rates and mean scores", left=("wins",))
        yield html.folded("The numbers: win rates", [table])


def _case_table(evaluation: Evaluation) -> Part:
    means = evaluation_plots.means_by_case(evaluation)
    models = models_of(evaluation, means.values())
    rows = []
    for case, scores in evaluation.table("by_use_case").items():
        prompts = [score["n"] for score in scores.values()]
        row = (
            case.replace("_", " "),
            max(prompts, default=0),
            *(means[case].get(model) for model in models),
        )
        rows.append(row)
    if rows:
        header = ("use case", "prompts", *map(evaluation.shown, models))
        table = html.table(header, rows, "Mean score by use case")
        yield html.folded("The numbers: use cases", [table])


def optimization(run: Run) -> Part:
    drawn: list[Picture | None] = [*training.frontiers(run)]
    for evaluation in evaluations(run):
        drawn.append(evaluation_plots.best_of_n(evaluation))
        drawn.append(over_optimization.over_optimization(evaluation))
    yield from html.figures(drawn)


def tax(evaluation: Evaluation) -> Part:
    pictures = html.figures([evaluation_plots.alignment_tax(evaluation)])
    if not pictures:
        return
    text = "What tuning costs on ordinary text."
    mixed = [model for model in evaluation.ours if mixes_text(evaluation.stage_of(model))]
    if mixed:
        text += f" Gradients of pretraining text in {listed(mixed)} keep the cost down."
    yield html.paragraph(text)
    yield from pictures


def reply_style(evaluation: Evaluation) -> Part:
    yield from html.figures(evaluation_plots.reply_style(evaluation))
    style = evaluation.table("style")
    rows = []
    for model in evaluation.ordered(style):
        counted = style[model]
        row = (
            evaluation.shown(model),
            percent(counted.get("rude"), 1),
            counted.get("fluff"),
            number(counted.get("length"), 1),
            percent(counted.get("ended"), 1),
        )
        rows.append(row)
    if rows:
        header = ("model", "with a rude word", "empty phrases", "tokens", "ended")
        header, rows = html.without_empty(header, rows)
        table = html.table(header, rows, "Style of the replies")
        yield html.folded("The numbers", [table])


def samples(evaluation: Evaluation) -> Part:
    cards = [_card(evaluation, sample) for sample in evaluation.samples]
    if not cards:
        return
    yield html.paragraph(
        "The first prompts of each use case, chosen by position and not by how well any model did."
    )
    yield from cards[:SAMPLES_OPEN]
    rest = cards[SAMPLES_OPEN:]
    if rest:
        yield html.folded(plural(len(rest), "more prompt"), rest)


def _card(evaluation: Evaluation, sample: Numbers) -> Markup:
    replies = []
    for model in evaluation.ordered(sample["completions"]):
        reply = sample["completions"][model]
        scores = []
        for name in ("gold", "reward"):
            if reply.get(name) is not None:
                scores.append(f"{name} {number(reply[name])}")
        shown = evaluation.shown(model)
        replies.append((shown, reply["text"], " · ".join(scores)))
    case = str(sample.get("use_case", "all"))
    prompt = prompt_text(sample["prompt"])
    return html.sample(case.replace("_", " "), prompt, replies)


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
            " a dashed line what else it used, a dotted line data. A box leads to the details."
        )
        yield lineage.graph(run)


def stage_details(run: Run) -> Part:
    yield from html.figures([training.seconds(run)])
    yield from lineage.details(run)
    rows = []
    for stage in run.stages.values():
        if stage.phases:
            medians = [_median(stage, phase) for phase in PHASES]
            rows.append([stage.name, *medians])
    if rows:
        header = ("stage", *PHASES.values())
        yield html.table(header, rows, "Phases of a step, medians")


def _median(stage: Stage, phase: str) -> float:
    values = [row[phase] for row in stage.phases if phase in row]
    return statistics.median(values) if values else math.nan


def provenance(run: Run) -> Part:
    rows = []
    for key in ("command", "started", "commit", "python"):
        value = run.about.get(key)
        if value is not None:
            text = " ".join(value) if isinstance(value, list) else str(value)
            rows.append((key, text))
    versions: dict[str, str] = run.about.get("versions", {})
    rows += versions.items()
    if rows:
        yield html.table(("what", "value"), rows, "Command, commit and versions", left=("value",))
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
