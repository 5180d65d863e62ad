"""Which weights the stages leave and take."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from data import wordtok

from instruct_jax.chain import parameters, reward
from instruct_jax.chain.context import Run
from instruct_jax.chain.graph import Place
from instruct_jax.chain.read import build_run, load_run
from instruct_jax.chain.spec import NAME, Checkpoint, read_spec, write_spec
from instruct_jax.errors import InstructError


@pytest.fixture
def run(finished, monkeypatch) -> Run:
    monkeypatch.chdir(finished.parents[1])
    return Run(load_run(finished / "config.yaml"), finished)


def leaves(run: Run, stage: str, step: int | None = None) -> list:
    return jax.tree.leaves(parameters.policy(run, Place(None, stage), step).params)


def same(one: list, other: list) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_the_moving_average_is_what_is_measured_and_shipped(run):
    """Paper C.4; the average lags behind the last weights, so they differ."""
    spec, left = read_spec(run.folder, "ppo")
    assert left == Checkpoint("ppo", "ema")
    average = leaves(run, "ppo")
    note = (run.folder / "ppo" / NAME).read_text()
    try:
        write_spec(run.folder, "ppo", spec, dataclasses.replace(left, part="params/policy"))
        last = leaves(run, "ppo")
    finally:
        (run.folder / "ppo" / NAME).write_text(note)
    assert not same(average, last)


def test_ppo_starts_from_the_model_that_is_made_for_it(run):
    """One iteration moves it little from ppo_start, and SFT is elsewhere."""
    ppo = leaves(run, "ppo")

    def distance(stage: str) -> float:
        pairs = zip(ppo, leaves(run, stage), strict=True)
        return max(float(abs(a - b).max()) for a, b in pairs)

    assert 0 < distance("ppo_start") < distance("select") / 2


def test_select_leaves_an_epoch_of_sft_under_its_own_name(run):
    output = json.loads((run.folder / "select" / "done.json").read_text())["output"]
    assert same(leaves(run, "select"), leaves(run, "sft", output["step"]))
    _, left = read_spec(run.folder, "select")
    assert left == Checkpoint("sft", step=output["step"])
    last = json.loads((run.folder / "sft" / "done.json").read_text())["output"]["steps_per_epoch"]
    assert same(leaves(run, "sft"), leaves(run, "sft", 2 * last))  # what sft means never changes


# --- folders of Hugging Face ---


def folder(place, head: bool = False):
    """A small model with a tokenizer of 17 words; returns it and its run."""
    pytest.importorskip("torch", reason="torch is only for tests: pip install torch")
    import torch_models

    model = torch_models.model_of("llama", head=head)
    torch_models.save(model, place / "theirs")
    wordtok.words().save_pretrained(place / "theirs")
    return model


def run_of(**keys) -> Run:
    tree = {
        "out": "run",
        "data": {"tokenizer": "theirs"},
        "text": {"max_prompt": 4, "max_completion": 4},
        "mesh": {"data": 1},
        "stages": {"import": {}},
    }
    return Run(build_run(tree | keys, "test"), Path("run"))


def test_a_reward_model_of_others_is_no_language_model(tmp_path, monkeypatch):
    """By its config, and where that does not say so by its tensors; a reward model that starts from
    it keeps its head.
    """
    monkeypatch.chdir(tmp_path)
    model = folder(tmp_path, head=True)
    run = run_of(base="theirs", stages={"reward": {"start": "base", "batch": 4}})
    stage = run.stage("reward")
    params = reward._start(stage, stage.network, "reward")
    score = model.score.weight.detach().numpy()[0]
    np.testing.assert_array_equal(params["head"]["kernel"], score)
    place = Place(None, None, "theirs")
    with pytest.raises(InstructError, match="theirs is a model for sequence classification"):
        parameters.policy(run, place)
    config = json.loads(Path("theirs/config.json").read_text())
    del config["architectures"]
    Path("theirs/config.json").write_text(json.dumps(config))
    with pytest.raises(InstructError, match="score.weight is the head of a model for sequence"):
        parameters.policy(run, place)


def test_a_base_may_have_more_ids_than_it_was_made_with(tmp_path, monkeypatch):
    """New rows are the mean of the others; fewer rows, or more in a run's model, are refused."""
    monkeypatch.chdir(tmp_path)
    folder(tmp_path)
    run, larger = run_of(base="theirs"), run_of(base="theirs", model={"vocab_size": 105})
    place = Place(None, None, "theirs")
    own, grown = (parameters.policy(r, place).params for r in (run, larger))
    for name in ("embedding", "unembedding"):
        np.testing.assert_array_equal(grown[name][:101], own[name])
        mean = np.asarray(own[name]).mean(axis=0)
        np.testing.assert_allclose(grown[name][101:], np.tile(mean, (4, 1)), atol=1e-6)
    with pytest.raises(InstructError, match="model.vocab_size=100, but theirs has 101"):
        run_of(base="theirs", model={"vocab_size": 100})
