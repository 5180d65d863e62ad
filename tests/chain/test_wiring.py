"""Which weights, samples and inputs the stages take."""

import types
from pathlib import Path

import jax
import numpy as np
import pytest

from instruct_jax.chain import compare, evaluate, workspace
from instruct_jax.chain.load import load_config
from instruct_jax.chain.settings import CompareConfig, RunConfig, SftConfig
from instruct_jax.chain.task import open_task
from instruct_jax.chain.workspace import Completion, Workspace
from instruct_jax.errors import ConfigError, RunError
from instruct_jax.stages.ppo import PpoConfig


@pytest.mark.parametrize("averaged, part", [("true", "ema"), ("false", "params/policy")])
def test_the_moving_average_is_what_is_measured_and_shipped(finished, monkeypatch, averaged, part):
    """Paper C.4; the average lags behind the last weights, so they differ."""
    monkeypatch.chdir(finished.parents[1])
    config = load_config(RunConfig, finished / "config.yaml", ["--evaluation.averaged", averaged])
    ws = Workspace(config, finished, open_task(config, finished))
    policy = jax.tree.leaves(ws.policy_of("ppo"))
    for name in ("ema", "params/policy"):
        saved = jax.tree.leaves(ws.load("ppo", ws.boxed_policy, part=name))
        same = all(np.array_equal(a, b) for a, b in zip(policy, saved, strict=True))
        assert same == (name == part)


def test_ppo_starts_from_the_model_that_is_made_for_it(finished, monkeypatch):
    """One iteration moves it little from ppo_start, and SFT is elsewhere."""
    monkeypatch.chdir(finished.parents[1])
    config = load_config(RunConfig, finished / "config.yaml")
    ws = Workspace(config, finished, open_task(config, finished))
    leaves = {stage: jax.tree.leaves(ws.policy_of(stage)) for stage in ("ppo", "ppo_start", "sft")}
    far = {
        s: max(float(abs(a - b).max()) for a, b in zip(leaves["ppo"], leaves[s], strict=True))
        for s in ("ppo_start", "sft")
    }
    assert 0 < far["ppo_start"] < far["sft"] / 2


def test_a_share_of_the_samples_is_of_the_first_epoch():
    """compare.early=0.45 of at most 9 is 4; a prompt with fewer completions has fewer of both."""
    cfg = CompareConfig(prompts=400, min_completions=5, max_completions=9, early=0.45)
    config = types.SimpleNamespace(compare=cfg, sft=SftConfig(epochs=3), seed=0, ppo=PpoConfig())

    def generate(step, ids, sampler, key, *, samples):
        return [[Completion(f"{step}", [1], True, 0.0)] * samples for _ in ids]

    ws = types.SimpleNamespace(
        config=config,
        output=lambda stage: {"steps_per_epoch": 10},
        encode=lambda prompts: (prompts, prompts),
        key=lambda purpose: purpose,
        policy_of=lambda stage, step: step,
        generate=generate,
    )
    rows = compare._samples(ws, [{"prompt": str(i)} for i in range(400)], "compare")  # type: ignore[arg-type]
    sizes = {len(row["completions"]) for row in rows}
    assert sizes == {5, 6, 7, 8, 9}
    for row in rows:
        if len(row["completions"]) == 9:
            assert sorted(row["completions"]) == ["10"] * 4 + ["30"] * 5
    texts = [text for row in rows for text in row["completions"]]
    assert texts.count("10") / len(texts) == pytest.approx(4 / 9, abs=0.02)


def test_examples_that_do_not_fit_are_refused_before_any_training(tmp_path):
    tiny = Path(__file__).with_name("tiny.yaml")
    config = load_config(RunConfig, tiny, ["--out", str(tmp_path), "--evaluation.shots", "40"])
    with pytest.raises(
        ConfigError,
        match=(
            r"evaluation\.shots=40: with its \d+ tokens .* more than model\.context=192; lower"
            r" evaluation\.shots"
        ),
    ):
        Workspace(config, tmp_path, open_task(config, tmp_path))


def test_a_half_made_stage_is_not_finished_from_other_inputs(tmp_path):
    """What it needs was made again while it was stopped."""
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft" / "done.json").write_text('{"inputs": {}}')
    ws = types.SimpleNamespace(folder=tmp_path)

    def stopped():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Workspace.stage(ws, "reward", ("sft",), stopped)  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):  # the same inputs: it goes on
        Workspace.stage(ws, "reward", ("sft",), stopped)  # type: ignore[arg-type]
    (tmp_path / "sft" / "done.json").write_text('{"inputs": {"pretrain": "new"}}')
    with pytest.raises(
        RunError, match=r"inputs\.json: the input sft changed.*Remove .*reward to make it again"
    ):
        Workspace.stage(ws, "reward", ("sft",), lambda: {})  # type: ignore[arg-type]


def test_no_process_does_a_stage_before_all_have_seen_that_it_is_not_done(tmp_path, monkeypatch):
    """A slow one would find it done by a fast one, skip it, and meet the others at the barrier of
    another stage.
    """
    seen = []
    monkeypatch.setattr(
        workspace,
        "barrier",
        lambda name: seen.append((name, (tmp_path / "sft" / "done.json").exists())),
    )
    ws = types.SimpleNamespace(folder=tmp_path)
    Workspace.stage(ws, "sft", (), lambda: seen.append("work") or {})  # type: ignore[arg-type]
    assert seen == [("sft begins", False), "work", ("sft", True)]


def test_scores_by_use_case_by_hand():
    records = [{"use_case": "a"}, {"use_case": "b"}, {"use_case": "a"}]
    found = evaluate._by_use_case(
        records, {"sft": np.array([0.0, 1.0, 0.5]), "ppo": np.array([1.0, 1.0, 1.0])}
    )
    assert found["a"]["sft"] == {"mean": 0.25, "se": pytest.approx(0.25 / 2**0.5), "n": 2}
    assert found["b"]["ppo"] == {"mean": 1.0, "se": 0.0, "n": 1}


def test_the_way_of_a_ppo_run_asks_each_kept_checkpoint_once(monkeypatch, tmp_path):
    asked = []

    def ask(params, temperature, purpose):
        asked.append((params, temperature))
        return types.SimpleNamespace(reward=np.arange(4.0), gold=np.ones(4))

    monkeypatch.setattr(evaluate, "kept_steps", lambda folder: [10, 20, 25, 27])
    monkeypatch.setattr(evaluate, "_kl_to", lambda ws, examiner, sft, judged: 0.5)
    config = types.SimpleNamespace(rl={"ppo": types.SimpleNamespace(keep_every=10)})
    ws = types.SimpleNamespace(
        config=config, folder=tmp_path, policy_of=lambda stage, step: f"{stage} at {step}"
    )
    rows = evaluate._path(ws, types.SimpleNamespace(ask=ask), "sft", "ppo")  # type: ignore[arg-type]
    assert asked == [("sft", 1.0), ("ppo at 10", 1.0), ("ppo at 20", 1.0), ("ppo at 27", 1.0)]
    assert [(row["step"], row["kl"]) for row in rows] == [(0, 0.0), (10, 0.5), (20, 0.5), (27, 0.5)]
    assert rows[1]["reward"] == 1.5 and rows[1]["reward_se"] == pytest.approx(
        np.arange(4).std() / 2
    )
