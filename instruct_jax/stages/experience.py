"""From a rollout to what PPO learns from: log-probs, values, KL-shaped rewards, advantages (paper
3.5).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from instruct_jax.errors import require
from instruct_jax.models.heads import ScalarModel
from instruct_jax.models.lm import LanguageModel
from instruct_jax.ops import masking
from instruct_jax.ops.advantages import gae
from instruct_jax.ops.rewards import missing_eos, shaped_reward
from instruct_jax.records import Array, Experience, Metrics, Params, Rollout
from instruct_jax.stages.gradient import map_rows


@dataclasses.dataclass(frozen=True)
class ExperienceConfig:
    gamma: float = 1.0  # no discount (C.4)
    gae_lambda: float = 0.95  # not stated by the paper; Stiennon et al. 2020
    # replaces the score of a response that did not end; None = the reward model's score stands
    missing_eos_score: float | None = None

    def __post_init__(self):
        require(0 <= self.gamma <= 1, f"gamma={self.gamma} must lie in [0, 1]")
        require(0 <= self.gae_lambda <= 1, f"gae_lambda={self.gae_lambda} must lie in [0, 1]")


class Reading(NamedTuple):
    """What the models say about each response token of a rollout; [B, T] f32 each, 0 where not
    rollout.mask.
    """

    logp: jax.Array  # of the policy, nats
    ref_logp: jax.Array  # of the reference, nats
    entropy: jax.Array  # of the policy, nats
    value: jax.Array  # the critic's estimate before the token


def response_logprobs(
    lm: LanguageModel,
    params: Params,
    rollout: Rollout,
    temperature: float,
) -> tuple[jax.Array, jax.Array]:
    """log p and entropy [B, T] of the response tokens, as the sampler draws them: one forward over
    prompt + response, the head on response positions only.
    """
    tokens, segments = whole_rows(rollout)
    prompt = rollout.prompt.shape[1]
    # token t is predicted from the state before it
    hidden = lm.hidden(params, tokens, segments)
    before = hidden[:, prompt - 1 : -1]
    return lm.logprobs(params, before, rollout.tokens, temperature=temperature, never=lm.never)


def response_values(model: ScalarModel, params: Params, rollout: Rollout) -> jax.Array:
    """The critic's estimate [B, T] before each response token."""
    tokens, segments = whole_rows(rollout)
    prompt = rollout.prompt.shape[1]
    values = model.values(params, tokens, segments)
    return values[:, prompt - 1 : -1]


def whole_rows(rollout: Rollout) -> tuple[jax.Array, jax.Array]:
    """Tokens and segments [B, P + T] of prompt + response; padding on both sides is segment 0."""
    tokens = jnp.concatenate([rollout.prompt, rollout.tokens], axis=1)
    mask = jnp.concatenate([rollout.prompt_mask, rollout.mask], axis=1)
    return tokens, mask.astype(jnp.int32)


def read_rollout(
    policy: LanguageModel,
    value: ScalarModel,
    params: Params,
    reference: Params,
    rollout: Rollout,
    temperature: float,
) -> Reading:
    """What policy, reference and value function say; params = {"policy", "value"}.

    Log-probs of policy and reference come from one and the same function at the sampling
    temperature, so that KL is exactly 0 while the two are equal.
    """
    logp, entropy = response_logprobs(policy, params["policy"], rollout, temperature)
    ref_logp, _ = response_logprobs(policy, reference, rollout, temperature)
    values = response_values(value, params["value"], rollout)
    # padding has log-probs and values too, which mean nothing
    keep = functools.partial(jnp.where, rollout.mask)
    return Reading(
        logp=keep(logp, 0.0),
        ref_logp=keep(ref_logp, 0.0),
        entropy=keep(entropy, 0.0),
        value=keep(values, 0.0),
    )


def make_experience(
    policy: LanguageModel,
    value: ScalarModel,
    reward: ScalarModel,
    config: ExperienceConfig,
    *,
    temperature: float,
    parts: int = 1,
) -> Callable[[Params, Params, Rollout, jax.Array], tuple[Experience, Metrics]]:
    """experience(params, frozen, rollout, kl_coef), params = {"policy", "value"}, frozen =
    {"reference", "reward"}.

    The models read the batch in `parts`, one after the other, which saves memory, and on a CPU
    time.
    """

    def experience(
        params: Params,
        frozen: Params,
        rollout: Rollout,
        kl_coef: jax.Array,
    ) -> tuple[Experience, Metrics]:
        def read(rows: Rollout) -> tuple[Reading, jax.Array]:
            reading = read_rollout(policy, value, params, frozen["reference"], rows, temperature)
            tokens, segments = whole_rows(rows)
            score = reward.score(frozen["reward"], tokens, segments > 0)
            return reading, score

        reading, score = map_rows(read, rollout, parts)
        return experience_of(rollout, reading, score, kl_coef, config)

    return experience


def make_experience_of_scores(
    policy: LanguageModel,
    value: ScalarModel,
    config: ExperienceConfig,
    *,
    temperature: float,
    parts: int = 1,
) -> Callable[[Params, Params, Rollout, jax.Array, jax.Array], tuple[Experience, Metrics]]:
    """experience(params, frozen, rollout, score, kl_coef): as make_experience, with scores f32 [B]
    that somebody else gave, say a reward model with a tokenizer of its own; frozen = {"reference"}.
    """

    def experience(
        params: Params,
        frozen: Params,
        rollout: Rollout,
        score: jax.Array,
        kl_coef: jax.Array,
    ) -> tuple[Experience, Metrics]:
        def read(rows: Rollout) -> Reading:
            return read_rollout(policy, value, params, frozen["reference"], rows, temperature)

        reading = map_rows(read, rollout, parts)
        return experience_of(rollout, reading, score, kl_coef, config)

    return experience


def experience_of(
    rollout: Rollout,
    reading: Reading,
    score: jax.Array,
    kl_coef: jax.Array,
    config: ExperienceConfig,
) -> tuple[Experience, Metrics]:
    """What PPO learns from, and what it watches.  score: f32 [B], one for each whole response.

    `rollout/logp_gap` watches that sampler and policy agree on the log-probs of the samples.
    """
    mask = rollout.mask
    final_score = score
    if config.missing_eos_score is not None:
        final_score = missing_eos(score, rollout.ended, config.missing_eos_score)
    shaped, kl = shaped_reward(final_score, reading.logp, reading.ref_logp, mask, kl_coef)
    by_row = functools.partial(gae, gamma=config.gamma, lam=config.gae_lambda)
    advantage = jax.vmap(by_row)(shaped, reading.value, mask)
    target = jnp.where(mask, advantage + reading.value, 0.0)
    experience = Experience(
        rollout=dataclasses.replace(rollout, logp=reading.logp),
        value=reading.value,
        advantage=masking.whiten(advantage, mask),
        target=target,
    )
    error = jnp.where(mask, target - reading.value, 0.0)
    left = variance(error, mask)
    unexplained = left / jnp.maximum(variance(target, mask), 1e-8)
    logp_gap = jnp.abs(rollout.logp - reading.logp)
    metrics = {
        "ppo/score": score.mean(),
        "ppo/score_std": score.std(),
        "ppo/reward": shaped.sum(axis=1).mean(),
        "ppo/kl": kl.sum(axis=1).mean(),
        "ppo/kl_coef": kl_coef,
        "ppo/entropy": masking.masked_mean(reading.entropy, mask),
        "ppo/value": masking.masked_mean(reading.value, mask),
        "ppo/explained_variance": 1 - unexplained,
        "rollout/logp_gap": masking.masked_mean(logp_gap, mask),
        "rollout/ended": rollout.ended.mean(),
        "rollout/length": mask.sum(axis=1).mean(),
        "rollout/repetition": repetition(rollout.tokens, mask),
    }
    return experience, metrics


def variance(x: Array, mask: Array) -> jax.Array:
    """Biased variance of x over the True entries of mask."""
    mean = masking.masked_mean(x, mask)
    return masking.masked_mean(jnp.square(x - mean), mask)


def repetition(tokens: Array, mask: Array) -> jax.Array:
    """Share of the bigrams of a response [B, T] that occurred before in it."""
    # a hash of each bigram
    first = tokens[:, :-1].astype(jnp.uint32)
    first = first * jnp.uint32(2654435761)
    second = tokens[:, 1:].astype(jnp.uint32)
    pairs = first ^ second
    real = mask[:, :-1] & mask[:, 1:]
    absent = jnp.uint32(0xFFFFFFFF)
    pairs = jnp.where(real, pairs, absent)
    pairs = jnp.sort(pairs, axis=1)
    same = pairs[:, 1:] == pairs[:, :-1]
    again = same & (pairs[:, 1:] != absent)
    return again.sum() / jnp.maximum(real.sum(), 1)
