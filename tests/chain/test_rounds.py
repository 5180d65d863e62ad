"""Rounds of feedback: whose samples are ranked, by whom, and what is learned from."""

import collections
import json
import types
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import userfiles
import yaml

from instruct_jax.chain import compare, parameters, rankings
from instruct_jax.chain.compare import CompareStage
from instruct_jax.chain.context import Run
from instruct_jax.chain.graph import Place
from instruct_jax.chain.identity import stage_hash
from instruct_jax.chain.preflight import check_config
from instruct_jax.chain.read import build_run, load_run
from instruct_jax.chain.rounds import rounds_of
from instruct_jax.chain.run import run
from instruct_jax.chain.settings import PeopleConfig, RunConfig
from instruct_jax.chain.task import Rankings, open_task
from instruct_jax.cli import main
from instruct_jax.data.readers import write_jsonl
from instruct_jax.errors import ConfigError
from instruct_jax.runtime.folders import finish_stage

STAGES = """
compare:
  start: runs/a:sft
  ranker: runs/a:reward
  prompts: 7
  held_out_prompts: 2
  max_completions: 4
reward: {start: runs/a:sft, rankings: [compare, data], batch: 4}
ppo:
  start: runs/a:sft
  reward: reward
  iterations: 1
  batch: 8
  minibatch: 4
  sampler: {max_tokens: 6}
evaluate: {models: {sft: runs/a:sft, ppo: ppo}, baseline: sft, reward: reward}
"""


def config_of(rounds: dict | None = None, **changes: Any) -> RunConfig:
    """A run on the files of `place`, whose stages begin with those of the finished run."""
    tree = yaml.safe_load(userfiles.CONFIG)
    tree |= {"out": "runs/rounds", "stages": yaml.safe_load(STAGES), "rounds": rounds} | changes
    tree["data"]["held_out"] = 0.25
    tree["text"]["on_long"] = "truncate_left"
    return build_run(tree, "test")


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().split("\n") if line]


def test_the_rounds_of_a_config(finished, monkeypatch):
    """Each is a run that could have been written by hand; the first is the run itself, so rounds
    can be added to a run that is there.
    """
    monkeypatch.chdir(finished.parents[1])
    rounds = {"count": 3, "shares": {"ppo": 0.25}, "ranker": "b:reward"}
    first, second, third = rounds_of(config_of(rounds))
    assert first == config_of() and rounds_of(first) == [first]
    assert [r.out for r in (second, third)] == ["runs/rounds/round_2", "runs/rounds/round_3"]
    assert [r.round for r in (second, third)] == [2, 3]
    compares: list[Any] = [r.stages["compare"] for r in (first, second, third)]
    assert [c.ranker for c in compares] == ["runs/a:reward", "b:reward", "b:reward"]
    assert compares[2].models == {"runs/rounds/round_2:ppo": 0.25}
    assert compares[2].previous == "runs/rounds/round_2:compare"
    evaluate: Any = third.stages["evaluate"]
    assert evaluate.named == {
        "sft": "runs/a:sft",
        "ppo": "ppo",
        "ppo_round_1": "runs/rounds:ppo",
        "ppo_round_2": "runs/rounds/round_2:ppo",
    }


def test_later_rounds_begin_with_the_stages_that_need_no_rankings(finished, monkeypatch):
    monkeypatch.chdir(finished.parents[1])
    tree = yaml.safe_load(STAGES)
    tree["sft"] = {"start": "runs/a:pretrain", "epochs": 1, "length": 16}
    for name in ("compare", "reward", "ppo"):
        tree[name]["start"] = "sft"
    second = rounds_of(config_of({"count": 2}, stages=tree))[1]
    assert "sft" not in second.stages
    starts = {name: getattr(s, "start", None) for name, s in second.stages.items()}
    assert starts["compare"] == starts["reward"] == starts["ppo"] == "runs/rounds:sft"


def test_run_goes_through_the_rounds(finished, monkeypatch, capsys, tmp_path):
    """One after the other, each checked when its turn comes: it reads what the one before it
    left.
    """
    monkeypatch.chdir(finished.parents[1])
    ran = []

    def fake(config, stages, redo):
        ran.append((config.out, config.round))
        return Path(config.out)

    monkeypatch.setattr("instruct_jax.chain.run.run", fake)
    monkeypatch.setattr("instruct_jax.chain.preflight.validate", lambda *args: None)
    path = tmp_path / "rounds.yaml"
    tree = yaml.safe_load(userfiles.CONFIG)
    path.write_text(yaml.safe_dump(tree | {"out": "runs/r", "stages": yaml.safe_load(STAGES)}))
    assert main(["run", "--config", str(path), "--rounds.count", "2"]) == 0
    assert ran == [("runs/r", 1), ("runs/r/round_2", 2)]
    assert "round 2 of 2" in capsys.readouterr().out


@pytest.fixture(scope="module")
def both(finished) -> tuple[Path, Path]:
    """The rankings of two rounds on files: by the reward model of the finished run, in the second
    round half of the samples by a policy of the first.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(finished.parents[1])
        first, second = rounds_of(config_of({"count": 2, "shares": {"ppo": 0.5}}))
        folder = run(first, ("compare",)).absolute()
        (folder / "ppo").symlink_to(finished / "ppo")  # as if the first round had gone on
        return folder, run(second, ("compare",)).absolute()


def test_the_rankings_of_all_rounds_are_passed_on(both, finished):
    earlier, train = (lines(folder / "compare" / "train.jsonl") for folder in both)
    assert [r["round"] for r in train] == [2] * 7 + [1] * 7
    assert train[7:] == earlier
    held_out = {str(r["prompt"]) for r in lines(both[1] / "compare" / "held_out_prompts.jsonl")}
    assert not held_out & {str(r["prompt"]) for r in train}
    inputs = json.loads((both[1] / "compare" / "done.json").read_text())["inputs"]
    assert inputs["uses.models.1"] == stage_hash(finished / "ppo")
    assert inputs["uses.previous"] == stage_hash(both[0] / "compare")
    assert inputs["uses.ranker"] == stage_hash(finished / "reward")


def test_rankings_of_a_stage_and_of_the_data_are_learned_from_together(both, monkeypatch):
    monkeypatch.chdir(both[0].parents[1])
    stage = Run(config_of(), both[0]).stage("reward")
    given = rankings.gathered(stage)
    data = stage.task.rankings
    assert data is not None
    assert given.train == lines(both[0] / "compare" / "train.jsonl") + data.train


def test_what_is_held_out_in_one_round_is_not_learned_from_in_another(tmp_path, monkeypatch):
    """The world's prompts come again: c was held out in round 1 and a was learned from, so in round
    2 neither changes sides.
    """

    def ranked(*prompts):
        return [{"prompt": p, "completions": ["x", "y"], "ranks": [1, 2]} for p in prompts]

    first, folder = tmp_path / "one" / "compare", tmp_path / "compare"
    folder.mkdir()
    groups = {
        "train": ranked("a", "b"),
        "held_out_prompts": ranked("c"),
        "held_out_labelers": ranked("c"),
    }
    for name, records in groups.items():
        write_jsonl(first / f"{name}.jsonl", [{**record, "round": 1} for record in records])
    finish_stage(
        first, {}, kind="compare", output={"labeler_noise": 0.25}, left={}, seconds=0, memory={}
    )
    prompts = {"compare": ranked("b", "c", "d"), "compare_held_out": ranked("a", "e")}
    noises = []

    def rank(samples, held_out, noise):
        noises.append(noise)
        return Rankings(samples, held_out, held_out, None, noise)

    monkeypatch.setattr(compare, "_draw", lambda stage, prompts, purpose: prompts)
    stage = types.SimpleNamespace(
        settings=CompareStage(kind="compare", previous="one:compare"),
        folder=folder,
        task=types.SimpleNamespace(prompts=lambda purpose, count: prompts[purpose], rank=rank),
        used=lambda key: Place("one", "compare"),
        run=types.SimpleNamespace(
            stage_folder=lambda place: first, config=types.SimpleNamespace(round=2)
        ),
    )
    compare.run(stage)  # type: ignore[arg-type]
    found = {}
    for name in ("train", "held_out_prompts"):
        found[name] = [(r["prompt"], r["round"]) for r in lines(folder / f"{name}.jsonl")]
    assert found == {
        "train": [("b", 2), ("d", 2), ("a", 1), ("b", 1)],
        "held_out_prompts": [("e", 2), ("c", 1)],
    }
    assert noises == [0.25]


def test_half_of_the_completions_are_by_the_policy_of_the_round_before(both):
    samples = lines(both[1] / "compare" / "samples.jsonl")
    by = collections.Counter(model for sample in samples for model in sample["models"])
    assert by == {"runs/a:sft": 14, "runs/rounds:ppo": 14}
    assert all(len(s["models"]) == len(s["completions"]) == 4 for s in samples)
    lineage = json.loads((both[1] / "compare" / "done.json").read_text())["output"]["lineage"]
    counted = {(row["round"], row["model"]): row["completions"] for row in lineage}
    assert counted[2, "runs/a:sft"] == counted[2, "runs/rounds:ppo"] == 14
    assert counted[1, "runs/a:sft"] == 28


def test_a_reward_model_ranks_as_it_scores(both, finished, monkeypatch):
    monkeypatch.chdir(finished.parents[1])
    context = Run(load_run(finished / "config.yaml"), finished)
    model = parameters.scalar(context, Place(None, "reward"))
    ranked = [r for r in lines(both[1] / "compare" / "train.jsonl") if r["round"] == 2]
    assert {r["labeler_id"] for r in ranked} == {"runs/a:reward"}
    for record, scores, _ in rankings.scored(model.net, model.params, ranked):
        order = sorted(set(scores.tolist()), reverse=True)
        assert record["ranks"] == [order.index(score) + 1 for score in scores]


def test_each_round_has_prompts_and_random_numbers_of_its_own(finished, monkeypatch):
    monkeypatch.chdir(finished.parents[1])
    configs = [config_of(round=number) for number in (1, 2)]
    first, second = (open_task(config) for config in configs)
    asked = [{str(r["prompt"]) for r in t.prompts("compare", 5)} for t in (first, second)]
    assert not asked[0] & asked[1]
    assert first.prompts("report", 9) == second.prompts("report", 9)
    keys = [jax.random.key_data(Run(config, finished).key("ppo")) for config in configs]
    assert not np.array_equal(keys[0], keys[1])


def test_labelers_are_as_noisy_in_the_second_round(tmp_path):
    """Calibrating them anew on other samples would make other people of them."""
    config = load_run(Path(__file__).with_name("tiny.yaml"), ["--out", str(tmp_path)])
    task = open_task(config)
    assert task.rank is not None
    replies = {"completions": ["yes", "no", "a dog ."], "ended": [True] * 3}
    samples = [{**record, **replies} for record in task.prompts("compare", 24)]
    first = task.rank(samples, samples, None)
    assert first.noise is not None
    assert task.rank(samples, samples[:3], first.noise).train == first.train
    louder = task.rank(samples, samples, first.noise + 1)
    assert louder.noise == first.noise + 1 and louder.train != first.train


def test_rounds_need_what_they_name(finished, monkeypatch):
    monkeypatch.chdir(finished.parents[1])
    with pytest.raises(ConfigError, match=r"rounds\.shares\.sft is no policy .*; use ppo"):
        rounds_of(config_of({"count": 2, "shares": {"sft": 0.5}}))
    with pytest.raises(ConfigError, match="both rank; remove one"):
        CompareStage(kind="compare", ranker="a:reward", people=PeopleConfig("x.db"))
    with pytest.raises(ConfigError, match="at most 1 can be shared"):
        CompareStage(kind="compare", models={"a:ppo": 0.6, "b:ppo": 0.6})
    alone = load_run("run.yaml", [*userfiles.OVERRIDES, "--rounds.count", "2"])
    with pytest.raises(ConfigError, match=r"rounds\.count=2 needs a stage of kind compare"):
        check_config(alone, None)
