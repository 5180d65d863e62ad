"""Whose samples are ranked, and how many of each model."""

import types

import pytest

from instruct_jax.chain import compare, networks, parameters
from instruct_jax.chain.compare import CompareStage
from instruct_jax.chain.graph import Place
from instruct_jax.chain.networks import Completion


def test_a_share_of_the_samples_is_of_the_first_epoch(monkeypatch):
    """first_epoch_share=0.45 of at most 9 is 4; a prompt with fewer completions has fewer of
    both.
    """
    cfg = CompareStage(
        kind="compare", prompts=400, min_completions=5, max_completions=9, first_epoch_share=0.45
    )

    def policy(run, place, step=None):
        return types.SimpleNamespace(net="net", params=step or "last")

    def generate(net, step, ids, sampler, key, *, samples):
        return [[Completion(f"{step}", [1], True, 0.0)] * samples for _ in ids]

    monkeypatch.setattr(parameters, "policy", policy)
    monkeypatch.setattr(networks, "generate", generate)
    monkeypatch.setattr(networks, "encode", lambda net, prompts: (prompts, prompts))
    run = types.SimpleNamespace(
        config=types.SimpleNamespace(text=types.SimpleNamespace(max_completion=8)),
        output=lambda place: {"steps_per_epoch": 10},
        spec=lambda place: "spec",
        network=lambda spec: "net",
    )
    stage = types.SimpleNamespace(
        settings=cfg,
        run=run,
        seed=0,
        used=lambda key: Place(None, "sft"),
        key=lambda purpose: purpose,
    )
    prompts = [{"prompt": str(i)} for i in range(400)]
    rows = compare._draw(stage, prompts, "compare")  # type: ignore[arg-type]
    assert {len(row["completions"]) for row in rows} == {5, 6, 7, 8, 9}
    for row in rows:
        if len(row["completions"]) == 9:
            assert sorted(row["completions"]) == ["10"] * 4 + ["last"] * 5
            assert sorted(row["models"]) == ["sft"] * 5 + ["sft, first epoch"] * 4
    texts = [text for row in rows for text in row["completions"]]
    assert texts.count("10") / len(texts) == pytest.approx(4 / 9, abs=0.02)
