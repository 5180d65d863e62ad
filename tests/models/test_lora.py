"""Adapters: nothing at first, the same merged and unmerged, and all that is trained."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from flax import linen as nn

from instruct_jax import sharding
from instruct_jax.chain.steps import Models, compile_experience, compile_supervised
from instruct_jax.config import LoraConfig, MeshConfig
from instruct_jax.errors import ConfigError
from instruct_jax.models.heads import ScalarModel
from instruct_jax.models.lm import LanguageModel
from instruct_jax.models.lora import join, merged, scalar_base, split
from instruct_jax.records import PromptBatch
from instruct_jax.stages.ppo import PpoConfig
from instruct_jax.stages.pretrain import make_loss
from instruct_jax.stages.rollout import SamplerConfig, make_rollout

LORA = LoraConfig(rank=3, alpha=5.0)
ROWS, SEGMENTS = jnp.array(tiny.tokens((2, 9))), jnp.ones((2, 9), jnp.int32)
LAYOUT = sharding.Layout(sharding.make_mesh(MeshConfig(data=1), jax.devices()[:1]))


def adapted(config, lora=LORA, seed=5):
    """(model, base, adapters that do something)"""
    lm = LanguageModel(config, lora=lora)
    adapters = split(nn.unbox(jax.jit(lm.init)(jax.random.key(seed))))[1]
    noise = lambda x: x + 0.2 * jax.random.normal(jax.random.key(x.size), x.shape)  # noqa: E731
    return lm, tiny.params(config), jax.tree.map(noise, adapters)


def read(lm, params):
    return jax.jit(lambda params: lm.hidden(params, ROWS, SEGMENTS))(params)


@pytest.mark.parametrize("config", tiny.CONFIGS.values(), ids=tiny.CONFIGS)
def test_new_adapters_change_nothing_and_merged_ones_the_same(config):
    lm, base, adapters = adapted(config)
    new = split(nn.unbox(lm.init(jax.random.key(0))))[1]
    plain = read(LanguageModel(config), base)
    np.testing.assert_array_equal(read(lm, base), plain)
    np.testing.assert_array_equal(read(lm, join(base, new)), plain)
    unmerged = read(lm, join(base, adapters))
    assert np.abs(unmerged - plain).max() > 0.1
    one = merged(join(base, adapters), LORA)
    assert jax.tree.structure(one) == jax.tree.structure(base)
    np.testing.assert_allclose(read(LanguageModel(config), one), unmerged, rtol=1e-5, atol=1e-5)


def test_against_a_slow_twin():
    """One projection of one layer, written out: x W + alpha / rank * x A B."""
    lm, base, adapters = adapted(tiny.GPT, dataclasses.replace(LORA, targets=("up",)))
    assert set(adapters["layers"]) == {"up_lora"}
    a, b = (np.asarray(adapters["layers"]["up_lora"][name]) for name in "ab")
    kernel = np.asarray(base["layers"]["up"]["kernel"])
    by_hand = np.stack([kernel[n] + 5.0 / 3 * (a[n] @ b[n]) for n in range(len(kernel))])
    twin = {
        **base,
        "layers": {**base["layers"], "up": {**base["layers"]["up"], "kernel": jnp.array(by_hand)}},
    }
    np.testing.assert_allclose(
        read(lm, join(base, adapters)), read(LanguageModel(tiny.GPT), twin), rtol=1e-5, atol=1e-5
    )


def test_split_and_join():
    lm, base, adapters = adapted(tiny.LLAMA)
    head = nn.unbox(ScalarModel(lm).init_head(jax.random.key(0)))
    whole = {"backbone": join(base, adapters), "head": head}
    frozen, trained = split(whole)
    assert set(trained) == {"backbone", "head"} and set(trained["backbone"]) == {"layers"}
    assert {name for name in trained["backbone"]["layers"]} == {
        f"{name}_lora" for name in LORA.targets
    }
    assert jax.tree.structure(join(frozen, trained)) == jax.tree.structure(whole)
    assert "unembedding" not in scalar_base(base)["backbone"] and scalar_base({}) == {}


def test_the_sampler_draws_from_the_adapted_model():
    lm, base, adapters = adapted(tiny.GPT)
    params = join(base, adapters)
    prompts = PromptBatch(jnp.array(tiny.tokens((3, 5))), jnp.ones((3, 5), bool))  # type: ignore[arg-type]
    run = lambda lm, params: jax.jit(
        make_rollout(lm, SamplerConfig(max_tokens=8, temperature=0.0), eos=2, pad=0)
    )(  # noqa: E731
        params, prompts, jax.random.key(0)
    )
    found, plain = run(lm, params), run(LanguageModel(tiny.GPT), base)
    np.testing.assert_array_equal(
        found.tokens, run(LanguageModel(tiny.GPT), merged(params, LORA)).tokens
    )
    assert (np.asarray(found.tokens) != np.asarray(plain.tokens)).any()


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_only_adapters_are_trained_and_held(dropout):
    lora = dataclasses.replace(LORA, dropout=dropout)
    lm, base, adapters = adapted(tiny.GPT, lora)
    models = Models(LAYOUT, LAYOUT, lm, lm, ScalarModel(lm))
    tx = optax.adam(1e-2)
    boxed = split(jax.eval_shape(lm.init, jax.random.key(0)))[1]
    state = sharding.create_state(LAYOUT, boxed, adapters, tx.init, jax.random.key(0))
    base = jax.device_put(base, LAYOUT.sharding())
    step = compile_supervised(models, make_loss(lm, "sft"), tx, state, base, 1)
    held = sum(x.size for x in jax.tree.leaves((state.params, state.opt_state)))
    assert held < 3.1 * sum(x.size for x in jax.tree.leaves(adapters))
    before = jax.tree.map(np.array, (base, adapters))
    losses = []
    for _ in range(5):
        state, metrics = step(state, base, tiny.token_batch())
        losses.append(float(metrics["sft/nll"]))
    assert losses[-1] < losses[0]
    jax.tree.map(np.testing.assert_array_equal, base, before[0])
    assert all(
        (np.asarray(new) != old).any()
        for new, old in zip(jax.tree.leaves(state.params), jax.tree.leaves(before[1]), strict=True)
    )
    eager = make_loss(lm, "sft")
    twice = [
        float(eager(join(base, adapters), tiny.token_batch(), jax.random.key(i))[0])
        for i in range(2)
    ]
    assert (twice[0] == twice[1]) == (dropout == 0)


def test_reference_value_and_reward_cost_no_copy_of_the_model():
    """What PPO's programs are given: one base, and adapters for each model, by the compiler's own
    count.
    """
    config = dataclasses.replace(tiny.GPT, width=64, heads=4, layers=3)
    lora = LoraConfig(rank=1)
    lm = LanguageModel(config, LAYOUT, lora)
    models = Models(LAYOUT, LAYOUT, lm, lm, ScalarModel(lm))
    ppo = PpoConfig(iterations=1, batch=4, minibatch=4, sampler=SamplerConfig(max_tokens=4))
    policy, scalar = (
        sharding.abstract(jax.eval_shape(model.init, jax.random.key(0)), LAYOUT)
        for model in (lm, ScalarModel(lm))
    )
    base, adapters = split(policy)
    own = split(scalar)[1]
    size = lambda tree: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))  # noqa: E731
    assert size(own) < 0.1 * size(base)
    prompts = PromptBatch(
        jax.ShapeDtypeStruct((4, 5), jnp.int32), jax.ShapeDtypeStruct((4, 5), bool)
    )  # type: ignore[arg-type]
    drawn = jax.eval_shape(
        make_rollout(lm, ppo.sampler, eos=2, pad=0),
        policy,
        prompts,
        jax.eval_shape(lambda: jax.random.key(0)),
    )
    look = compile_experience(models, ppo)
    frozen = {"base": base, "reference": adapters, "reward": own}
    memory = (
        look.lower(
            {"policy": adapters, "value": own}, frozen, drawn, jax.ShapeDtypeStruct((), jnp.float32)
        )
        .compile()
        .memory_analysis()
    )
    assert memory.argument_size_in_bytes < size(base) + 2 * size(adapters) + 2 * size(own) + 10_000
    assert memory.temp_size_in_bytes < 0.5 * size(base)


def test_bad_values_are_refused():
    for keys in (
        {"rank": 0},
        {"alpha": 0.0},
        {"targets": ("query",)},
        {"targets": ()},
        {"dropout": 1.0},
    ):
        with pytest.raises(ConfigError, match="lora"):
            LoraConfig(**keys)
