"""From a rollout to what PPO learns from: log-probs, values, KL-shaped rewards, advantages (paper
3.5).
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from instruct_jax.errors import require
from instruct_jax.models.heads import ScalarModel
from instruct_jax.models.lm import LanguageModel
from instruct_jax.ops import masking
from instruct_jax.ops.advantages import gae
from instruct_jax.ops.rewards import missing_eos, shaped_reward
from instruct_jax.records import Experience, Metrics, Params, Rollout
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


def response_logprobs(
    lm: LanguageModel, params: Params, rollout: Rollout, temperature: float
) -> tuple[jax.Array, jax.Array]:
    """log p and entropy [B, T] of the response tokens: one forward over prompt + response, the head
    on response positions only.
    """
    tokens, segments = join(rollout)
    prompt = rollout.prompt.shape[1]
    # token t is predicted from the state before it
    hidden = lm.hidden(params, tokens, segments)[:, prompt - 1 : -1]
    return lm.logprobs(params, hidden, rollout.tokens, temperature=temperature)


def response_values(model: ScalarModel, params: Params, rollout: Rollout) -> jax.Array:
    """The critic's estimate [B, T] before each response token."""
    prompt = rollout.prompt.shape[1]
    return model.values(params, *join(rollout))[:, prompt - 1 : -1]


def join(rollout: Rollout) -> tuple[jax.Array, jax.Array]:
    """Tokens and segments [B, P + T] of prompt + response; padding on both sides is segment 0."""
    tokens = jnp.concatenate([rollout.prompt, rollout.tokens], axis=1)
    return tokens, jnp.concatenate([rollout.prompt_mask, rollout.mask], axis=1).astype(jnp.int32)


def make_experience(
    policy: LanguageModel,
    value: ScalarModel,
    reward: ScalarModel | None,
    config: ExperienceConfig,
    *,
    temperature: float,
    parts: int = 1,
) -> Callable[..., tuple[Experience, Metrics]]:
    """experience(params, frozen, rollout, kl_coef), params = {"policy", "value"}, frozen =
    {"reference", "reward"}.

    Log-probs of policy and reference come from one and the same function at the sampling
    temperature, so that KL is exactly 0 while the two are equal; `rollout/logp_gap` watches that
    the sampler agrees.  The models read the batch in `parts`, one after the other, which saves
    memory, and on a CPU time.  Without a reward model the scores [B] f32 are given as a fifth
    argument.
    """

    def experience(
        params: Params,
        frozen: Params,
        rollout: Rollout,
        kl_coef: jax.Array,
        given: jax.Array | None = None,
    ) -> tuple[Experience, Metrics]:
        mask = rollout.mask
        keep = lambda x: jnp.where(mask, x, 0.0)  # noqa: E731

        def read(part: tuple[Rollout, jax.Array | None]):
            rows, score = part
            logp, entropy = response_logprobs(policy, params["policy"], rows, temperature)
            ref_logp, _ = response_logprobs(policy, frozen["reference"], rows, temperature)
            tokens, segments = join(rows)
            if score is None:
                assert reward is not None
                score = reward.score(frozen["reward"], tokens, segments > 0)
            return (logp, entropy, ref_logp, response_values(value, params["value"], rows)), score

        by_token, raw_score = map_rows(read, (rollout, given), parts)
        logp, entropy, ref_logp, values = map(keep, by_token)
        score = (
            raw_score
            if config.missing_eos_score is None
            else missing_eos(raw_score, rollout.ended, config.missing_eos_score)
        )

        shaped, kl = shaped_reward(score, logp, ref_logp, mask, kl_coef)
        advantage = jax.vmap(
            lambda r, v, m: gae(r, v, m, gamma=config.gamma, lam=config.gae_lambda)
        )(shaped, values, mask)
        target = keep(advantage + values)
        made = Experience(
            rollout=dataclasses.replace(rollout, logp=logp),
            value=values,
            advantage=masking.whiten(advantage, mask),
            target=target,
        )
        lengths = mask.sum(axis=1)
        error = jnp.where(mask, target - values, 0.0)
        metrics = {
            "ppo/score": raw_score.mean(),
            "ppo/score_std": raw_score.std(),
            "ppo/reward": shaped.sum(axis=1).mean(),
            "ppo/kl": kl.sum(axis=1).mean(),
            "ppo/kl_coef": kl_coef,
            "ppo/entropy": masking.masked_mean(entropy, mask),
            "ppo/value": masking.masked_mean(values, mask),
            "ppo/explained_variance": (
                1 - variance(error, mask) / jnp.maximum(variance(target, mask), 1e-8)
            ),
            "rollout/logp_gap": masking.masked_mean(jnp.abs(rollout.logp - logp), mask),
            "rollout/ended": rollout.ended.mean(),
            "rollout/length": lengths.mean(),
            "rollout/repetition": repetition(rollout.tokens, mask),
        }
        return made, metrics

    return experience


def variance(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Biased variance of x over the True entries of mask."""
    mean = masking.masked_mean(x, mask)
    return masking.masked_mean(jnp.square(x - mean), mask)


def repetition(tokens: jax.Array, mask: jax.Array) -> jax.Array:
    """Share of the bigrams of a response [B, T] that occurred before in it."""
    # a hash of each bigram
    pairs = (tokens[:, :-1].astype(jnp.uint32) * jnp.uint32(2654435761)) ^ tokens[:, 1:].astype(
        jnp.uint32
    )
    real = mask[:, :-1] & mask[:, 1:]
    pairs = jnp.sort(jnp.where(real, pairs, jnp.uint32(0xFFFFFFFF)), axis=1)
    again = (pairs[:, 1:] == pairs[:, :-1]) & (pairs[:, 1:] != jnp.uint32(0xFFFFFFFF))
    return again.sum() / jnp.maximum(real.sum(), 1)
