import copy

import pytest
from synthetic import make_evaluation, make_summary, win

from instruct_jax.report.findings import findings

GOOD = make_evaluation()


def said(evaluation, summary=None) -> str:
    summary = make_summary(GOOD) if summary is None else summary
    texts = [finding.text for finding in findings(summary, evaluation)]
    return "\n".join(texts).replace("\u00a0", " ")


def test_a_good_run_shows_every_shape():
    found = findings(make_summary(GOOD), GOOD)
    assert len(found) == 20 and all(finding.held for finding in found)


def wins(model, value, temperature="1.0"):
    return lambda e: e["win_rate_vs_sft"][temperature].update({model: value})


def scores(key, value):
    return lambda e: e["reward_model"].update({key: value})


FLIPS = [
    (
        wins("base_prompted", win(0.1)),
        "prompted base model is above the base model",
        "prompted base model is not above the base model: 0.10 against 0.14",
    ),
    (
        wins("base_prompted", win(0.16)),
        "above the base model: 0.24",
        "though the intervals overlap",
    ),
    (
        wins("base_prompted", win(0.55)),
        "SFT is preferred to the strongest untuned",
        "SFT is not clearly preferred to the strongest untuned model: the prompted",
    ),
    (
        wins("ppo", win(0.51)),
        "PPO is preferred to SFT",
        "PPO is not clearly above SFT: it wins 0.51, 95 % interval 0.48 to 0.54",
    ),
    (wins("ppo", win(0.41)), "PPO is preferred to SFT", "PPO is not above SFT but below it"),
    (wins("ppo_ptx", win(0.8)), "about equally often", "PPO-ptx is ahead"),
    (
        wins("best_of_n", win(0.49)),
        "Best-of-n is preferred to SFT",
        "Best-of-n is not clearly above SFT",
    ),
    (wins("sft_control", win(0.58)), "The control holds", "The control fails"),
    (
        wins("ppo", win(0.5), "0.0"),
        "At temperature 0.0 the gain over SFT holds",
        "At temperature 0.0 the gain over SFT is not clear",
    ),
    (
        lambda e: e["by_use_case"]["chat"]["ppo"].update(mean=0.2),
        "PPO fell by more than 0.05 in none",
        "PPO fell by more than 0.05 in 1 of 9 use cases: chat from",
    ),
    (
        lambda e: e["pretrain_nll"].update(ppo=1.3),
        "PPO pays the alignment tax",
        "PPO shows no alignment tax",
    ),
    (
        lambda e: e["pretrain_nll"].update(ppo_ptx=1.5),
        "PPO-ptx lowers the tax",
        "PPO-ptx does not lower the tax: 1.500 against 1.420",
    ),
    (
        scores("accuracy_heldout_prompts", 0.6),
        "about as often as they do with each other",
        "less often than they do with each other: 60.0 %",
    ),
    (
        scores("accuracy_heldout_labelers", 0.6),
        "carries over to labelers",
        "does not carry over to labelers",
    ),
    (
        scores("calibration", [{"predicted": 0.9, "observed": 0.6, "n": 10}]),
        "well calibrated",
        "badly calibrated: off by 0.300",
    ),
    (
        lambda e: e["best_of_n"][-1].update(gold=0.5),
        "Best-of-n keeps its gain",
        "Best-of-n over-optimises: the judge's score is highest at n = 8",
    ),
    (
        lambda e: e["style"]["ppo"].update(rude=0.3),
        "PPO is rude less often",
        "PPO is rude no less often than SFT: replies with a rude word go from 14.0 % to 30.0 %",
    ),
    (
        lambda e: e["best_of_n"][-1].update(gold=0.715, se=0.1),
        "Best-of-n keeps its gain",
        "Best-of-n gains nothing clear",
    ),
]


@pytest.mark.parametrize(("change", "before", "after"), FLIPS, ids=[after for *_, after in FLIPS])
def test_the_sentence_turns_when_the_number_does(change, before, after):
    assert before in said(GOOD) and after not in said(GOOD)
    changed = copy.deepcopy(GOOD)
    change(changed)
    assert after in said(changed) and before not in said(changed)
    assert not all(finding.held for finding in findings(make_summary(GOOD), changed))


def test_warnings_come_only_when_there_is_reason():
    changed = copy.deepcopy(GOOD) | {"judge": "reward model"}
    changed["style"]["ppo"] |= {"length": 60.0, "ended": 0.5}
    text = said(changed, make_summary(GOOD) | {"recompiles_after_warmup": 3})
    for warning in (
        "The judge is the reward model",
        "PPO writes longer than SFT",
        "Fewer than 90 % of the replies end by themselves: PPO 50 %",
        "3 programs",
    ):
        assert warning in text and warning not in said(GOOD)


def test_nothing_is_said_about_what_was_not_measured():
    assert findings({}, {}) == []
    summary = {"win_rate_vs_sft": make_summary(GOOD)["win_rate_vs_sft"]}
    assert "PPO is preferred" in said({}, summary)
    summary = {"reward_model": {"accuracy_heldout_prompts": None, "labeler_agreement": None}}
    assert findings(summary, {"style": {}, "best_of_n": []}) == []
