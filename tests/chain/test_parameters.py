"""Which weights the stages leave and take."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from instruct_jax.chain import parameters
from instruct_jax.chain.context import Run
from instruct_jax.chain.graph import Place
from instruct_jax.chain.read import load_run
from instruct_jax.chain.spec import NAME, Checkpoint, read_spec, write_spec


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
