"""PPO: what must hold before, during and after an update."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from instruct_jax.config import OptimizerConfig
from instruct_jax.models.heads import ScalarModel
from instruct_jax.models.lm import LanguageModel
from instruct_jax.records import TrainState
from instruct_jax.stages import ppo
from instruct_jax.stages.experience import (
    ExperienceConfig,
    make_experience,
    make_experience_of_scores,
    repetition,
    whole_rows,
)
from instruct_jax.stages.gradient import accumulate
from instruct_jax.stages.pretrain import make_loss
from instruct_jax.stages.rollout import SamplerConfig, make_rollout

LM = LanguageModel(tiny.GPT)
SCALAR = ScalarModel(LM)
RATE = OptimizerConfig(learning_rate=3e-3, schedule="constant", clip_norm=None, eps=1e-5)
CONFIG = ppo.PpoConfig(
    iterations=3,
    batch=8,
    minibatch=4,
    epochs=2,
    optimizer=RATE,
    value_optimizer=RATE,
    warmup_iterations=0,
    kl_coef=0.1,
    sampler=SamplerConfig(max_tokens=8, temperature=0.7),
    experience=ExperienceConfig(),
)
compiled = jax.jit(accumulate, static_argnums=(0, 4))  # one program; op by op, each op is one
hidden, values_of = jax.jit(LM.hidden), jax.jit(SCALAR.values)
FROZEN = {"reference": tiny.params(), "reward": tiny.scalar_params()}


@pytest.fixture(scope="module")
def rollout():
    run = jax.jit(make_rollout(LM, CONFIG.sampler, eos=(tiny.EOS,), pad=tiny.PAD))
    return run(tiny.params(), tiny.prompt_batch(), jax.random.key(10))


def experience_of(rollout, policy=None, **change):
    config = dataclasses.replace(CONFIG.experience, **change)
    run = jax.jit(
        make_experience(LM, SCALAR, SCALAR, config, temperature=CONFIG.sampler.temperature)
    )
    params = {"policy": tiny.params() if policy is None else policy, "value": FROZEN["reward"]}
    return run(params, FROZEN, rollout, jnp.asarray(CONFIG.kl_coef))


def start(config):
    optimizers = (
        optax.adam(config.optimizer.learning_rate, eps=1e-5),
        optax.adam(config.value_optimizer.learning_rate, eps=1e-5),
    )
    params = {"policy": tiny.params(), "value": FROZEN["reward"]}
    opt_state = {
        "policy": optimizers[0].init(params["policy"]),
        "value": optimizers[1].init(params["value"]),
    }
    state = TrainState(
        jnp.zeros((), jnp.int32),
        params,
        opt_state,
        params["policy"],
        jax.random.key(0),
        jnp.asarray(config.kl_coef),
    )
    return state, jax.jit(ppo.make_update(LM, SCALAR, config, *optimizers))


def ptx_rows(config):
    rows = [tiny.token_batch(config.ptx_batch, seed=i) for i in range(config.updates)]
    return jax.tree.map(lambda *x: np.stack(x), *rows)


def test_untouched_policy_has_no_kl_and_no_gap(rollout):
    made, metrics = experience_of(rollout)
    assert metrics["ppo/kl"] == 0.0
    assert metrics["rollout/logp_gap"] < 1e-6
    np.testing.assert_allclose(made.rollout.logp, rollout.logp, atol=1e-5)


def test_score_lands_on_the_last_token_and_value_stands_before_each(rollout):
    """Against plain loops over unpadded sequences, one row at a time."""
    moved = tiny.params(seed=7)
    made, metrics = experience_of(rollout, policy=moved, gae_lambda=0.9)
    rewards, advantages, weights = [], [], []
    for row in range(8):
        prompt = np.asarray(rollout.prompt[row])[np.asarray(rollout.prompt_mask[row])]
        answer = np.asarray(rollout.tokens[row])[np.asarray(rollout.mask[row])]
        ids, length = np.concatenate([prompt, answer])[None], len(answer)
        ones = np.ones_like(ids)

        def logp(params, ids=ids, ones=ones, first=prompt.size):
            logits = (hidden(params, ids, ones) @ LM.unembedding(params).T)[
                0
            ] / CONFIG.sampler.temperature
            table = np.asarray(jax.nn.log_softmax(logits))
            return np.array([table[t - 1, ids[0, t]] for t in range(first, ids.shape[1])])

        values = np.asarray(values_of(FROZEN["reward"], ids, ones))[0]
        score = values[-1]
        reward = -CONFIG.kl_coef * (logp(moved) - logp(FROZEN["reference"]))
        reward[-1] += score
        before = values[len(prompt) - 1 : -1]
        advantage, carry = np.zeros(length), 0.0
        for t in reversed(range(length)):
            following = before[t + 1] if t + 1 < length else 0.0
            carry = reward[t] + following - before[t] + 0.9 * carry
            advantage[t] = carry
        np.testing.assert_allclose(np.asarray(made.value[row])[:length], before, atol=1e-5)
        np.testing.assert_allclose(
            np.asarray(made.target[row])[:length], advantage + before, atol=1e-4
        )
        assert (np.asarray(made.value[row])[length:] == 0).all() and (
            np.asarray(made.target[row])[length:] == 0
        ).all()
        rewards.append(reward.sum())
        advantages.append(advantage)
        weights.append(score)
    flat = np.concatenate(advantages)
    white = np.asarray(made.advantage)[np.asarray(rollout.mask)]
    np.testing.assert_allclose(white, (flat - flat.mean()) / np.sqrt(flat.var() + 1e-8), atol=1e-3)
    np.testing.assert_allclose(metrics["ppo/reward"], np.mean(rewards), atol=1e-4)
    np.testing.assert_allclose(metrics["ppo/score"], np.mean(weights), atol=1e-5)


def test_experience_in_parts_is_the_same(rollout):
    run = jax.jit(
        make_experience(
            LM, SCALAR, SCALAR, CONFIG.experience, temperature=CONFIG.sampler.temperature, parts=4
        )
    )
    found = run(
        {"policy": tiny.params(seed=7), "value": FROZEN["reward"]},
        FROZEN,
        rollout,
        jnp.asarray(CONFIG.kl_coef),
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
        found,
        experience_of(rollout, policy=tiny.params(seed=7)),
    )


@pytest.mark.parametrize("parts", [1, 4])
def test_scores_that_are_given_take_the_place_of_the_reward_model(rollout, parts):
    temperature = CONFIG.sampler.temperature
    run = jax.jit(
        make_experience_of_scores(
            LM, SCALAR, CONFIG.experience, temperature=temperature, parts=parts
        )
    )
    tokens, segments = whole_rows(rollout)
    score = SCALAR.score(FROZEN["reward"], tokens, segments > 0)
    params = {"policy": tiny.params(seed=7), "value": FROZEN["reward"]}
    reference = {"reference": FROZEN["reference"]}
    given = run(params, reference, rollout, score, jnp.asarray(CONFIG.kl_coef))
    usual = experience_of(rollout, policy=params["policy"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), given, usual)
    _, other = run(params, reference, rollout, score + 1, jnp.asarray(CONFIG.kl_coef))
    np.testing.assert_allclose(other["ppo/reward"], usual[1]["ppo/reward"] + 1, atol=1e-5)


def test_nothing_beyond_eos_changes_any_loss(rollout):
    made, _ = experience_of(rollout)
    garbage = jnp.where(rollout.mask, made.rollout.tokens, 17)
    spoiled = made.replace(
        rollout=made.rollout.replace(
            tokens=garbage, logp=jnp.where(rollout.mask, made.rollout.logp, 99.0)
        ),
        value=jnp.where(rollout.mask, made.value, 99.0),
        advantage=jnp.where(rollout.mask, made.advantage, 99.0),
        target=jnp.where(rollout.mask, made.target, 99.0),
    )
    weight = rollout.mask / rollout.mask.sum()
    for loss_fn, params in zip(
        ppo.make_losses(LM, SCALAR, CONFIG), (tiny.params(), FROZEN["reward"]), strict=True
    ):
        a, b = (
            compiled(loss_fn, params, (x, weight), jax.random.key(0), 1) for x in (made, spoiled)
        )
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), a, b)


def test_first_pass_has_ratio_one_and_later_passes_clip(rollout):
    made, _ = experience_of(rollout)
    still = dataclasses.replace(
        CONFIG, optimizer=dataclasses.replace(RATE, learning_rate=0.0), epochs=1
    )
    state, update = start(still)
    _, metrics = update(state, made, None)
    np.testing.assert_allclose(metrics["policy/ratio"], 1.0, atol=1e-6)
    assert metrics["policy/clip_fraction"] == 0.0
    fast = dataclasses.replace(CONFIG, optimizer=dataclasses.replace(RATE, learning_rate=0.05))
    state, update = start(fast)
    _, metrics = update(state, made, None)
    assert metrics["policy/clip_fraction"] > 0.05


def test_micro_batches_equal_one_batch(rollout):
    made, _ = experience_of(rollout)
    config = dataclasses.replace(CONFIG, ptx_coef=0.5, ptx_batch=4)
    results = []
    for parts in (1, 2, 4):
        state, update = start(dataclasses.replace(config, micro_batches=parts))
        results.append(update(state, made, ptx_rows(config)))
    for other in results[1:]:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5),
            results[0][0].params,
            other[0].params,
        )
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4),
            results[0][1],
            other[1],
        )


def test_ptx_adds_its_gradient_to_the_same_step(rollout):
    """One update with plain SGD moves the policy by -(grad PPO + gamma * grad NLL)."""
    made, _ = experience_of(rollout)
    config = dataclasses.replace(CONFIG, minibatch=8, epochs=1, ptx_coef=0.5, ptx_batch=4)
    sgd = optax.sgd(1.0)
    params = {"policy": tiny.params(), "value": FROZEN["reward"]}
    opt_state = {"policy": sgd.init(params["policy"]), "value": sgd.init(params["value"])}
    state = TrainState(
        jnp.zeros((), jnp.int32),
        params,
        opt_state,
        params["policy"],
        jax.random.key(0),
        jnp.asarray(0.1),
    )
    after, metrics = jax.jit(ppo.make_update(LM, SCALAR, config, sgd, sgd))(
        state, made, ptx_rows(config)
    )
    weight = rollout.mask / rollout.mask.sum()
    rl, _ = compiled(
        ppo.make_losses(LM, SCALAR, config)[0], tiny.params(), (made, weight), jax.random.key(0), 1
    )
    rows = jax.tree.map(lambda x: x[0], ptx_rows(config))
    ptx, ptx_metrics = compiled(make_loss(LM, "ptx"), tiny.params(), rows, jax.random.key(0), 1)
    expected = jax.tree.map(lambda p, a, b: p - (a + 0.5 * b), tiny.params(), rl, ptx)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), after.params["policy"], expected
    )
    np.testing.assert_allclose(metrics["policy/grad_norm"], optax.tree.norm(rl), rtol=1e-4)
    np.testing.assert_allclose(metrics["ptx/grad_norm"], 0.5 * optax.tree.norm(ptx), rtol=1e-4)
    np.testing.assert_allclose(metrics["ptx/nll"], ptx_metrics["ptx/nll"], rtol=1e-4)


def test_with_rate_zero_kl_gap_and_parameters_stay_flat_for_a_whole_run():
    state, update = start(
        dataclasses.replace(CONFIG, optimizer=dataclasses.replace(RATE, learning_rate=0.0))
    )
    sample = jax.jit(make_rollout(LM, CONFIG.sampler, eos=(tiny.EOS,), pad=tiny.PAD))
    seen = set()
    for _ in range(CONFIG.iterations):
        drawn = sample(
            state.params["policy"], tiny.prompt_batch(), ppo.iteration_keys(state)["rollout"]
        )
        seen.add(np.asarray(drawn.tokens).tobytes())
        made, metrics = experience_of(drawn, policy=state.params["policy"])
        assert metrics["ppo/kl"] == 0.0 and metrics["rollout/logp_gap"] < 1e-6
        state, _ = update(state, made, None)
        jax.tree.map(np.testing.assert_array_equal, state.params["policy"], tiny.params())
    assert len(seen) == CONFIG.iterations, "every iteration draws anew"


def test_ema_and_step_and_critic_warmup(rollout):
    made, _ = experience_of(rollout)
    state, update = start(dataclasses.replace(CONFIG, critic_warmup=1, ema_decay=0.9))
    first, _ = update(state, made, None)
    jax.tree.map(np.testing.assert_array_equal, first.params["policy"], state.params["policy"])
    assert (
        first.params["value"]["head"]["kernel"] != state.params["value"]["head"]["kernel"]
    ).any()
    second, _ = update(first, made, None)
    assert second.step == 2
    expected = jax.tree.map(lambda e, p: 0.9 * e + 0.1 * p, first.ema, second.params["policy"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), second.ema, expected)
    assert (second.params["policy"]["embedding"] != first.params["policy"]["embedding"]).any()


def test_each_minibatch_row_is_used_once_per_epoch(rollout):
    """With rate 0 the metrics of one epoch are means over all rows, whatever the order."""
    made, _ = experience_of(rollout, policy=tiny.params(seed=7))
    still = dataclasses.replace(
        CONFIG, optimizer=dataclasses.replace(RATE, learning_rate=0.0), epochs=1, minibatch=8
    )
    state, update = start(still)
    weight = rollout.mask / rollout.mask.sum()
    loss, _ = ppo.make_losses(LM, SCALAR, still)[0](
        tiny.params(), (made, weight), jax.random.key(0)
    )
    _, metrics = update(state, made, None)
    np.testing.assert_allclose(metrics["policy/loss"], loss, rtol=1e-4, atol=1e-6)


def test_missing_eos_score_replaces_the_score_of_unfinished_rows(rollout):
    ended = np.asarray(rollout.ended)
    assert ended.any() and not ended.all(), "the test needs both kinds"
    _, plain = experience_of(rollout)
    _, fined = experience_of(rollout, missing_eos_score=-50.0)
    tokens, segments = whole_rows(rollout)
    score = np.asarray(SCALAR.score(FROZEN["reward"], tokens, segments > 0))
    np.testing.assert_allclose(
        fined["ppo/reward"] - plain["ppo/reward"], ((-50 - score) * ~ended).mean(), rtol=1e-4
    )


def test_adaptive_kl_moves_towards_the_target():
    config = dataclasses.replace(CONFIG, kl_target=1.0, kl_horizon=80.0)
    state, _ = start(config)
    assert ppo.adapt(state, jnp.asarray(5.0), config).kl_coef > state.kl_coef
    assert ppo.adapt(state, jnp.asarray(0.1), config).kl_coef < state.kl_coef
    assert ppo.adapt(state, jnp.asarray(5.0), CONFIG) is state


def test_repetition_counts_bigrams_seen_before():
    rows = jnp.array([[5, 6, 5, 6, 5, 0], [1, 2, 3, 4, 0, 0]])
    mask = jnp.array([[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 0, 0]], bool)
    np.testing.assert_allclose(repetition(rows, mask), 2 / 7)  # 56 65 56* 65* | 12 23 34


@pytest.mark.parametrize(
    "change, word",
    [
        ({"minibatch": 3}, "minibatch=3"),
        ({"micro_batches": 3}, "micro_batches=3"),
        ({"sampler": SamplerConfig(top_k=5)}, "top_k=5"),
        ({"sampler": SamplerConfig(top_p=0.9)}, "top_p=0.9"),
        ({"sampler": SamplerConfig(temperature=0)}, "temperature=0"),
        ({"ptx_coef": 1.0}, "ptx_coef=1.0"),
        ({"ema_decay": 1.0}, "ema_decay=1.0"),
    ],
)
def test_impossible_settings_are_refused(change, word):
    with pytest.raises(ValueError, match=word):
        dataclasses.replace(CONFIG, **change)
