"""Which shapes of the paper a run shows, and which not, from its numbers alone.

A finding compares models by what they are to each other: what was made on top of the baseline, and
what mixes pretraining text into the same training.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from instruct_jax.report.evaluations import BASE, BEST_OF_N, PROMPTED, Evaluation, evaluations
from instruct_jax.report.reward_models import ACCURACY, measured
from instruct_jax.report.run_data import Run, Stage
from instruct_jax.report.text import count, listed, number, percent, rate

USE_CASE_DROP = 0.05  # of the judge's score, from the baseline
CALIBRATION_GAP = 0.05  # mean |predicted - observed|
ENDED = 0.9  # share of replies that a tuned model should end by itself
RISE = 0.001  # nats per token: less is not seen in the printed numbers
LONGER = 1.25  # times the baseline's length
LABELER_GAP = 0.05  # of accuracy, below which it counts as equal

Numbers = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Finding:
    held: bool  # the paper's shape, or what a sound run shows, is there
    text: str
    evaluation: str = ""  # the stage that measured it, where a run has several


def findings(run: Run) -> list[Finding]:
    """One for each shape that can be judged from the numbers."""
    found: list[Finding] = []
    measurements = evaluations(run)
    for evaluation in measurements:
        name = evaluation.name if len(measurements) > 1 else ""
        found += [dataclasses.replace(f, evaluation=name) for f in _of_evaluation(evaluation)]
    found += _reward_models(run)
    return found + list(_machine(run.summary, alone=not found))


def _of_evaluation(evaluation: Evaluation) -> Iterator[Finding]:
    yield from _judge(evaluation)
    yield from _untuned(evaluation)
    yield from _against_baseline(evaluation)
    yield from _mixing(evaluation)
    yield from _control(evaluation)
    yield from _other_temperatures(evaluation)
    yield from _use_cases(evaluation)
    yield from _pretraining(evaluation)
    yield from _tax(evaluation)
    yield from _best_of_n(evaluation)
    yield from _style(evaluation)


def _judge(evaluation: Evaluation) -> Iterator[Finding]:
    if not evaluation.judged_by_reward_model:
        return
    reward = evaluation.stage.uses.get("reward")
    climbed = [m for m in evaluation.ours if evaluation.stage_of(m).uses.get("reward") == reward]
    if BEST_OF_N in evaluation.wins:
        climbed.append(evaluation.spoken(BEST_OF_N))
    if climbed:
        text = (
            f"The judge is the reward model that {listed(climbed)} optimized for, so win rates show"
            " how well it was pleased, not how good replies are."
        )
        yield Finding(False, text)


def _untuned(evaluation: Evaluation) -> Iterator[Finding]:
    """The base, prompted and not, and the baseline above both."""
    wins, baseline = evaluation.wins, evaluation.baseline
    if BASE in wins and PROMPTED in wins:
        yield _prompting(wins[BASE], wins[PROMPTED])
    if not evaluation.untuned:
        return
    strongest = max(evaluation.untuned, key=lambda model: wins[model]["mean"])
    name, win = evaluation.spoken(strongest), wins[strongest]
    held = win["ci95"][1] < 0.5
    verb = "is" if held else "is not clearly"
    yield Finding(
        held,
        f"{baseline} {verb} preferred to the strongest untuned model: {name} wins {rate(win)}.",
    )


def _prompting(base: Numbers, prompted: Numbers) -> Finding:
    values = f"{number(prompted['mean'])} against {number(base['mean'])}"
    if prompted["mean"] <= base["mean"]:
        return Finding(False, f"The prompted base is not above the base: {values}.")
    overlap = _overlap(prompted, base)
    but = ", though the intervals overlap" if overlap else ""
    return Finding(not overlap, f"The prompted base is above the base: {values}{but}.")


def _against_baseline(evaluation: Evaluation) -> Iterator[Finding]:
    for model in (BEST_OF_N, *evaluation.ours):
        if model in evaluation.wins:
            name = "Best of n" if model == BEST_OF_N else model
            yield _preferred(name, evaluation.baseline, evaluation.wins[model])


def _preferred(name: str, baseline: str, win: Numbers) -> Finding:
    low, high = win["ci95"]
    if low > 0.5:
        return Finding(True, f"{name} is preferred to {baseline}: it wins {rate(win)}.")
    if high < 0.5:
        return Finding(False, f"{name} is not above {baseline} but below it: it wins {rate(win)}.")
    return Finding(
        False, f"{name} is not clearly above {baseline}: it wins {rate(win)}, which includes 0.50."
    )


def _overlap(a: Numbers, b: Numbers) -> bool:
    return a["ci95"][0] <= b["ci95"][1] and b["ci95"][0] <= a["ci95"][1]


def mixes_text(stage: Stage) -> bool:
    """True for a policy that has gradients of pretraining text mixed in."""
    return bool(stage.settings.get("ptx_coef"))


def _pairs(evaluation: Evaluation) -> Iterator[tuple[str, str]]:
    """Models with and without pretraining text mixed in that have the same start and reward."""
    mixed = [model for model in evaluation.ours if mixes_text(evaluation.stage_of(model))]
    unmixed = [model for model in evaluation.ours if model not in mixed]
    for model in mixed:
        stage = evaluation.stage_of(model)
        for other in unmixed:
            twin = evaluation.stage_of(other)
            if (twin.kind, _origin(twin)) == (stage.kind, _origin(stage)):
                yield model, other


def _origin(stage: Stage) -> tuple[str | None, str | None]:
    return stage.uses.get("start"), stage.uses.get("reward")


def _mixing(evaluation: Evaluation) -> Iterator[Finding]:
    wins = evaluation.wins
    for mixed, unmixed in _pairs(evaluation):
        if mixed not in wins or unmixed not in wins:
            continue
        values = f"{number(wins[unmixed]['mean'])} and {number(wins[mixed]['mean'])}"
        if _overlap(wins[mixed], wins[unmixed]):
            text = f"are preferred about equally often, {values}: their intervals overlap."
            yield Finding(True, f"{unmixed} and {mixed} {text}")
        else:
            better = max((mixed, unmixed), key=lambda model: wins[model]["mean"])
            text = f"differ, {values}: {better} is ahead, where the paper finds PPO and PPO-ptx"
            yield Finding(False, f"{unmixed} and {mixed} {text} about equal.")


def _control(evaluation: Evaluation) -> Iterator[Finding]:
    control = evaluation.wins.get(evaluation.control)
    if control is None:
        return
    text = f"{evaluation.baseline} against other samples of itself wins {rate(control)}"
    if control_holds(control):
        yield Finding(True, f"The control holds: {text}.")
    else:
        text = f"The control fails: {text}, which leaves out 0.50; doubt the win rates."
        yield Finding(False, text)


def control_holds(control: Numbers) -> bool:
    low, high = control["ci95"]
    return low <= 0.5 <= high


def _other_temperatures(evaluation: Evaluation) -> Iterator[Finding]:
    baseline = evaluation.baseline
    for temperature, wins in list(evaluation.win_rates.items())[1:]:
        models = [model for model in evaluation.ours if model in wins]
        if not models:
            continue
        values = listed([f"{model} wins {number(wins[model]['mean'])}" for model in models])
        held = all(wins[model]["ci95"][0] > 0.5 for model in models)
        verdict = "holds as well" if held else "is not clear for every model"
        text = f"At temperature {temperature} the gain over {baseline} {verdict}: {values}."
        yield Finding(held, text)


def _use_cases(evaluation: Evaluation) -> Iterator[Finding]:
    cases: dict[str, dict[str, Numbers]] = evaluation.table("by_use_case")
    for model in evaluation.ours:
        compared, fell = 0, []
        for case, scores in cases.items():
            if model not in scores or evaluation.baseline not in scores:
                continue
            before, after = scores[evaluation.baseline]["mean"], scores[model]["mean"]
            compared += 1
            if after < before - USE_CASE_DROP:
                fell.append(f"{case} from {number(before)} to {number(after)}")
        if not compared:
            continue
        of = count(compared, "use case")
        how = f"{model} fell by more than {USE_CASE_DROP} in"
        if fell:
            yield Finding(False, f"{how} {len(fell)} of {of}: {listed(fell)}.")
        else:
            yield Finding(True, f"{how} none of {of}.")


def _pretraining(evaluation: Evaluation) -> Iterator[Finding]:
    """Models that learned from plain text, against the frequencies of its tokens."""
    for model, loss in evaluation.table("pretrain_nll").items():
        stage = evaluation.run.stages.get(evaluation.source(model))
        unigram = stage.output.get("nll_unigram") if stage is not None else None
        if unigram is not None:
            held = loss < unigram
            values = f"{number(loss, 3)} against {number(unigram, 3)} nats per token"
            text = (
                f"{model} {'beats' if held else 'does not beat'} its trivial baseline on held-out"
                f" text: {values} for the frequencies of tokens alone."
            )
            yield Finding(held, text)


def _tax(evaluation: Evaluation) -> Iterator[Finding]:
    """What learning from a reward costs on ordinary text, and what mixing text in saves."""
    nll, baseline = evaluation.table("pretrain_nll"), evaluation.baseline
    for model in evaluation.ours:
        stage = evaluation.stage_of(model)
        learned = "reward" in stage.uses and len(stage.curves) > 0
        if not learned or mixes_text(stage):
            continue
        if model not in nll or baseline not in nll:
            continue
        values = f"{number(nll[baseline], 3)} to {number(nll[model], 3)} nats per token"
        held = nll[model] > nll[baseline] + RISE
        verdict, change = ("pays the", "rises") if held else ("shows no", "does not rise")
        text = (
            f"{model} {verdict} alignment tax: its loss on pretraining text {change} over"
            f" {baseline}'s, {values}."
        )
        yield Finding(held, text)
    for mixed, unmixed in _pairs(evaluation):
        if mixed in nll and unmixed in nll:
            held = nll[mixed] < nll[unmixed] - RISE
            verdict = "lowers" if held else "does not lower"
            values = f"{number(nll[mixed], 3)} against {number(nll[unmixed], 3)} for {unmixed}"
            yield Finding(held, f"{mixed} {verdict} the tax: {values}.")


def _best_of_n(evaluation: Evaluation) -> Iterator[Finding]:
    points = [p for p in evaluation.numbers.get("best_of_n") or [] if p.get("gold") is not None]
    if len(points) < 2:
        return
    points.sort(key=lambda point: point["n"])
    first, last = points[0], points[-1]
    top = max(points, key=lambda point: point["gold"])
    noise = 2 * last.get("se", 0)
    values = (
        f"{number(first['gold'], 3)} at n = {first['n']} to {number(last['gold'], 3)} at n ="
        f" {last['n']}"
    )
    if top["gold"] - last["gold"] > noise:
        text = f"the judge's score is highest at n = {top['n']} and falls after it; it goes from"
        yield Finding(False, f"Best of n over-optimizes: {text} {values}.")
    elif last["gold"] - first["gold"] > noise:
        yield Finding(True, f"Best of n keeps its gain: the judge's score goes from {values}.")
    else:
        text = f"Best of n gains nothing clear: the judge's score goes from {values}."
        yield Finding(False, text)


def _style(evaluation: Evaluation) -> Iterator[Finding]:
    style: dict[str, dict[str, float]] = evaluation.table("style")
    baseline = style.get(evaluation.baseline, {})
    models = [model for model in evaluation.ours if model in style]
    for model in models:
        yield from _style_against(evaluation.baseline, baseline, model, style[model])
    late = []
    for model in evaluation.ordered([evaluation.baseline, *models]):
        ended = style.get(model, {}).get("ended", 1)
        if ended < ENDED:
            late.append(f"{model} {percent(ended)}")
    if late:
        share = percent(ENDED)
        text = f"Fewer than {share} of the replies end by themselves: {listed(late)}."
        yield Finding(False, text)


def _style_against(baseline: str, theirs: Numbers, model: str, ours: Numbers) -> Iterator[Finding]:
    if "rude" in ours and "rude" in theirs:
        rarer = ours["rude"] < theirs["rude"] or ours["rude"] == theirs["rude"] == 0
        values = f"from {percent(theirs['rude'], 1)} to {percent(ours['rude'], 1)}"
        text = (
            f"{model} is rude {'less' if rarer else 'no less'} often than {baseline}: replies with a"
            f" rude word go {values}."
        )
        yield Finding(rarer, text)
    length = theirs.get("length")
    if length and ours.get("length", 0) > LONGER * length:
        values = f"{number(ours['length'], 1)} tokens against {number(length, 1)}"
        text = f"{model} writes longer than {baseline}: {values}; part of a gain may be length."
        yield Finding(False, text)


def _reward_models(run: Run) -> list[Finding]:
    models = measured(run)
    found: list[Finding] = []
    for name, scores in models.items():
        called = "The reward model" if len(models) == 1 else name
        found += _reward_model(called, scores)
    return found


def _reward_model(name: str, scores: Numbers) -> Iterator[Finding]:
    prompts = scores.get(ACCURACY)
    if prompts is not None:
        yield from _accuracy(name, prompts, scores)
    bins = scores.get("calibration") or []
    total = sum(row["n"] for row in bins)
    if total:
        gaps = [row["n"] * abs(row["predicted"] - row["observed"]) for row in bins]
        gap = sum(gaps) / total
        held = gap <= CALIBRATION_GAP
        how = "well" if held else "badly"
        text = f"{name} is {how} calibrated: its confidence is off by {number(gap, 3)} on average."
        yield Finding(held, text)


def _accuracy(name: str, prompts: float, scores: Numbers) -> Iterator[Finding]:
    """`prompts`: the accuracy on held-out prompts."""
    longer, agreement = scores.get("accuracy_longer"), scores.get("labeler_agreement")
    people = scores.get("accuracy_heldout_labelers")
    if longer is not None:
        held = prompts > max(longer, 0.5)
        verdict = "beats" if held else "does not beat"
        text = (
            f"{name} {verdict} its trivial baselines: {percent(prompts, 1)} of held-out pairs"
            f" against {percent(longer, 1)} for preferring the longer reply and 50\u00a0% for"
            " chance."
        )
        yield Finding(held, text)
    if agreement is not None:
        held = prompts > agreement - LABELER_GAP
        verdict = "about as often as" if held else "less often than"
        text = (
            f"{name} agrees with labelers {verdict} they do with each other: {percent(prompts, 1)}"
            f" of pairs from held-out prompts against {percent(agreement, 1)}."
        )
        yield Finding(held, text)
    if people is not None:
        held = people > prompts - LABELER_GAP
        verdict = "carries over" if held else "does not carry over"
        text = (
            f"{name} {verdict} to labelers it never saw: {percent(prompts, 1)} on held-out prompts,"
            f" {percent(people, 1)} on held-out labelers."
        )
        yield Finding(held, text)


def _machine(summary: Numbers, *, alone: bool) -> Iterator[Finding]:
    """`alone`: there is no other finding, and that all went well needs no list of one."""
    compiled = summary.get("recompiles_after_warmup")
    if compiled:
        text = f"{count(compiled, 'program')} compiled after warm-up: a shape was not static."
        yield Finding(False, text)
    elif compiled == 0 and not alone:
        yield Finding(True, "Nothing was recompiled after warm-up.")
