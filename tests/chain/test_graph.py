"""Names in a config: what they stand for, the order of the stages, and what is made from what."""

from pathlib import Path
from typing import Any

import pytest

from instruct_jax.chain import graph
from instruct_jax.chain.graph import Place
from instruct_jax.chain.read import build_run
from instruct_jax.errors import ConfigError

WORLD = {"out": "runs/a", "world": {}, "text": {"max_prompt": 8, "max_completion": 8}}
CHAIN: dict[str, Any] = {
    "evaluate": {"models": ["base", "sft", "ppo"], "baseline": "sft", "reward": "reward"},
    "ppo": {"start": "sft", "reward": "reward"},
    "reward": {"start": "sft", "rankings": "compare"},
    "compare": {"start": "sft"},
    "sft": {},
    "pretrain": {},
}


def config(stages, **keys):
    return build_run({**WORLD, **keys, "stages": stages}, "test")


def test_a_name_stands_for_a_stage_another_run_or_a_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder, file in (("theirs", "config.json"), ("adapter", "adapter_config.json")):
        Path(folder).mkdir()
        Path(folder, file).write_text("{}")
    run = config(CHAIN)
    for name, place in {
        "sft": Place(None, "sft"),
        "runs/b:ppo": Place("runs/b", "ppo"),
        "/data/runs/b:ppo": Place("/data/runs/b", "ppo"),
        "./theirs": Place(None, None, "./theirs"),
        "adapter": Place(None, None, "adapter"),
        "Qwen/Qwen3-0.6B": Place(None, None, "Qwen/Qwen3-0.6B"),
        "Qwen/Qwen3-0.6B@main": Place(None, None, "Qwen/Qwen3-0.6B@main"),
        "base": Place(None, "pretrain"),
    }.items():
        found = graph.resolve(run, name, "key")
        assert found == place
        assert str(found) == ("pretrain" if name == "base" else name)
        assert found.own == (name in ("sft", "base"))


def test_base_stands_for_what_the_config_says():
    sft = {"sft": {}}
    assert graph.resolve(config(sft | {"pretrain": {}}), "base", "k") == Place(None, "pretrain")
    more = sft | {"tiny": {"kind": "pretrain"}, "pretrain": {}}
    assert graph.resolve(config(more, base="tiny"), "base", "k") == Place(None, "tiny")
    run = config(sft, base="runs/b:pretrain")
    assert graph.resolve(run, "base", "k") == Place("runs/b", "pretrain")
    with pytest.raises(ConfigError, match="stages.sft.start=base, and this run has no base; set"):
        graph.order(config(sft))


def test_a_name_that_stands_for_nothing_is_explained(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("runs/b").mkdir(parents=True)
    Path("runs/b/config.yaml").write_text("")
    Path("sft").mkdir()
    Path("sft/config.json").write_text("{}")
    run = config(CHAIN)
    for name, message in {
        "rewad": "stages.ppo.reward=rewad is no stage of this run, .*; did you mean reward?",
        "zebra": "the stages are evaluate, ppo, reward, compare, sft, pretrain",
        "runs/b": "is a run; name one of its stages: runs/b:STAGE",
        "sft": "is a stage of this run and a model folder; write ./sft for the folder",
        "./nowhere": "no RUN:STAGE, and no model folder",
    }.items():
        with pytest.raises(ConfigError, match=message):
            graph.resolve(run, name, "stages.ppo.reward")


def test_stages_stand_behind_what_they_use_and_findings_last():
    assert graph.order(config(CHAIN)) == ["pretrain", "sft", "compare", "reward", "ppo", "evaluate"]
    early = {"pretrain": {}, "evaluate": {"models": ["base"]}, "sft": {}}
    assert graph.order(config(early)) == ["pretrain", "sft", "evaluate"]
    # else as the config has them
    two = {"b": {"kind": "sft", "start": "pretrain"}, "a": {"kind": "sft"}, "pretrain": {}}
    assert graph.order(config(two)) == ["pretrain", "b", "a"]


def test_what_is_made_from_a_stage():
    run = config(CHAIN | {"dpo": {"start": "sft", "rankings": "compare"}})
    assert graph.descendants(run, ["reward"]) == ["reward", "ppo", "evaluate"]
    assert graph.descendants(run, ["compare"]) == ["compare", "reward", "ppo", "dpo", "evaluate"]
    assert graph.descendants(run, ["dpo", "evaluate"]) == ["dpo", "evaluate"]
    assert graph.descendants(run, ["pretrain"]) == graph.order(run)


def test_uses_are_named_by_their_keys():
    run = config(
        CHAIN
        | {
            "both": {"kind": "reward", "start": "sft", "rankings": ["compare", "runs/b:compare"]},
            "again": {
                "kind": "evaluate",
                "models": {"ours": "ppo", "theirs": "runs/b:ppo"},
            },
        }
    )
    assert graph.uses(run, "both") == {
        "start": Place(None, "sft"),
        "rankings.1": Place(None, "compare"),
        "rankings.2": Place("runs/b", "compare"),
    }
    assert graph.uses(run, "again") == {
        "models.ours": Place(None, "ppo"),
        "models.theirs": Place("runs/b", "ppo"),
    }
    assert graph.uses(run, "pretrain") == {}
    files = {"world": None, "data": {"tokenizer": "tok"}, "base": "runs/b:sft"}
    data = config({"dpo": {}}, **files)
    assert graph.uses(data, "dpo") == {"start": Place("runs/b", "sft")}  # the data is no stage


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"a": {"kind": "sft", "start": "a"}}, "stages.a is made from itself: a <- a"),
        (
            {"a": {"kind": "sft", "start": "b"}, "b": {"kind": "sft", "start": "a"}},
            "stages.a is made from itself: a <- b <- a; change one of these",
        ),
        (
            {"compare": {"start": "sft", "ranker": "reward"}},
            "is made from itself: .*reward <- compare",
        ),
    ],
)
def test_a_stage_is_not_made_from_itself(changes, message):
    with pytest.raises(ConfigError, match=message):
        graph.order(config(CHAIN | changes))


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (
            {"kind": "ppo", "start": "sft", "reward": "sft"},
            "stages.wrong.reward=sft leaves a policy, and a reward model is needed; use reward",
        ),
        (
            {"kind": "sft", "start": "compare"},
            "stages.wrong.start=compare leaves rankings, and a policy is needed; use ppo, sft,"
            " pretrain$",
        ),
        (
            {"kind": "dpo", "start": "sft", "rankings": "reward"},
            "stages.wrong.rankings=reward leaves a reward model, and rankings is needed; use"
            " compare",
        ),
        (
            {"kind": "evaluate", "models": ["sft", "reward"]},
            "stages.wrong.models.reward=reward leaves a reward model, and a policy is needed",
        ),
        (
            {"kind": "evaluate", "models": ["evaluate"]},
            "stages.wrong.models.evaluate=evaluate leaves only findings, and a policy is needed",
        ),
        (
            {"kind": "compare", "models": {"reward": 0.5}},
            "stages.wrong.models.1=reward leaves a reward model, and a policy is needed",
        ),
    ],
)
def test_a_stage_uses_others_for_what_they_leave(stage, message):
    run = config(CHAIN | {"wrong": stage})
    with pytest.raises(ConfigError, match=message):
        graph.check_uses(run)


@pytest.mark.parametrize("kind", ["sft", "ppo", "dpo", "select", "import"])
def test_a_policy_starts_from_a_policy(kind):
    """Only a reward model may start from a reward model."""
    reward = {"reward": "reward"} if kind in ("ppo", "select") else {}
    rankings = {"rankings": "compare"} if kind == "dpo" else {}
    run = config(CHAIN | {"wrong": {"kind": kind, "start": "reward", **reward, **rankings}})
    with pytest.raises(ConfigError, match=r"stages.wrong.start=reward leaves a reward model"):
        graph.check_uses(run)
    more = {"kind": "reward", "start": "reward", "rankings": "compare"}
    graph.check_uses(config(CHAIN | {"more": more}))
