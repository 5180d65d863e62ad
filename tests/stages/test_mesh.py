"""One device == eight devices, for every stage and every shape of the mesh; state is born sharded
and keeps its type.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.sharding import PartitionSpec

from instruct_jax import optim, sharding
from instruct_jax.config import MeshConfig, ModelConfig, OptimizerConfig
from instruct_jax.models.heads import ScalarModel
from instruct_jax.models.lm import LanguageModel
from instruct_jax.stages import dpo, ppo, pretrain, reward_model
from instruct_jax.stages.experience import make_experience
from instruct_jax.stages.gradient import make_step
from instruct_jax.stages.rollout import SamplerConfig, make_rollout

MODEL = ModelConfig(
    vocab_size=32, context=24, width=32, layers=2, heads=8, init_std=0.2, logprob_chunk=16
)
RATE = OptimizerConfig(learning_rate=1e-2, schedule="constant", eps=1e-3, clip_norm=1.0)
MESHES = {
    "data 8": (8, 1, 1, 1),
    "fsdp 8": (1, 8, 1, 1),
    "tensor 8": (1, 1, 8, 1),
    "context 8": (1, 1, 1, 8),
    "2 2 2": (2, 2, 2, 1),
    "1 2 2 2": (1, 2, 2, 2),
    "2 1 2 2": (2, 1, 2, 2),
}
PPO = ppo.PpoConfig(
    iterations=2,
    batch=16,
    minibatch=8,
    optimizer=RATE,
    value_optimizer=RATE,
    warmup_iterations=0,
    kl_coef=0.1,
    ptx_coef=0.5,
    ptx_batch=8,
    sampler=SamplerConfig(max_tokens=6),
)


# 30 words in 32 rows, which eight devices can split
UNEVEN = dataclasses.replace(MODEL, vocab_size=30, vocab_multiple=8)


def models(shape, model=MODEL):
    """(training layout, language model, the same for sampling, scalar model)"""
    config = MeshConfig(*shape)
    layout, sampling = sharding.layouts(config, sharding.make_mesh(config))
    lm = LanguageModel(model, layout)
    return layout, lm, LanguageModel(model, sampling), ScalarModel(lm)


def supervised(shape, name):
    """Two steps of a supervised stage; (params on the host, metrics of each step)."""
    layout, lm, _sampler, scalar = models(shape)
    init, loss_fn, batch = {
        "sft": (lm.init, pretrain.make_loss(lm, "sft"), tiny.token_batch),
        "reward": (scalar.init, reward_model.make_loss(scalar), tiny.ranking_batch),
        "dpo": (lm.init, dpo.make_loss(lm, 0.1), tiny.dpo_batch),
    }[name]
    key = jax.random.key(0)
    tx = optim.make_optimizer(RATE, 10)
    state = sharding.create_state(
        layout, jax.eval_shape(init, key), sharding.create_sharded(init, layout, key), tx.init, key
    )
    step = sharding.compile_step(make_step(loss_fn, tx, micro_batches=1), layout, state)
    state, first = step(state, batch(rows=16))
    state, second = step(state, batch(rows=16, seed=1))
    return jax.device_get(state.params), jax.device_get([first, second])


def reinforced(shape, name):
    """One iteration of PPO-ptx: rollout, experience, update."""
    layout, lm, sampler, scalar = models(shape)
    key = jax.random.key(0)
    boxed = {"policy": jax.eval_shape(lm.init, key), "value": jax.eval_shape(scalar.init, key)}
    params = {
        "policy": sharding.create_sharded(lm.init, layout, jax.random.key(1)),
        "value": sharding.create_sharded(scalar.init, layout, jax.random.key(2)),
    }
    tx = optim.make_optimizer(RATE, 10)
    state = sharding.create_state(
        layout,
        boxed,
        params,
        lambda p: {"policy": tx.init(p["policy"]), "value": tx.init(p["value"])},
        key,
        averaged=lambda p: p["policy"],
        kl_coef=PPO.kl_coef,
    )
    frozen = {
        "reference": sharding.create_sharded(lm.init, layout, jax.random.key(3)),
        "reward": params["value"],
    }
    batch, wide = layout.sharding("batch"), layout.sharding(None, "batch")
    prompts = jax.device_put(tiny.prompt_batch(rows=16), batch)
    rows = jax.tree.map(
        lambda *x: np.stack(x), *[tiny.token_batch(rows=8, seed=i) for i in range(PPO.updates)]
    )
    assert sampler.layout is not None
    weights = sharding.reshard(params["policy"], boxed["policy"], sampler.layout)
    rollout = jax.jit(
        make_rollout(sampler, PPO.sampler, eos=(tiny.EOS,), pad=tiny.PAD), out_shardings=batch
    )(weights, prompts, key)
    judge = make_experience(lm, scalar, scalar, PPO.experience, temperature=1.0)
    made, metrics = jax.jit(judge, out_shardings=(batch, layout.sharding()))(
        state.params, frozen, rollout, state.kl_coef
    )
    update = sharding.compile_step(
        ppo.make_update(lm, scalar, PPO, tx, tx), layout, state, batch, wide
    )
    before = jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), state)
    state, more = update(state, made, rows)
    assert jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), state) == before
    return jax.device_get(state.params), [
        jax.device_get(metrics | more),
        {"tokens": np.asarray(rollout.tokens)},
    ]


STAGES = {"sft": supervised, "reward": supervised, "dpo": supervised, "ppo": reinforced}


@functools.cache
def on_one_device(name):
    return STAGES[name]((1, 1, 1, 1), name)


# DPO runs the language model that SFT runs
ON_MESHES = [(name, mesh) for name in STAGES for mesh in MESHES if name != "dpo" or mesh[0] in "12"]


@pytest.mark.parametrize("name, mesh", ON_MESHES)
def test_eight_devices_equal_one(name, mesh):
    params, metrics = STAGES[name](MESHES[mesh], name)
    expected_params, expected_metrics = on_one_device(name)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        metrics,
        expected_metrics,
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5), params, expected_params
    )


def test_a_vocabulary_that_is_padded_on_a_mesh():
    """Log-probs, gradients and samples are those of one device; no token beyond the vocabulary is
    ever drawn.
    """

    def run(shape):
        layout, lm, sampler, _ = models(shape, UNEVEN)
        params = sharding.create_sharded(lm.init, layout, jax.random.key(0))
        batch = tiny.token_batch(rows=16)
        batch = jax.device_put(
            dataclasses.replace(batch, tokens=batch.tokens % 30), layout.sharding("batch")
        )
        loss = jax.jit(
            jax.value_and_grad(
                lambda p: pretrain.make_loss(lm, "sft")(p, batch, jax.random.key(0))[0]
            )
        )(params)
        assert sampler.layout is not None
        weights = sharding.reshard(
            params, jax.eval_shape(lm.init, jax.random.key(0)), sampler.layout
        )
        prompts = jax.device_put(tiny.prompt_batch(rows=16), layout.sharding("batch"))
        prompts = dataclasses.replace(prompts, tokens=prompts.tokens % 30)
        rollout = jax.jit(
            make_rollout(sampler, SamplerConfig(max_tokens=12), eos=(tiny.EOS,), pad=tiny.PAD)
        )(weights, prompts, jax.random.key(1))
        return jax.device_get((loss, rollout.tokens, rollout.logp))

    (loss, tokens, logp), (one_loss, one_tokens, one_logp) = run((1, 1, 8, 1)), run((1, 1, 1, 1))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        (loss, logp),
        (one_loss, one_logp),
    )
    np.testing.assert_array_equal(tokens, one_tokens)
    assert tokens.max() < 30


def test_parameters_and_optimizer_are_born_sharded():
    layout, lm, _, _ = models((2, 2, 2, 1))
    key = jax.random.key(0)
    tx = optim.make_optimizer(RATE, 10)
    state = sharding.create_state(
        layout,
        jax.eval_shape(lm.init, key),
        sharding.create_sharded(lm.init, layout, key),
        tx.init,
        key,
    )
    up = state.params["layers"]["up"]["kernel"]
    assert (
        up.sharding.spec == PartitionSpec(None, "fsdp", "tensor")
        and up.addressable_shards[0].data.size == up.size // 4
    )
    moments = [x for x in jax.tree.leaves(state.opt_state) if x.shape == up.shape]
    assert len(moments) == 2 and all(m.sharding == up.sharding for m in moments)


def test_a_mesh_that_does_not_divide_the_model_is_refused_with_the_reason():
    layout = sharding.Layout(sharding.make_mesh(MeshConfig(1, 1, 8)))
    lm = LanguageModel(dataclasses.replace(MODEL, heads=4), layout)
    with pytest.raises(ValueError, match=r"tensor.*8.*does not divide.*'k'.*kv_heads"):
        sharding.create_sharded(lm.init, layout, jax.random.key(0))


@pytest.mark.parametrize(
    "sizes, message",
    [
        ((16, 1, 1), "needs 16 devices"),
        ((3, -1, 1), "not a multiple of 3"),
        ((-1, -1, 1), "only one"),
    ],
)
def test_impossible_meshes_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        sharding.make_mesh(MeshConfig(*sizes))


def test_a_step_compiles_once():
    layout, lm, _, _ = models((1, 1, 1, 1))
    key = jax.random.key(0)
    tx = optim.make_optimizer(RATE, 10)
    state = sharding.create_state(
        layout,
        jax.eval_shape(lm.init, key),
        sharding.create_sharded(lm.init, layout, key),
        tx.init,
        key,
    )
    step: Any = sharding.compile_step(make_step(pretrain.make_loss(lm, "sft"), tx), layout, state)
    for i in range(3):
        state, _ = step(state, tiny.token_batch(rows=16, seed=i))
    assert step._cache_size() == 1 and int(state.step) == 3


def test_ahead_of_time_compiles_every_shape_before_the_first_step():
    layout, lm, _, _ = models((1, 1, 1, 1))
    key = jax.random.key(0)
    tx = optim.make_optimizer(RATE, 10)
    state = sharding.create_state(
        layout,
        jax.eval_shape(lm.init, key),
        sharding.create_sharded(lm.init, layout, key),
        tx.init,
        key,
    )
    plain = make_step(pretrain.make_loss(lm, "sft"), tx)
    step = sharding.compile_step(
        lambda state, base, batch: plain(state, batch), layout, state, {}, layout.sharding("batch")
    )
    ready = sharding.ahead_of_time(
        step, state, {}, [tiny.token_batch(length=n) for n in (8, 12, 8)]
    )
    state, _ = ready(state, tiny.token_batch(length=12))
    state, _ = ready(state, tiny.token_batch(length=8, seed=1))
    assert int(state.step) == 2
    with pytest.raises(KeyError):
        ready(state, tiny.token_batch(length=10))
    assert jnp.isfinite(state.params["embedding"]).all()
