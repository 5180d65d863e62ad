"""Adapters: nothing at first, the same merged and unmerged, and all that is trained."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from flax import linen as nn

from instruct_jax import sharding
from instruct_jax.config import LoraConfig
from instruct_jax.errors import ConfigError
from instruct_jax.models.heads import ScalarModel
from instruct_jax.models.lm import LanguageModel
from instruct_jax.models.lora import fold_adapters, merge, scalar_base, split_adapters
from instruct_jax.records import PromptBatch
from instruct_jax.stages.experience import ExperienceConfig, make_experience
from instruct_jax.stages.gradient import make_step
from instruct_jax.stages.pretrain import make_loss
from instruct_jax.stages.rollout import SamplerConfig, make_rollout

LORA = LoraConfig(rank=3, alpha=5.0)
ROWS, SEGMENTS = jnp.array(tiny.tokens((2, 9))), jnp.ones((2, 9), jnp.int32)


def adapted(config, lora=LORA, seed=5):
    """(model, base, adapters that do something)"""
    lm = LanguageModel(config, lora=lora)
    adapters = split_adapters(nn.unbox(jax.jit(lm.init)(jax.random.key(seed))))[1]
    noise = lambda x: x + 0.2 * jax.random.normal(jax.random.key(x.size), x.shape)  # noqa: E731
    return lm, tiny.params(config), jax.tree.map(noise, adapters)


def read(lm, params):
    return jax.jit(lambda params: lm.hidden(params, ROWS, SEGMENTS))(params)


@pytest.mark.parametrize("config", tiny.CONFIGS.values(), ids=tiny.CONFIGS)
def test_new_adapters_change_nothing_and_merged_ones_the_same(config):
    lm, base, adapters = adapted(config)
    new = split_adapters(nn.unbox(lm.init(jax.random.key(0))))[1]
    plain = read(LanguageModel(config), base)
    np.testing.assert_array_equal(read(lm, base), plain)
    np.testing.assert_array_equal(read(lm, merge(base, new)), plain)
    unmerged = read(lm, merge(base, adapters))
    assert np.abs(unmerged - plain).max() > 0.1
    one = fold_adapters(merge(base, adapters), LORA)
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
        read(lm, merge(base, adapters)), read(LanguageModel(tiny.GPT), twin), rtol=1e-5, atol=1e-5
    )


def test_split_and_join():
    lm, base, adapters = adapted(tiny.LLAMA)
    head = nn.unbox(ScalarModel(lm).init_head(jax.random.key(0)))
    whole = {"backbone": merge(base, adapters), "head": head}
    frozen, trained = split_adapters(whole)
    assert set(trained) == {"backbone", "head"} and set(trained["backbone"]) == {"layers"}
    assert set(trained["backbone"]["layers"]) == {f"{name}_lora" for name in LORA.targets}
    assert jax.tree.structure(merge(frozen, trained)) == jax.tree.structure(whole)
    assert "unembedding" not in scalar_base(base)["backbone"] and scalar_base({}) == {}


def test_the_sampler_draws_from_the_adapted_model():
    lm, base, adapters = adapted(tiny.GPT)
    params = merge(base, adapters)
    prompts = PromptBatch(jnp.array(tiny.tokens((3, 5))), jnp.ones((3, 5), bool))

    def run(lm, params):
        return jax.jit(
            make_rollout(lm, SamplerConfig(max_tokens=8, temperature=0.0), eos=(2,), pad=0)
        )(params, prompts, jax.random.key(0))

    found, plain = run(lm, params), run(LanguageModel(tiny.GPT), base)
    np.testing.assert_array_equal(
        found.tokens, run(LanguageModel(tiny.GPT), fold_adapters(params, LORA)).tokens
    )
    assert (np.asarray(found.tokens) != np.asarray(plain.tokens)).any()


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_only_adapters_are_trained_and_held(dropout):
    lora = dataclasses.replace(LORA, dropout=dropout)
    lm, base, adapters = adapted(tiny.GPT, lora)
    base_before, adapters_before = jax.tree.map(np.array, (base, adapters))
    loss_fn = make_loss(lm, "sft")
    optimizer = optax.adam(1e-2)
    state = sharding.new_state(adapters, jax.random.key(0), init_optimizer=optimizer.init)

    @jax.jit
    def step(state, base, batch):
        def on_base(params, batch, key):
            return loss_fn(merge(base, params), batch, key)

        return make_step(on_base, optimizer)(state, batch)

    held = sum(x.size for x in jax.tree.leaves((state.params, state.opt_state)))
    assert held < 3.1 * sum(x.size for x in jax.tree.leaves(adapters))
    losses = []
    for _ in range(5):
        state, metrics = step(state, base, tiny.token_batch())
        losses.append(float(metrics["sft/nll"]))
    assert losses[-1] < losses[0]
    jax.tree.map(np.testing.assert_array_equal, base, base_before)
    jax.tree.map(assert_differs, state.params, adapters_before)
    whole = merge(base, adapters)
    twice = [float(loss_fn(whole, tiny.token_batch(), jax.random.key(i))[0]) for i in range(2)]
    assert (twice[0] == twice[1]) == (dropout == 0)


def assert_differs(a, b):
    assert (np.asarray(a) != b).any()


def size_of(tree):
    """Bytes of a tree of arrays or shapes."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def test_reference_value_and_reward_cost_no_copy_of_the_model():
    """PPO's experience takes one base, and adapters for each model, by the compiler's own count."""
    config = dataclasses.replace(tiny.GPT, width=64, heads=4, layers=3)
    lm = LanguageModel(config, lora=LoraConfig(rank=1))
    scalar = ScalarModel(lm)
    key = jax.random.key(0)
    policy, value = (nn.unbox(jax.eval_shape(model.init, key)) for model in (lm, scalar))
    base, adapters = split_adapters(policy)
    own = split_adapters(value)[1]
    assert size_of(own) < 0.1 * size_of(base)
    make = make_experience(lm, scalar, scalar, ExperienceConfig(), temperature=1.0)

    def experience(base, params, reference, reward, rollout):
        scalars = scalar_base(base)
        whole = {
            "policy": merge(base, params["policy"]),
            "value": merge(scalars, params["value"]),
        }
        frozen = {"reference": merge(base, reference), "reward": merge(scalars, reward)}
        return make(whole, frozen, rollout, jnp.asarray(0.1))

    ints, flags = jax.ShapeDtypeStruct((4, 5), jnp.int32), jax.ShapeDtypeStruct((4, 5), bool)
    sample = make_rollout(lm, SamplerConfig(max_tokens=4), eos=(2,), pad=0)
    rollout = jax.eval_shape(sample, policy, PromptBatch(ints, flags), key)  # type: ignore[arg-type]
    params = {"policy": adapters, "value": own}
    lowered = jax.jit(experience).lower(base, params, adapters, own, rollout)
    memory = lowered.compile().memory_analysis()
    given = size_of(base) + 2 * size_of(adapters) + 2 * size_of(own)
    assert memory is not None
    assert memory.argument_size_in_bytes < given + 10_000
    assert memory.temp_size_in_bytes < 0.5 * size_of(base)


def test_bad_values_are_refused():
    refused: list[dict[str, Any]] = [
        {"rank": 0},
        {"alpha": 0.0},
        {"targets": ("query",)},
        {"targets": ()},
        {"dropout": 1.0},
    ]
    for keys in refused:
        with pytest.raises(ConfigError, match="lora"):
            LoraConfig(**keys)
