"""The programs of a plan are those of a run: same shapes, types and places."""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import userfiles

from instruct_jax import sharding
from instruct_jax.chain import dpo, parameters, ppo
from instruct_jax.chain.context import Run
from instruct_jax.chain.kinds import KINDS
from instruct_jax.chain.networks import Network
from instruct_jax.chain.programs import Program
from instruct_jax.chain.read import load_run
from instruct_jax.chain.spec import Checkpoint, ModelSpec, TokenizerSource, write_spec
from instruct_jax.models.lm import parameter_count
from instruct_jax.models.lora import merge
from instruct_jax.plan.plan import given_again, on_device
from instruct_jax.plan.programs import programs, with_programs, work_of

SMALL = Path(__file__).with_name("small.yaml")
MESH = "--mesh.fsdp 2 --mesh.tensor 2".split()
WIDE = "{vocab_size: 20, context: 16, width: 32, layers: 1, heads: 2, dtype: bfloat16}"
LORA = ["--lora.rank", "2", "--model.dtype", "bfloat16", "--ppo.value_init", "policy"]
CASES = {
    "all weights": [],
    "lora": LORA,
    "frozen layers": ["--frozen_layers", "1", "--model.dtype", "bfloat16"],
    "a larger reward model": [
        *("--stages.wide.kind", "pretrain", "--wide.model", WIDE),
        *("--stages.wide_sft.kind", "sft", "--wide_sft.start", "wide"),
        *("--wide_sft.batch", "8", "--wide_sft.length", "16", "--reward.start", "wide_sft"),
    ],
}


@functools.cache
def planned(*overrides: str) -> dict[tuple[str, str], Program]:
    """The programs of all stages by stage and step; made once for the same overrides."""
    config = load_run(SMALL, overrides)
    every = programs(config, with_programs(config, None), jax.devices())
    return {(program.stage, program.step): program for program in every}


def shown(tree: Any) -> Any:
    """Shape, type and place of every array."""
    return jax.tree.map(lambda x: (x.shape, str(x.dtype), str(x.sharding.spec)), tree)


@pytest.fixture
def untrained(monkeypatch, tmp_path):
    """The folder of a user whose stages find zeros where others left parameters; nothing is
    compiled ahead.
    """

    def zeros(run: Run, net: Network, place: Any, boxed: Any, step: Any) -> Any:
        shapes = sharding.abstract(boxed, net.layout)
        if run.abstract:
            return shapes
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype, device=x.sharding), shapes)

    def no_logp(stage: Any, examples: Any, source: Any, rankings_at: Any) -> np.ndarray:
        return np.zeros((len(examples), 3), np.float32)

    monkeypatch.setattr(parameters, "_load", zeros)
    monkeypatch.setattr(parameters, "_normalised", lambda run, place, params: params)
    monkeypatch.setattr(dpo, "_reference_logp", no_logp)
    monkeypatch.setattr(sharding, "ahead_of_time", lambda step, state, base, examples: step)
    monkeypatch.chdir(userfiles.make(tmp_path))


@pytest.mark.parametrize("overrides", CASES.values(), ids=CASES)
def test_an_abstract_run_is_like_a_run(overrides, untrained):
    """State and frozen weights of each stage, and for PPO the weights for sampling."""
    config, plan = load_run(SMALL, [*MESH, *overrides]), planned(*MESH, *overrides)
    run = Run(config, Path(config.out))
    for name in ("sft", "reward"):
        state, base, _ = plan[name, "step"].arguments
        stage = run.stage(name)
        set_up = KINDS[name].training
        assert set_up is not None
        ready = set_up(stage)
        assert shown(ready.state) == shown(state), name
        frozen = jax.tree.leaves(base)  # as the forward pass reads them: bfloat16, but for norms
        assert not frozen or any(x.dtype == jnp.bfloat16 for x in frozen), name
    stage = run.stage("ppo")
    ready = ppo.set_up(stage)
    state, bases, _, _, _ = plan["ppo", "update"].arguments
    assert shown((ready.state, ready.bases)) == shown((state, bases))
    assert shown(ready.frozen) == shown(plan["ppo", "experience"].arguments[1])
    net = ready.nets.policy
    whole = merge(ready.bases["policy"], ready.state.params["policy"])
    assert shown(net.for_sampling(whole)) == shown(plan["ppo", "rollout"].arguments[0])


def test_batches_are_like_those_of_a_run(untrained):
    """Rankings and prompts may be narrower: they are as wide as the longest."""
    config, plan = load_run(SMALL, MESH), planned(*MESH)
    run = Run(config, Path(config.out))
    for name in ("pretrain", "sft", "reward", "dpo", "ppo_ptx"):
        training = KINDS[config.stages[name].kind].training
        assert training is not None
        batch = training(run.stage(name)).batch_at(0)
        if name == "ppo_ptx":
            _, prompts, _ = plan[name, "rollout"].arguments
            expected = (prompts, plan[name, "update"].arguments[3])
        else:
            _, _, expected = plan[name, "step"].arguments
        if name in ("pretrain", "sft"):
            assert shown(batch) == shown(expected), name
        else:
            assert _without_sizes(batch) == _without_sizes(expected), name


def _without_sizes(tree: Any) -> Any:
    return jax.tree.map(lambda x: (x.ndim, str(x.dtype), str(x.sharding.spec)), tree)


def test_nothing_is_read(monkeypatch, tmp_path):
    """Neither tokenizer nor data nor weights: the folder is empty, and stays so."""
    monkeypatch.chdir(tmp_path)
    config = load_run(SMALL)
    assert with_programs(config, None) == ["pretrain", "sft", "reward", "dpo", "ppo", "ppo_ptx"]
    assert with_programs(config, ["evaluate"]) == []
    plan = planned(*MESH)
    steps = ["rollout", "experience", "update"]
    expected = [(name, "step") for name in ("pretrain", "sft", "reward", "dpo")]
    expected += [(name, step) for name in ("ppo", "ppo_ptx") for step in steps]
    assert list(plan) == expected
    assert not list(tmp_path.iterdir())


def test_rankings_are_as_large_as_they_may_be():
    """K of the data is at most 9, that of samples as the settings say, and pairs have 2."""
    sampled = ["--stages.compare.start", "sft", "--compare.max_completions", "5"]
    sampled += ["--reward.rankings", "compare"]
    for overrides, k in (([], 9), (sampled, 5), (["--reward.pairs_shuffled", "true"], 2)):
        config = load_run(SMALL, overrides)
        (program,) = programs(config, ["reward"], jax.devices())
        assert program.arguments[2].tokens.shape == (8, k, 12)


def test_what_two_models_share_is_counted_once():
    """With LoRA policy, value function and reward model lie on one base: a program takes it up to
    three times, and the devices hold it once, in the dtype in which it is read.
    """
    plan = planned(*MESH, *LORA)
    base = on_device(plan["ppo", "update"].here["base"])
    count = parameter_count(plan["ppo", "update"].here["base"])
    assert base < 2.5 * count / 2  # bfloat16, but for norms; half of it is on a device at most
    assert given_again(plan["ppo", "rollout"].arguments) == 0
    for step, times in (("update", 2), ("experience", 3)):
        program = plan["ppo", step]
        assert given_again(program.arguments) == pytest.approx((times - 1) * base, rel=0.01)
        counted: set[int] = set()
        sizes = {name: on_device(tree, counted) for name, tree in program.here.items()}
        assert sizes["base"] == base and sizes["base of the value function"] == 0


def test_a_reward_model_with_another_tokenizer_scores_text(monkeypatch, tmp_path):
    """It is a program of its own, and the experience takes its scores."""
    monkeypatch.chdir(tmp_path)
    config = load_run(SMALL, [*MESH, "--ppo.reward", "other:reward", "--ppo.value_init", "policy"])
    spec = ModelSpec(config.model, TokenizerSource("elsewhere"), config.text)
    (tmp_path / "other/reward").mkdir(parents=True)
    write_spec(Path("other"), "reward", spec, Checkpoint("reward"))
    plan = {program.step: program for program in programs(config, ["ppo"], jax.devices())}
    assert list(plan) == ["rollout", "scores", "experience", "update"]
    assert plan["scores"].arguments[1].shape == (8, 12)
    program = plan["experience"]
    assert program.arguments[3].shape == (16,)
    assert "reward model" in program.elsewhere and "reward model" not in program.here
    assert len(program.operations) == 3  # policy, reference, value function


def test_the_work_is_the_sum_of_its_operations():
    """Of PPO-ptx: the rows of the rollouts and of the texts, and two optimizers."""
    plan = planned(*MESH)
    without, mixed = (work_of(plan[name, "update"]) for name in ("ppo", "ppo_ptx"))
    assert mixed.flops > without.flops and mixed.traffic > without.traffic
    sampled, scored = (work_of(plan["ppo", step]) for step in ("rollout", "experience"))
    assert 0 < sampled.flops < scored.flops < without.flops
