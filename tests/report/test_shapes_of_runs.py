"""Pages of runs that are not the whole chain: each reads well, and has no empty sections."""

import pytest
from html_page import Page
from synthetic import make_run

from instruct_jax.report import build
from instruct_jax.report.findings import findings
from instruct_jax.report.run_data import read_run

BASE = "Qwen/Qwen3-0.6B"
SFT = {"kind": "sft", "uses": {"start": BASE}}
SFT_ALONE = {"sft": SFT}
REWARD_ALONE = {"reward": {"kind": "reward", "uses": {"start": BASE}}}
DPO = {
    "sft": SFT,
    "dpo": {"kind": "dpo", "uses": {"start": "sft"}},
    "evaluate": {
        "kind": "evaluate",
        "uses": {"models.base": BASE, "models.sft": "sft", "models.dpo": "dpo"},
        "settings": {"baseline": "sft"},
    },
}
TWO_REWARDS = {
    "sft": SFT,
    "reward": {"kind": "reward", "uses": {"start": "sft"}},
    "reward_2": {"kind": "reward", "uses": {"start": "sft"}, "settings": {"seed": 2}},
    "ppo": {"kind": "ppo", "uses": {"start": "sft", "reward": "reward"}},
    "ppo_2": {"kind": "ppo", "uses": {"start": "sft", "reward": "reward_2"}},
    "dpo": {"kind": "dpo", "uses": {"start": "sft"}},
    "evaluate": {
        "kind": "evaluate",
        "uses": {
            "models.sft": "sft",
            "models.ppo": "ppo",
            "models.ppo_2": "ppo_2",
            "models.dpo": "dpo",
            "models.runs/other:ppo": "runs/other:ppo",
            "reward": "reward",
        },
        "settings": {"baseline": "sft"},
    },
}


def page_of(folder, stages, **options) -> Page:
    page = Page(build(make_run(folder, stages, **options)).read_text(encoding="utf-8"))
    assert set(page.links()) <= set(page.ids) and len(page.ids) == len(set(page.ids))
    assert "Not in this run" not in "".join(page.sections.values())
    return page


def test_sft_alone(tmp_path):
    page = page_of(tmp_path / "run", SFT_ALONE)
    assert "This run went through sft. SFT loss of sft: from 4." in page.sections["header"]
    assert set(page.sections) == {
        "header",
        "numbers",
        "lineage",
        "training",
        "stages",
        "provenance",
    }
    assert len(page.pictures) == 1  # its loss
    assert BASE in page.sections["stages"]


def test_a_reward_model_alone(tmp_path):
    page = page_of(tmp_path / "run", REWARD_ALONE)
    assert "The reward model orders 72\u00a0% of held-out pairs" in page.sections["header"]
    assert "beats its trivial baselines" in page.sections["findings"]
    assert "agree" not in page.sections["header"] + page.sections["findings"]
    sections = {"numbers", "findings", "lineage", "reward-model", "rankings", "training", "stages"}
    assert set(page.sections) == sections | {"header", "provenance"}


def test_sft_then_dpo(tmp_path):
    page = page_of(tmp_path / "run", DPO)
    assert "Preferred to sft on 512 held-out prompts" in page.sections["header"]
    verdicts = page.sections["findings"]
    assert "dpo is preferred to sft: it wins 0.61" in verdicts
    assert "sft is preferred to the strongest untuned model: prompted base" in verdicts
    assert "alignment tax" not in verdicts and "reward-model" not in page.sections
    assert "DPO loss" in page.sections["training"]


def test_two_reward_models_their_policies_and_dpo_side_by_side(tmp_path):
    page = page_of(tmp_path / "run", TWO_REWARDS)
    verdicts = page.sections["findings"]
    for model in ("ppo", "ppo_2", "dpo"):
        assert f"{model} is preferred to sft" in verdicts
    assert "ppo and ppo_2" not in verdicts  # neither mixes in text
    assert (
        "reward_2 is well calibrated" in verdicts and "reward orders 72" in page.sections["header"]
    )
    one_panel = [alt for alt in page.pictures if alt.startswith("KL from the start")]
    assert len(one_panel) == 1 and "ppo from" in one_panel[0] and "ppo_2 from" in one_panel[0]
    frontiers = [alt for alt in page.pictures if "against KL from sft" in alt]
    assert len(frontiers) == 2  # the scores of two reward models are on two scales
    assert sum("the best of 16 samples" in alt for alt in frontiers) == 1
    accuracy = [alt for alt in page.pictures if alt.startswith("Share of pairs in the right")]
    assert "reward:" in accuracy[0] and "reward_2:" in accuracy[0]


def test_a_model_of_another_run(tmp_path):
    page = page_of(tmp_path / "run", TWO_REWARDS)
    assert "against runs/other:ppo" in page.sections["preference"]
    assert "0.57, 95\u00a0% interval 0.54 to 0.60" in page.sections["preference"]
    assert "runs/other:ppo is preferred" not in page.sections["findings"]  # not ours to judge
    assert "runs/other:ppo" in page.sections["lineage"]


def test_a_model_of_another_run_as_the_baseline(tmp_path):
    evaluate = TWO_REWARDS["evaluate"] | {"settings": {"baseline": "runs/other:ppo"}}
    page = page_of(tmp_path / "run", TWO_REWARDS | {"evaluate": evaluate})
    assert "Preferred to runs/other:ppo on 512 held-out prompts" in page.sections["header"]
    assert "ppo is preferred to runs/other:ppo" in page.sections["findings"]
    assert "runs/other:ppo again (control)" in page.sections["preference"]


@pytest.fixture
def two_evaluations(tmp_path):
    second = {
        "kind": "evaluate",
        "uses": {"models.ppo": "ppo", "models.dpo": "dpo", "reward": "reward_2"},
        "settings": {"baseline": "ppo"},
    }
    return make_run(tmp_path / "run", TWO_REWARDS | {"evaluate <2>": second})


def test_several_evaluations(two_evaluations):
    page = Page(build(two_evaluations).read_text(encoding="utf-8"))
    assert len(page.ids) == len(set(page.ids))
    assert "evaluate: Preferred to sft" in page.sections["header"]
    assert "evaluate <2>: Preferred to ppo" in page.sections["header"]
    for section in ("numbers", "preference", "tax", "style", "samples"):
        assert "evaluate <2>" in page.sections[section], section
    assert "evaluate <2>: dpo is preferred to ppo" in page.sections["findings"]
    assert sum(alt.startswith("Share of prompts on which each") for alt in page.pictures) == 2


def test_findings_name_their_evaluation_only_where_there_are_several(two_evaluations, tmp_path):
    several = findings(read_run(two_evaluations))
    assert {finding.evaluation for finding in several} == {"evaluate", "evaluate <2>", ""}
    one = findings(read_run(make_run(tmp_path / "one", DPO)))
    assert {finding.evaluation for finding in one} == {""}
