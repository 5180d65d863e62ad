"""Which shapes of the paper a run shows, and which not, said from its numbers alone."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from instruct_jax.report.text import (
    in_sentence,
    listed,
    model_name,
    number,
    ordered,
    percent,
    plain,
)

USE_CASE_DROP = 0.05  # of the judge's score, from the SFT model
CALIBRATION_GAP = 0.05  # mean |predicted - observed|
ENDED = 0.9  # share of replies that a tuned model should end by itself
RISE = 0.001  # nats per token: less is not seen in the printed numbers
LONGER = 1.25  # times the SFT model's length
RL = ("ppo", "ppo_ptx")

Numbers = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Finding:
    held: bool  # the paper's shape, or what a sound run shows, is there
    text: str


def findings(summary: Numbers, evaluation: Numbers) -> list[Finding]:
    """One for each shape that can be judged from the numbers."""
    wins = headline(summary, evaluation)
    scores = {**summary.get("reward_model", {}), **evaluation.get("reward_model", {})}
    nll = evaluation.get("pretrain_nll") or summary.get("pretrain_nll", {})
    parts = (
        _judge(evaluation),
        _order(wins),
        _other_temperatures(evaluation),
        _use_cases(evaluation),
        _pretraining(nll.get("base"), summary.get("nll_unigram", evaluation.get("nll_unigram"))),
        _tax(nll),
        _reward_model(scores),
        _best_of_n(evaluation),
        _style(evaluation.get("style", {})),
        _machine(summary),
    )
    return [finding for part in parts for finding in part]


def headline(summary: Numbers, evaluation: Numbers) -> dict[str, Any]:
    """Win rates at the first temperature."""
    by_temperature = evaluation.get("win_rate_vs_sft", {})
    first = next(iter(by_temperature.values()), {})
    return dict(first or summary.get("win_rate_vs_sft", {}))


def rate(win: Numbers) -> str:
    low, high = win["ci95"]
    return f"{number(win['mean'])}, 95\u00a0% interval {number(low)} to {number(high)}"


def _judge(evaluation: Numbers) -> Iterator[Finding]:
    if evaluation.get("judge") == "reward model":
        text = (
            "The judge is the reward model that PPO was trained on, so win rates show how well it"
            " was pleased, not how good replies are."
        )
        yield Finding(False, text)


def _order(wins: Numbers) -> Iterator[Finding]:
    if "base" in wins and "base_prompted" in wins:
        yield _above(
            "The prompted base model", wins["base_prompted"], "the base model", wins["base"]
        )
    if untuned := [m for m in ("base", "base_prompted") if m in wins]:
        strongest = max(untuned, key=lambda m: wins[m]["mean"])
        name, win = in_sentence(strongest), wins[strongest]
        if win["ci95"][1] < 0.5:
            yield Finding(
                True, f"SFT is preferred to the strongest untuned model: {name} wins {rate(win)}."
            )
        else:
            yield Finding(
                False,
                f"SFT is not clearly preferred to the strongest untuned model: {name} wins"
                f" {rate(win)}.",
            )
    for model in ("best_of_n", *RL):
        if model in wins:
            yield _against_sft(_start(in_sentence(model)), wins[model])
    if "ppo" in wins and "ppo_ptx" in wins:
        plain_ppo, ptx = wins["ppo"], wins["ppo_ptx"]
        values = f"{number(plain_ppo['mean'])} and {number(ptx['mean'])}"
        if _overlap(plain_ppo, ptx):
            yield Finding(
                True,
                f"PPO and PPO-ptx are preferred about equally often, {values}: their intervals"
                " overlap.",
            )
        else:
            better = "PPO-ptx" if ptx["mean"] > plain_ppo["mean"] else "PPO"
            yield Finding(
                False,
                f"PPO and PPO-ptx differ, {values}: {better} is ahead, where the paper finds them"
                " about equal.",
            )
    if "sft_control" in wins:
        control = wins["sft_control"]
        low, high = control["ci95"]
        if low <= 0.5 <= high:
            yield Finding(
                True,
                f"The control holds: SFT against other samples of itself wins {rate(control)}.",
            )
        else:
            yield Finding(
                False,
                f"The control fails: SFT against other samples of itself wins {rate(control)},"
                " which leaves out 0.50; doubt the win rates.",
            )


def _start(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]


def _above(name: str, win: Numbers, other: str, other_win: Numbers) -> Finding:
    values = f"{number(win['mean'])} against {number(other_win['mean'])}"
    if win["mean"] <= other_win["mean"]:
        return Finding(False, f"{name} is not above {other}: {values}.")
    overlap = ", though the intervals overlap" if _overlap(win, other_win) else ""
    return Finding(not overlap, f"{name} is above {other}: {values}{overlap}.")


def _against_sft(name: str, win: Numbers) -> Finding:
    if win["ci95"][0] > 0.5:
        return Finding(True, f"{name} is preferred to SFT: it wins {rate(win)}.")
    if win["ci95"][1] < 0.5:
        return Finding(False, f"{name} is not above SFT but below it: it wins {rate(win)}.")
    return Finding(
        False, f"{name} is not clearly above SFT: it wins {rate(win)}, which includes 0.50."
    )


def _overlap(a: Numbers, b: Numbers) -> bool:
    return a["ci95"][0] <= b["ci95"][1] and b["ci95"][0] <= a["ci95"][1]


def _other_temperatures(evaluation: Numbers) -> Iterator[Finding]:
    for temperature, wins in list(evaluation.get("win_rate_vs_sft", {}).items())[1:]:
        tuned = [m for m in RL if m in wins]
        if not tuned:
            continue
        values = listed([f"{model_name(m)} wins {number(wins[m]['mean'])}" for m in tuned])
        if all(wins[m]["ci95"][0] > 0.5 for m in tuned):
            yield Finding(
                True,
                f"At temperature {plain(temperature)} the gain over SFT holds as well: {values}.",
            )
        else:
            yield Finding(
                False,
                f"At temperature {plain(temperature)} the gain over SFT is not clear for every"
                f" model: {values}.",
            )


def _use_cases(evaluation: Numbers) -> Iterator[Finding]:
    cases = evaluation.get("by_use_case", {})
    for model in RL:
        pairs = {
            case: (scores["sft"]["mean"], scores[model]["mean"])
            for case, scores in cases.items()
            if "sft" in scores and model in scores
        }
        if not pairs:
            continue
        fell = {
            case: values for case, values in pairs.items() if values[1] < values[0] - USE_CASE_DROP
        }
        count = f"{len(pairs)} use case{'s' if len(pairs) > 1 else ''}"
        if fell:
            values = listed(
                [
                    f"{plain(case)} from {number(before)} to {number(after)}"
                    for case, (before, after) in fell.items()
                ]
            )
            yield Finding(
                False,
                f"{model_name(model)} fell by more than {USE_CASE_DROP} in {len(fell)} of {count}:"
                f" {values}.",
            )
        else:
            yield Finding(
                True, f"{model_name(model)} fell by more than {USE_CASE_DROP} in none of {count}."
            )


def _pretraining(base: float | None, unigram: float | None) -> Iterator[Finding]:
    if base is not None and unigram is not None:
        values = (
            f"{number(base, 3)} against {number(unigram, 3)} nats per token for the frequencies of"
            " tokens alone"
        )
        held = base < unigram
        yield Finding(
            held,
            f"Pretraining {'beats' if held else 'does not beat'} its trivial baseline on held-out"
            f" text: {values}.",
        )


def _tax(nll: Numbers) -> Iterator[Finding]:
    if "sft" in nll and "ppo" in nll:
        values = f"{number(nll['sft'], 3)} to {number(nll['ppo'], 3)} nats per token"
        if nll["ppo"] > nll["sft"] + RISE:
            yield Finding(
                True,
                "PPO pays the alignment tax: its loss on pretraining text rises over SFT's,"
                f" {values}.",
            )
        else:
            yield Finding(
                False,
                "PPO shows no alignment tax: its loss on pretraining text does not rise over"
                f" SFT's, {values}.",
            )
    if "ppo" in nll and "ppo_ptx" in nll:
        values = f"{number(nll['ppo_ptx'], 3)} against {number(nll['ppo'], 3)}"
        if nll["ppo_ptx"] < nll["ppo"] - RISE:
            yield Finding(True, f"PPO-ptx lowers the tax: {values} for PPO.")
        else:
            yield Finding(False, f"PPO-ptx does not lower the tax: {values} for PPO.")


def _reward_model(scores: Numbers) -> Iterator[Finding]:
    prompts, people = (
        scores.get("accuracy_heldout_prompts"),
        scores.get("accuracy_heldout_labelers"),
    )
    agreement = scores.get("labeler_agreement")
    if prompts is not None and (longer := scores.get("accuracy_longer")) is not None:
        held = prompts > max(longer, 0.5)
        values = (
            f"{percent(prompts, 1)} of held-out pairs against {percent(longer, 1)} for preferring"
            " the longer reply and 50\u00a0% for chance"
        )
        yield Finding(
            held,
            f"The reward model {'beats' if held else 'does not beat'} its trivial baselines:"
            f" {values}.",
        )
    if prompts is not None and agreement is not None:
        values = (
            f"{percent(prompts, 1)} of pairs from held-out prompts against {percent(agreement, 1)}"
        )
        if prompts > agreement - 0.05:
            yield Finding(
                True,
                "The reward model agrees with labelers about as often as they do with each other:"
                f" {values}.",
            )
        else:
            yield Finding(
                False,
                "The reward model agrees with labelers less often than they do with each other:"
                f" {values}.",
            )
    if prompts is not None and people is not None:
        values = (
            f"{percent(prompts, 1)} on held-out prompts, {percent(people, 1)} on held-out labelers"
        )
        if people > prompts - 0.05:
            yield Finding(
                True, f"The reward model carries over to labelers it never saw: {values}."
            )
        else:
            yield Finding(
                False, f"The reward model does not carry over to labelers it never saw: {values}."
            )
    bins = scores.get("calibration") or []
    if total := sum(b["n"] for b in bins):
        gap = sum(b["n"] * abs(b["predicted"] - b["observed"]) for b in bins) / total
        good = gap <= CALIBRATION_GAP
        yield Finding(
            good,
            f"The reward model's confidence is {'well' if good else 'badly'} calibrated: off by"
            f" {number(gap, 3)} on average.",
        )


def _best_of_n(evaluation: Numbers) -> Iterator[Finding]:
    points = sorted(evaluation.get("best_of_n") or [], key=lambda p: p["n"])
    if len(points) < 2:
        return
    first, last, top = points[0], points[-1], max(points, key=lambda p: p["gold"])
    values = (
        f"{number(first['gold'], 3)} at n = {first['n']} to {number(last['gold'], 3)} at n ="
        f" {last['n']}"
    )
    if top["gold"] - last["gold"] > 2 * last.get("se", 0):
        yield Finding(
            False,
            f"Best-of-n over-optimises: the judge's score is highest at n = {top['n']} and falls"
            f" after it; it goes from {values}.",
        )
    elif last["gold"] - first["gold"] > 2 * last.get("se", 0):
        yield Finding(True, f"Best-of-n keeps its gain: the judge's score goes from {values}.")
    else:
        yield Finding(
            False, f"Best-of-n gains nothing clear: the judge's score goes from {values}."
        )


def _style(style: Numbers) -> Iterator[Finding]:
    sft = style.get("sft", {})
    for model in [m for m in RL if m in style]:
        name, theirs = model_name(model), style[model]
        if "rude" in theirs and "rude" in sft:
            rarer = theirs["rude"] < sft["rude"] or theirs["rude"] == sft["rude"] == 0
            values = (
                f"replies with a rude word go from {percent(sft['rude'], 1)} to"
                f" {percent(theirs['rude'], 1)}"
            )
            yield Finding(
                rarer, f"{name} is rude {'less' if rarer else 'no less'} often than SFT: {values}."
            )
        if "length" in theirs and sft.get("length") and theirs["length"] > LONGER * sft["length"]:
            values = f"{number(theirs['length'], 1)} tokens against {number(sft['length'], 1)}"
            yield Finding(
                False, f"{name} writes longer than SFT: {values}; part of a gain may be length."
            )
    late = [m for m in ordered(style) if m in ("sft", *RL) and style[m].get("ended", 1) < ENDED]
    if late:
        values = listed([f"{model_name(m)} {percent(style[m]['ended'])}" for m in late])
        yield Finding(
            False, f"Fewer than {percent(ENDED)} of the replies end by themselves: {values}."
        )


def _machine(summary: Numbers) -> Iterator[Finding]:
    if (count := summary.get("recompiles_after_warmup")) is not None:
        if count == 0:
            yield Finding(True, "Nothing was recompiled after warm-up.")
        else:
            yield Finding(
                False, f"{count} programs were compiled after warm-up: a shape was not static."
            )
