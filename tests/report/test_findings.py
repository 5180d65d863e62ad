import copy

import pytest
from synthetic import make_run, win

from instruct_jax.report.findings import findings
from instruct_jax.report.run_data import read_run


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return read_run(make_run(tmp_path_factory.mktemp("runs") / "quick", rows=3))


def texts(run) -> str:
    return "\n".join(finding.text for finding in findings(run)).replace("\u00a0", " ")


def evaluation(run):
    return run.stages["evaluate"].evaluation


def reward(run):
    return run.stages["reward"].done["output"]


def test_a_good_run_shows_every_shape(good):
    results = findings(good)
    assert len(results) == 22 and all(finding.held for finding in results)


def wins(model, value, temperature="1.0"):
    return lambda run: evaluation(run)["win_rate"][temperature].update({model: value})


def scores(key, value):
    return lambda run: reward(run).update({key: value})


def style(model, **values):
    return lambda run: evaluation(run)["style"][model].update(values)


def nll(**values):
    return lambda run: evaluation(run)["pretrain_nll"].update(values)


def last_of_n(**values):
    return lambda run: evaluation(run)["best_of_n"][-1].update(values)


def case(name, model, mean):
    return lambda run: evaluation(run)["by_use_case"][name][model].update(mean=mean)


FLIPS = [
    (
        wins("base_prompted", win(0.1)),
        "Prompted base is above base",
        "Prompted base is not above base: 0.10 against 0.14",
    ),
    (
        wins("base_prompted", win(0.16)),
        "above base: 0.24",
        "though the intervals overlap",
    ),
    (
        wins("base_prompted", win(0.55)),
        "select is preferred to the strongest untuned",
        "select is not clearly preferred to the strongest untuned model: prompted base",
    ),
    (
        wins("ppo", win(0.51)),
        "ppo is preferred to select",
        "ppo is not clearly above select: it wins 0.51, 95 % interval 0.48 to 0.54",
    ),
    (
        wins("ppo", win(0.41)),
        "ppo is preferred to select",
        "ppo is not above select but below it",
    ),
    (wins("ppo_ptx", win(0.8)), "about equally often", "ppo_ptx is ahead"),
    (
        wins("best_of_n", win(0.49)),
        "Best of n is preferred to select",
        "Best of n is not clearly above select",
    ),
    (wins("select_control", win(0.58)), "The control holds", "The control fails"),
    (
        wins("ppo", win(0.5), "0.0"),
        "At temperature 0.0 the gain over select holds",
        "At temperature 0.0 the gain over select is not clear",
    ),
    (
        case("chat", "ppo", 0.2),
        "ppo fell by more than 0.05 in none",
        "ppo fell by more than 0.05 in 1 of 9 use cases: chat from",
    ),
    (nll(ppo=1.3), "ppo pays the alignment tax", "ppo shows no alignment tax"),
    (
        nll(ppo_ptx=1.5),
        "ppo_ptx lowers the tax",
        "ppo_ptx does not lower the tax: 1.500 against 1.420",
    ),
    (nll(base=4.2), "base beats its trivial baseline", "base does not beat its trivial baseline"),
    (
        scores("accuracy_heldout_prompts", 0.6),
        "about as often as they do with each other",
        "less often than they do with each other: 60.0 %",
    ),
    (
        scores("accuracy_longer", 0.8),
        "The reward model beats its trivial baselines",
        "The reward model does not beat its trivial baselines",
    ),
    (
        scores("accuracy_heldout_labelers", 0.6),
        "carries over to labelers",
        "does not carry over to labelers",
    ),
    (
        scores("calibration", [{"predicted": 0.9, "observed": 0.6, "n": 10}]),
        "well calibrated",
        "badly calibrated: its confidence is off by 0.300",
    ),
    (
        last_of_n(gold=0.5),
        "Best of n keeps its gain",
        "Best of n over-optimizes: the judge's score is highest at n = 8",
    ),
    (
        last_of_n(gold=0.715, se=0.1),
        "Best of n keeps its gain",
        "Best of n gains nothing clear",
    ),
    (
        style("ppo", rude=0.3),
        "ppo is rude less often",
        "ppo is rude no less often than select: replies with a rude word go from 13.5 % to 30.0 %",
    ),
]


@pytest.mark.parametrize(("change", "before", "after"), FLIPS, ids=[after for *_, after in FLIPS])
def test_the_sentence_turns_when_the_number_does(good, change, before, after):
    assert before in texts(good) and after not in texts(good)
    changed = copy.deepcopy(good)
    change(changed)
    assert after in texts(changed) and before not in texts(changed)
    assert not all(finding.held for finding in findings(changed))


def test_warnings_come_only_when_there_is_reason(good):
    changed = copy.deepcopy(good)
    evaluation(changed)["judge"] = "reward model"
    style("ppo", length=60.0, ended=0.5)(changed)
    changed.summary["recompiles_after_warmup"] = 3
    for warning in (
        "The judge is the reward model that ppo, ppo_ptx and best of n optimized for",
        "ppo writes longer than select",
        "Fewer than 90 % of the replies end by themselves: ppo 50 %",
        "3 programs compiled after warm-up",
    ):
        assert warning in texts(changed) and warning not in texts(good)


def test_a_judge_that_nothing_was_optimized_for_needs_no_warning(good):
    changed = copy.deepcopy(good)
    evaluation(changed)["judge"] = "reward model"
    del evaluation(changed)["win_rate"]["1.0"]["best_of_n"]
    changed.stages["evaluate"].uses["reward"] = "runs/other:reward"
    assert "The judge is" not in texts(changed)


def test_only_policies_with_the_same_start_and_reward_are_compared(good):
    for key, other in (("start", "sft"), ("reward", "runs/other:reward")):
        changed = copy.deepcopy(good)
        changed.stages["ppo_ptx"].uses[key] = other
        assert "ppo and ppo_ptx" not in texts(changed) and "lowers the tax" not in texts(changed)
    changed = copy.deepcopy(good)
    changed.stages["ppo_ptx"].settings["ptx_coef"] = 0.0
    assert "ppo and ppo_ptx" not in texts(changed)
    assert "ppo_ptx shows no alignment tax" in texts(changed)


def test_nothing_is_said_about_what_was_not_measured(good):
    changed = copy.deepcopy(good)
    evaluation(changed).clear()
    reward(changed).clear()
    assert findings(changed) == []
    evaluation(changed).update(judge=None, baseline="select", win_rate=None, style={}, best_of_n=[])
    scores("accuracy_heldout_prompts", None)(changed)
    assert findings(changed) == []
    evaluation(changed)["win_rate"] = {"1.0": {"ppo": win(0.6)}}
    assert "ppo is preferred to select" in texts(changed)
