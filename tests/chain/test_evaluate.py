"""The evaluation of kept checkpoints, and what is refused before it."""

import types
from pathlib import Path

import numpy as np
import pytest

from instruct_jax.chain import evaluate, parameters
from instruct_jax.chain.evaluate import Contestant, EvaluateStage
from instruct_jax.chain.graph import Place
from instruct_jax.errors import ConfigError


def test_each_kept_checkpoint_of_a_ppo_run_is_sampled_once(monkeypatch):
    sampled = []

    def sample_and_score(model, temperature, purpose):
        sampled.append((model, temperature, purpose))
        return types.SimpleNamespace(reward=np.arange(4.0), judged=np.ones(4))

    def policy(run, place, step=None):
        return f"{place} at {step}"

    monkeypatch.setattr(evaluate, "kept_steps", lambda folder: [10, 20, 25, 27])
    monkeypatch.setattr(parameters, "policy", policy)
    settings = types.SimpleNamespace(keep_every=10)
    run = types.SimpleNamespace(
        config=types.SimpleNamespace(stages={"ppo": settings, "sft": types.SimpleNamespace()}),
        stage_folder=lambda place: Path(),
    )
    evaluator = types.SimpleNamespace(
        stage=types.SimpleNamespace(run=run),
        reward="reward",
        sample_and_score=sample_and_score,
        kl=lambda model, samples, reference: 0.5,
    )
    models = [
        Contestant("sft", Place(None, "sft"), "sft", "sft"),
        Contestant("ppo", Place(None, "ppo"), "ppo", "ppo"),
    ]
    found = evaluate._over_optimization(evaluator, models, "reference")  # type: ignore[arg-type]
    rows = found.pop("ppo")
    assert not found
    assert sampled == [
        ("reference", 1.0, "ppo at 0"),
        ("ppo at 10", 1.0, "ppo at 10"),
        ("ppo at 20", 1.0, "ppo at 20"),
        ("ppo at 27", 1.0, "ppo at 27"),
    ]
    assert [(row["step"], row["kl"]) for row in rows] == [(0, 0.0), (10, 0.5), (20, 0.5), (27, 0.5)]
    assert rows[1]["reward"] == 1.5
    assert rows[1]["reward_se"] == pytest.approx(np.arange(4).std() / 2)


def test_examples_that_do_not_fit_are_refused_before_any_sample():
    settings = EvaluateStage(kind="evaluate", models=("base",), shots=40)
    text = types.SimpleNamespace(max_prompt=24, max_completion=20)
    task = types.SimpleNamespace(examples=lambda count: "word " * 4 * count)
    run = types.SimpleNamespace(config=types.SimpleNamespace(text=text))
    stage = types.SimpleNamespace(name="evaluate", settings=settings, task=task, run=run)
    tokenizer = types.SimpleNamespace(encode=lambda words, **_: words.split())
    spec = types.SimpleNamespace(model=types.SimpleNamespace(context=192))
    net = types.SimpleNamespace(tokenizer=tokenizer, text=text, spec=spec)
    with pytest.raises(
        ConfigError,
        match=(
            r"stages\.evaluate\.shots=40: with its 160 tokens .* up to 204, more than"
            r" model\.context=192; lower shots"
        ),
    ):
        evaluate._require_room_for_examples(stage, net)  # type: ignore[arg-type]
