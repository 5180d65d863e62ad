"""The sections of the page, each from the numbers of a run."""

import json
import math
import statistics
from collections.abc import Callable, Iterator
from typing import Any

from instruct_jax.report import html, labelers
from instruct_jax.report.findings import findings, headline, rate
from instruct_jax.report.plots import evaluation, over_optimization, training
from instruct_jax.report.run_data import TRAINED, Run
from instruct_jax.report.text import (
    duration,
    escape,
    in_sentence,
    listed,
    model_name,
    number,
    ordered,
    percent,
    prompt_text,
)

SAMPLES_OPEN = 6  # prompts; the others are folded
Part = Iterator[str]


def abstract(run: Run) -> str:
    """The run in one paragraph of plain words."""
    done = [name for name in TRAINED if name in run.done or name in run.metrics]
    names = [training.NAMES[stage] for stage in done]
    parts = [
        (
            f"This run went through {listed(names)}."
            if names
            else "This run has not finished a stage yet."
        )
    ]
    wins, judge = headline(run.summary, run.evaluation), run.evaluation.get("judge")
    if tuned := sorted(
        (m for m in ("best_of_n", "ppo", "ppo_ptx") if m in wins), key=lambda m: -wins[m]["mean"]
    ):
        by = {
            "gold": ", judged by the gold score",
            "reward model": ", judged by the reward model itself",
        }.get(str(judge), "")
        shares = [f"{in_sentence(m)} {percent(wins[m]['mean'])}" for m in tuned]
        parts.append(
            f"Preferred to SFT on {wins[tuned[0]]['n']} held-out prompts{by}: {listed(shares)}."
        )
    control = wins.get("sft_control")
    if control and not control["ci95"][0] <= 0.5 <= control["ci95"][1]:
        parts.append(
            f"Beware: SFT against other samples of itself wins {percent(control['mean'])} and not"
            " about half."
        )
    if (base := wins.get("base")) is not None:
        parts.append(f"The base model, before any tuning, is preferred on {percent(base['mean'])}.")
    reward = run.summary.get("reward_model", {})
    if reward.get("accuracy_heldout_prompts") is not None:
        text = (
            f"The reward model orders {percent(reward['accuracy_heldout_prompts'])} of held-out"
            " pairs as the labelers do"
        )
        agreement = reward.get("labeler_agreement")
        parts.append(
            text
            + (
                f", who agree with each other on {percent(agreement)}."
                if agreement is not None
                else "."
            )
        )
    if run.seconds:
        on = f" on {run.summary['hardware']}" if run.summary.get("hardware") else ""
        parts.append(f"All of it took {duration(sum(run.seconds.values()))}{on}.")
    return " ".join(parts)


def remarks(run: Run) -> Part:
    found = findings(run.summary, run.evaluation)
    if not found:
        yield html.absent("numbers to compare with the paper's (the stage evaluate has not run)")
        return
    for kind, title, wanted in (("missed", "does not hold", False), ("held", "holds", True)):
        items = [f"<li>{escape(f.text)}</li>" for f in found if f.held is wanted]
        if items:
            mark = "✓" if wanted else "✗"
            yield (
                f'<h3 class="{kind}">{mark} {len(items)} of {len(found)}: {title}</h3><ul'
                f' class="{kind}">{"".join(items)}</ul>'
            )


def key_numbers(run: Run) -> Part:
    wins, summary, found = headline(run.summary, run.evaluation), run.summary, run.evaluation
    gold = next(iter(found.get("gold_score", {}).values()), {}) or summary.get("gold_score", {})
    kl, nll = (found.get(key) or summary.get(key, {}) for key in ("kl_to_sft", "pretrain_nll"))
    models = ordered({*wins, *gold, *kl, *nll})
    rows = [
        (
            model_name(m),
            rate(wins[m]).replace(", 95\u00a0% interval", " ·") if m in wins else "–",
            gold.get(m),
            kl.get(m),
            number(nll.get(m), 3),
        )
        for m in models
    ]
    if rows:
        score = "reward-model score" if found.get("judge") == "reward model" else "gold score"
        header = (
            "model",
            "wins against SFT · 95 % interval",
            score,
            "KL to SFT, nats",
            "pretraining loss",
        )
        yield html.table(
            header, rows, "Models, at the first temperature of the evaluation", left=header[1:2]
        )
    else:
        yield html.absent("scores of models (the stage evaluate has not run)")
    reward = summary.get("reward_model", {})
    facts = {
        "reward model, held-out prompts": percent(reward.get("accuracy_heldout_prompts"), 1),
        "reward model, held-out labelers": percent(reward.get("accuracy_heldout_labelers"), 1),
        "preferring the longer reply": percent(reward.get("accuracy_longer"), 1),
        "labelers with each other": percent(reward.get("labeler_agreement"), 1),
        **{
            f"copy probes, {kind}": percent(share)
            for kind, share in found.get("copy_probes", {}).items()
        },
        "compiled after warm-up": number(summary.get("recompiles_after_warmup"), 0),
        "peak memory": number(summary.get("peak_memory_gib"), 1) + " GiB",
        "time": duration(sum(run.seconds.values())),
        "hardware": str(summary.get("hardware", "–")),
        "seed": str(summary.get("seed", "–")),
    }
    facts = {
        name: value
        for name, value in facts.items()
        if not value.startswith("–") and value != "None"
    }
    yield (
        '<dl class="facts">'
        + "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in facts.items())
        + "</dl>"
    )


def preference(run: Run) -> Part:
    pictures = html.figures([evaluation.win_rates(run), evaluation.use_cases(run)])
    if not pictures:
        yield html.absent("win rates (the stage evaluate has not run)")
        return
    yield html.paragraph(
        "How often each model's reply scores higher than the SFT model's on the same prompt, a tie"
        " counting one half, with 95 % intervals. The control is the SFT model against other"
        " samples of itself: it should stand on the dashed line."
    )
    if run.evaluation.get("judge") == "reward model":
        yield html.paragraph(
            "This run has no gold judge, so the reward model judges: it favours what was trained"
            " on it.",
            "missed",
        )
    yield from pictures
    if against := run.evaluation.get("win_rate_vs_others"):
        ours = ordered({model for wins in against.values() for model in wins})
        rows = [(model_name(m), *(rate(wins[m]) for wins in against.values())) for m in ours]
        header = ("our model", *(f"against {model_name(other)}" for other in against))
        yield html.table(
            header,
            rows,
            "Wins against models of other runs, at the first temperature",
            left=header[1:],
        )
    by_temperature: dict[str, Any] = run.evaluation.get("win_rate_vs_sft", {})
    scores: dict[str, Any] = run.evaluation.get("gold_score", {})
    rows = [
        (f"{model_name(m)}, temperature {t}", rate(wins[m]), wins[m]["n"], scores.get(t, {}).get(m))
        for t, wins in by_temperature.items()
        for m in ordered(wins)
    ]
    cases: dict[str, Any] = run.evaluation.get("by_use_case", {})
    models = ordered({m for case in cases.values() for m in case})
    by_case = [
        (
            case.replace("_", " "),
            max((s["n"] for s in of.values()), default=0),
            *(of.get(m, {}).get("mean") for m in models),
        )
        for case, of in cases.items()
    ]
    if rows:
        yield html.folded(
            "The numbers: win rates",
            [
                html.table(
                    ("model", "wins", "prompts", "mean score"),
                    rows,
                    "Win rates and mean scores",
                    left=("wins",),
                )
            ],
        )
    if by_case:
        header = ("use case", "prompts", *map(model_name, models))
        yield html.folded(
            "The numbers: use cases", [html.table(header, by_case, "Mean score by use case")]
        )


def optimisation(run: Run) -> Part:
    drawn = [
        training.frontier(run),
        evaluation.best_of_n(run),
        over_optimization.over_optimisation(run),
    ]
    yield from html.figures(drawn) or [html.absent("PPO iterations and best-of-n")]


def tax(run: Run) -> Part:
    yield html.paragraph(
        "What tuning costs on ordinary text. PPO-ptx mixes pretraining gradients into PPO to keep"
        " the cost down."
    )
    yield from html.figures([evaluation.alignment_tax(run)]) or [
        html.absent("loss on held-out pretraining text")
    ]


def reward_model(run: Run) -> Part:
    drawn = [
        evaluation.accuracy(run),
        evaluation.calibration(run),
        evaluation.score_by_length(run),
    ]
    yield from html.figures(drawn) or [html.absent("measurements of the reward model")]
    if people := run.evaluation.get("reward_model", {}).get("per_labeler"):
        rows = [(str(name), percent(share, 1)) for name, share in people.items()]
        yield html.folded(
            "By labeler",
            [html.table(("labeler", "pairs in the right order"), rows, "Accuracy by labeler")],
        )


def manners(run: Run) -> Part:
    found: dict[str, Any] = run.evaluation.get("style", {})
    if not found:
        yield html.absent("rude words, length and endings of the replies")
        return
    rows = [
        (
            model_name(m),
            percent(s.get("rude"), 1),
            s.get("fluff"),
            number(s.get("length"), 1),
            percent(s.get("ended"), 1),
        )
        for m, s in ((m, found[m]) for m in ordered(found))
    ]
    yield from html.figures(evaluation.reply_style(run))
    header = ("model", "with a rude word", "empty phrases", "tokens", "ended")
    yield html.folded("The numbers", [html.table(header, rows, "Manners of the replies")])


def samples(run: Run) -> Part:
    found: list[dict[str, Any]] = run.evaluation.get("samples", [])
    if not found:
        yield html.absent("sample completions")
        return
    yield html.paragraph(
        "The first prompts of each use case, chosen by position and not by how well any model did."
    )
    cards = [_card(sample) for sample in found]
    yield from cards[:SAMPLES_OPEN]
    if rest := cards[SAMPLES_OPEN:]:
        yield html.folded(f"{len(rest)} more prompts", rest)


def _card(sample: dict[str, Any]) -> str:
    replies: dict[str, Any] = sample["completions"]
    cells = []
    for model in ordered(replies):
        scores = [
            f"{name} {number(replies[model][name])}"
            for name in ("gold", "reward")
            if replies[model].get(name) is not None
        ]
        cells.append(
            "<div"
            f' class="reply"><h4>{escape(model_name(model))}</h4><p>{html.quoted(replies[model]["text"])}</p><p'
            f' class="score">{escape(" · ".join(scores))}</p></div>'
        )
    case = escape(str(sample.get("use_case", "all")).replace("_", " "))
    prompt = html.quoted(prompt_text(sample["prompt"]))
    return (
        f'<article><h3><span class="case">{case}</span> {prompt}</h3><div'
        f' class="replies">{"".join(cells)}</div></article>'
    )


def training_curves(run: Run) -> Part:
    if not run.metrics:
        yield html.absent("metrics of any training stage")
        return
    if missing := [
        training.NAMES[stage]
        for stage in TRAINED
        if stage not in run.metrics and stage != "ppo_start"
    ]:
        yield html.absent(f"training curves of {listed(missing)}")
    yield from html.figures(training.curves(run, training.SUPERVISED + training.MAIN))
    if more := html.figures(training.curves(run, training.MORE)):
        yield html.folded("More curves of PPO", more)


def provenance(run: Run) -> Part:
    yield from html.figures([evaluation.seconds(run)]) or [html.absent("finished stages")]
    if run.done:
        rows = [
            (
                stage,
                str(d.get("finished", "–"))[:16].replace("T", " "),
                duration(d.get("seconds", 0)),
                _speed(run, stage),
                _inputs(d),
            )
            for stage, d in run.done.items()
        ]
        yield html.table(
            ("stage", "finished", "time", "speed", "made from"),
            rows,
            "Lineage: what each stage was made from",
            left=("finished", "made from"),
        )
        outputs = {stage: done.get("output") for stage, done in run.done.items()}
        yield html.folded(
            "Hashes and outputs of the stages",
            [html.verbatim(json.dumps({"inputs": _full(run), "output": outputs}, indent=1))],
        )
    if run.phases:
        keys = ("rollout", "experience", "update", "tokens_per_second")
        medians = [
            (
                training.NAMES[stage],
                *(
                    statistics.median([row[key] for row in rows if key in row] or [math.nan])
                    for key in keys
                ),
            )
            for stage, rows in run.phases.items()
        ]
        header = ("", "rollout, s", "experience, s", "update, s", "sampled tokens/s")
        yield html.table(header, medians, "Phases of a PPO iteration, medians")
    about = {
        key: run.about[key]
        for key in ("command", "started", "commit", "python")
        if key in run.about
    }
    versions = about | run.about.get("versions", {})
    if versions:
        rows = [
            (name, " ".join(value) if isinstance(value, list) else str(value))
            for name, value in versions.items()
        ]
        yield html.table(("", "version"), rows, "Command, commit and versions", left=("version",))
    else:
        yield html.absent("run.json, which names the versions")
    yield (
        html.folded("config.yaml", [html.verbatim(run.config)])
        if run.config
        else html.absent("config.yaml")
    )


def _full(run: Run) -> dict[str, Any]:
    return {stage: done.get("inputs", {}) for stage, done in run.done.items()}


def _inputs(done: dict[str, Any]) -> str:
    return (
        ", ".join(
            f"{name} {str(value).removeprefix('sha256:')[:10]}"
            for name, value in done.get("inputs", {}).items()
        )
        or "–"
    )


def _speed(run: Run, stage: str) -> str:
    known = [
        s["seconds_per_step"] for s in run.sessions.get(stage, []) if s.get("seconds_per_step")
    ]
    return f"{known[-1]:.3g} s a step" if known else "–"


SECTIONS: tuple[tuple[str, str, Callable[[Run], Part]], ...] = (
    ("numbers", "Key numbers", key_numbers),
    ("remarks", "What held, and what did not", remarks),
    ("preference", "Preference over the SFT model", preference),
    ("optimisation", "Reward, KL and best-of-n", optimisation),
    ("tax", "Alignment tax", tax),
    ("reward-model", "The reward model", reward_model),
    ("rankings", "Rounds, and whose samples were ranked", labelers.rankings),
    ("labelers", "Across groups of labelers", labelers.labeler_groups),
    ("manners", "Manners", manners),
    ("samples", "Samples side by side", samples),
    ("training", "Training curves", training_curves),
    ("provenance", "Time, lineage, versions", provenance),
)
