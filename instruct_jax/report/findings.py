"""Which shapes of the paper a run shows, and which not, from its numbers alone.

A finding compares models by what they are to each other: what was made on top of the baseline, and
what mixes pretraining text into the same training.
"""

import dataclasses
from collections.abc import Iterator

from instruct_jax.report.evaluations import (
    BEST_OF_N,
    PROMPTED,
    Evaluation,
    Numbers,
    Win,
    evaluations,
)
from instruct_jax.report.reward_models import ACCURACY, measured
from instruct_jax.report.run_data import Run, Stage
from instruct_jax.report.text import listed
from instruct_jax.text import number, percent, plural

USE_CASE_DROP = 0.05  # of the judge's score, from the baseline
CALIBRATION_GAP = 0.05  # mean |predicted - observed|
ENDED = 0.9  # share of replies that a tuned model should end by itself
RISE = 0.001  # nats per token: less does not show in the printed numbers
LONGER = 1.25  # times the baseline's length
LABELER_GAP = 0.05  # of accuracy, below which it counts as equal


@dataclasses.dataclass(frozen=True)
class Finding:
    held: bool  # the paper's shape, or what a sound run shows, is there
    text: str
    evaluation: str = ""  # the stage that measured it, where a run has several


def findings(run: Run) -> list[Finding]:
    """One for each shape that can be judged from the numbers."""
    results: list[Finding] = []
    measurements = evaluations(run)
    for evaluation in measurements:
        name = evaluation.name if len(measurements) > 1 else ""
        for finding in _of_evaluation(evaluation):
            results.append(dataclasses.replace(finding, evaluation=name))
    models = measured(run)
    for name, scores in models.items():
        called = "The reward model" if len(models) == 1 else name
        results += _reward_model(called, scores)
    results += _machine(run.summary, alone=not results)
    return results


def _of_evaluation(evaluation: Evaluation) -> Iterator[Finding]:
    yield from _judge(evaluation)
    yield from _prompting(evaluation)
    yield from _untuned(evaluation)
    yield from _against_baseline(evaluation)
    yield from _mixing(evaluation)
    yield from _control(evaluation)
    yield from _other_temperatures(evaluation)
    yield from _use_cases(evaluation)
    yield from _pretraining(evaluation)
    yield from _tax(evaluation)
    yield from _lower_tax(evaluation)
    yield from _best_of_n(evaluation)
    yield from _style(evaluation)


def _judge(evaluation: Evaluation) -> Iterator[Finding]:
    if not evaluation.judged_by_reward_model:
        return
    judge = evaluation.stage.uses.get("reward")
    climbed = []
    for model in evaluation.ours:
        stage = evaluation.stage_of(model)
        if stage.uses.get("reward") == judge:
            climbed.append(model)
    if BEST_OF_N in evaluation.wins:
        climbed.append(evaluation.spoken(BEST_OF_N))
    if climbed:
        text = (
            f"The judge is the reward model that {listed(climbed)} optimized for, so win rates show"
            " how well it was pleased, not how good replies are."
        )
        yield Finding(False, text)


def _prompting(evaluation: Evaluation) -> Iterator[Finding]:
    for model in evaluation.untuned:
        without = evaluation.wins[model]
        prompted = evaluation.wins.get(f"{model}{PROMPTED}")
        if prompted is None:
            continue
        values = f"{number(prompted.mean)} against {number(without.mean)}"
        if prompted.mean <= without.mean:
            yield Finding(False, f"Prompted {model} is not above {model}: {values}.")
        elif prompted.overlaps(without):
            text = f"Prompted {model} is above {model}: {values}, though the intervals overlap."
            yield Finding(False, text)
        else:
            yield Finding(True, f"Prompted {model} is above {model}: {values}.")


def strongest_untuned(evaluation: Evaluation) -> str | None:
    wins = evaluation.wins
    untuned = evaluation.untuned
    return max(untuned, key=lambda model: wins[model].mean, default=None)


def _untuned(evaluation: Evaluation) -> Iterator[Finding]:
    strongest = strongest_untuned(evaluation)
    if strongest is None:
        return
    win = evaluation.wins[strongest]
    held = win.high < 0.5
    verdict = "is preferred" if held else "is not clearly preferred"
    text = (
        f"{evaluation.baseline} {verdict} to the strongest untuned model:"
        f" {evaluation.spoken(strongest)} wins {win}."
    )
    yield Finding(held, text)


def _against_baseline(evaluation: Evaluation) -> Iterator[Finding]:
    for model in (BEST_OF_N, *evaluation.ours):
        if model in evaluation.wins:
            name = "Best of n" if model == BEST_OF_N else model
            win = evaluation.wins[model]
            yield _preferred(name, evaluation.baseline, win)


def _preferred(name: str, baseline: str, win: Win) -> Finding:
    if win.is_clear:
        return Finding(True, f"{name} is preferred to {baseline}: it wins {win}.")
    if win.is_even:
        text = f"{name} is not clearly above {baseline}: it wins {win}, which includes 0.50."
        return Finding(False, text)
    return Finding(False, f"{name} is not above {baseline} but below it: it wins {win}.")


def mixes_text(stage: Stage) -> bool:
    """True for a policy that has gradients of pretraining text mixed in."""
    return bool(stage.settings.get("ptx_coef"))


def _pairs(evaluation: Evaluation) -> Iterator[tuple[str, str]]:
    """Models with and without pretraining text mixed in that have the same start and reward."""
    for mixed in evaluation.ours:
        stage = evaluation.stage_of(mixed)
        if not mixes_text(stage):
            continue
        for unmixed in evaluation.ours:
            twin = evaluation.stage_of(unmixed)
            if not mixes_text(twin) and _origin(twin) == _origin(stage):
                yield mixed, unmixed


def _origin(stage: Stage) -> tuple[str | None, ...]:
    start = stage.uses.get("start")
    reward = stage.uses.get("reward")
    return stage.kind, start, reward


def _mixing(evaluation: Evaluation) -> Iterator[Finding]:
    for mixed, unmixed in _pairs(evaluation):
        with_text = evaluation.wins.get(mixed)
        without = evaluation.wins.get(unmixed)
        if with_text is None or without is None:
            continue
        both = f"{unmixed} and {mixed}"
        values = f"{number(without.mean)} and {number(with_text.mean)}"
        if with_text.overlaps(without):
            text = f"{both} are preferred about equally often, {values}: their intervals overlap."
            yield Finding(True, text)
            continue
        better = mixed if with_text.mean > without.mean else unmixed
        text = (
            f"{both} differ, {values}: {better} is ahead, where the paper finds PPO and PPO-ptx"
            " about equal."
        )
        yield Finding(False, text)


def _control(evaluation: Evaluation) -> Iterator[Finding]:
    control = evaluation.wins.get(evaluation.control)
    if control is None:
        return
    text = f"{evaluation.baseline} against other samples of itself wins {control}"
    if control.is_even:
        yield Finding(True, f"The control holds: {text}.")
    else:
        text = f"The control fails: {text}, which leaves out 0.50; doubt the win rates."
        yield Finding(False, text)


def _other_temperatures(evaluation: Evaluation) -> Iterator[Finding]:
    temperatures = list(evaluation.win_rates)
    for temperature in temperatures[1:]:
        wins = evaluation.win_rates[temperature]
        values = []
        held = True
        for model in evaluation.ours:
            if model in wins:
                values.append(f"{model} wins {number(wins[model].mean)}")
                held = held and wins[model].is_clear
        if values:
            verdict = "holds as well" if held else "is not clear for every model"
            text = (
                f"At temperature {temperature} the gain over {evaluation.baseline} {verdict}:"
                f" {listed(values)}."
            )
            yield Finding(held, text)


def _use_cases(evaluation: Evaluation) -> Iterator[Finding]:
    for model in evaluation.ours:
        compared = 0
        fell = []
        for case, scores in evaluation.table("by_use_case").items():
            if model not in scores or evaluation.baseline not in scores:
                continue
            compared += 1
            before = scores[evaluation.baseline]["mean"]
            after = scores[model]["mean"]
            if after < before - USE_CASE_DROP:
                fell.append(f"{case} from {number(before)} to {number(after)}")
        cases = plural(compared, "use case")
        how = f"{model} fell by more than {USE_CASE_DROP} in"
        if fell:
            text = f"{how} {len(fell)} of {cases}: {listed(fell)}."
            yield Finding(False, text)
        elif compared:
            yield Finding(True, f"{how} none of {cases}.")


def _pretraining(evaluation: Evaluation) -> Iterator[Finding]:
    """Models that learned from plain text, against the frequencies of its tokens."""
    for model, loss in evaluation.table("pretrain_nll").items():
        stage = evaluation.run.stages.get(evaluation.source(model))
        if stage is None or stage.output.get("nll_unigram") is None:
            continue
        unigram = stage.output["nll_unigram"]
        held = loss < unigram
        verdict = "beats" if held else "does not beat"
        text = (
            f"{model} {verdict} its trivial baseline on held-out text: {number(loss, 3)} against"
            f" {number(unigram, 3)} nats per token for the frequencies of tokens alone."
        )
        yield Finding(held, text)


def _tax(evaluation: Evaluation) -> Iterator[Finding]:
    """What learning from a reward costs on ordinary text."""
    baseline = evaluation.baseline
    nll = evaluation.table("pretrain_nll")
    if baseline not in nll:
        return
    before = nll[baseline]
    for model in evaluation.ours:
        stage = evaluation.stage_of(model)
        learned = "reward" in stage.uses and len(stage.curves) > 0
        if model not in nll or not learned or mixes_text(stage):
            continue
        after = nll[model]
        held = after > before + RISE
        pays = "pays the" if held else "shows no"
        rises = "rises" if held else "does not rise"
        text = (
            f"{model} {pays} alignment tax: its loss on pretraining text {rises} over {baseline}'s,"
            f" {number(before, 3)} to {number(after, 3)} nats per token."
        )
        yield Finding(held, text)


def _lower_tax(evaluation: Evaluation) -> Iterator[Finding]:
    """What mixing pretraining text in saves."""
    nll = evaluation.table("pretrain_nll")
    for mixed, unmixed in _pairs(evaluation):
        if mixed not in nll or unmixed not in nll:
            continue
        held = nll[mixed] < nll[unmixed] - RISE
        verdict = "lowers" if held else "does not lower"
        text = (
            f"{mixed} {verdict} the tax: {number(nll[mixed], 3)} against"
            f" {number(nll[unmixed], 3)} for {unmixed}."
        )
        yield Finding(held, text)


def _best_of_n(evaluation: Evaluation) -> Iterator[Finding]:
    points = [p for p in evaluation.best_of_n if p.get("gold") is not None]
    if len(points) < 2:
        return
    first = points[0]
    last = points[-1]
    top = max(points, key=lambda point: point["gold"])
    noise = 2 * last.get("se", 0)
    begin = f"{number(first['gold'], 3)} at n = {first['n']}"
    end = f"{number(last['gold'], 3)} at n = {last['n']}"
    if top["gold"] - last["gold"] > noise:
        text = (
            f"Best of n over-optimizes: the judge's score is highest at n = {top['n']} and falls"
            f" after it; it goes from {begin} to {end}."
        )
        yield Finding(False, text)
        return
    held = last["gold"] - first["gold"] > noise
    verdict = "keeps its gain" if held else "gains nothing clear"
    text = f"Best of n {verdict}: the judge's score goes from {begin} to {end}."
    yield Finding(held, text)


def _style(evaluation: Evaluation) -> Iterator[Finding]:
    baseline = evaluation.baseline
    style = evaluation.table("style")
    models = [model for model in evaluation.ours if model in style]
    for model in models:
        theirs = style.get(baseline, {})
        yield from _rudeness(baseline, theirs, model, style[model])
        yield from _length(baseline, theirs, model, style[model])
    late = []
    for model in evaluation.ordered([baseline, *models]):
        ended = style.get(model, {}).get("ended", 1)
        if ended < ENDED:
            late.append(f"{model} {percent(ended)}")
    if late:
        share = percent(ENDED)
        text = f"Fewer than {share} of the replies end by themselves: {listed(late)}."
        yield Finding(False, text)


def _rudeness(baseline: str, theirs: Numbers, model: str, ours: Numbers) -> Iterator[Finding]:
    before = theirs.get("rude")
    after = ours.get("rude")
    if before is None or after is None:
        return
    held = after < before or after == before == 0
    how = "less" if held else "no less"
    text = (
        f"{model} is rude {how} often than {baseline}: replies with a rude word go from"
        f" {percent(before, 1)} to {percent(after, 1)}."
    )
    yield Finding(held, text)


def _length(baseline: str, theirs: Numbers, model: str, ours: Numbers) -> Iterator[Finding]:
    before = theirs.get("length", 0)
    after = ours.get("length", 0)
    if before and after > LONGER * before:
        text = (
            f"{model} writes longer than {baseline}: {number(after, 1)} tokens against"
            f" {number(before, 1)}; part of a gain may be length."
        )
        yield Finding(False, text)


def _reward_model(name: str, scores: Numbers) -> Iterator[Finding]:
    accuracy = scores.get(ACCURACY)
    if accuracy is not None:
        yield from _accuracy(name, accuracy, scores)
    total = 0
    gap = 0.0
    for part in scores.get("calibration") or []:
        miss = abs(part["predicted"] - part["observed"])
        total += part["n"]
        gap += part["n"] * miss
    if total:
        held = gap / total <= CALIBRATION_GAP
        how = "well" if held else "badly"
        off = number(gap / total, 3)
        text = f"{name} is {how} calibrated: its confidence is off by {off} on average."
        yield Finding(held, text)


def _accuracy(name: str, accuracy: float, scores: Numbers) -> Iterator[Finding]:
    """`accuracy`: on held-out prompts."""
    ours = percent(accuracy, 1)
    longer = scores.get("accuracy_longer")
    if longer is not None:
        held = accuracy > max(longer, 0.5)
        verdict = "beats" if held else "does not beat"
        text = (
            f"{name} {verdict} its trivial baselines: {ours} of held-out pairs against"
            f" {percent(longer, 1)} for preferring the longer reply and 50\u00a0% for chance."
        )
        yield Finding(held, text)
    agreement = scores.get("labeler_agreement")
    if agreement is not None:
        held = accuracy > agreement - LABELER_GAP
        verdict = "about as often as" if held else "less often than"
        text = (
            f"{name} agrees with labelers {verdict} they do with each other: {ours} of pairs from"
            f" held-out prompts against {percent(agreement, 1)}."
        )
        yield Finding(held, text)
    people = scores.get("accuracy_heldout_labelers")
    if people is not None:
        held = people > accuracy - LABELER_GAP
        verdict = "carries over" if held else "does not carry over"
        text = (
            f"{name} {verdict} to labelers it never saw: {ours} on held-out prompts,"
            f" {percent(people, 1)} on held-out labelers."
        )
        yield Finding(held, text)


def _machine(summary: Numbers, *, alone: bool) -> Iterator[Finding]:
    """`alone`: there is no other finding, and that all went well needs no list of one."""
    compiled = summary.get("recompiles_after_warmup")
    if compiled:
        programs = plural(compiled, "program")
        text = f"{programs} compiled after warm-up: a shape was not static."
        yield Finding(False, text)
    elif compiled == 0 and not alone:
        yield Finding(True, "Nothing was recompiled after warm-up.")
