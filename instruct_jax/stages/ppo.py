"""PPO and PPO-ptx against a reward model with a KL penalty (paper 3.5, C.4): rollout, experience
and update are three jitted functions.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import optax

from instruct_jax.config import OptimizerConfig
from instruct_jax.errors import require
from instruct_jax.models.heads import ScalarModel
from instruct_jax.models.lm import LanguageModel
from instruct_jax.models.lora import merge
from instruct_jax.ops.kl_control import adaptive_kl
from instruct_jax.ops.losses import policy_loss, value_loss
from instruct_jax.optim import update_ema
from instruct_jax.records import Experience, Metrics, Params, TokenBatch, TrainState
from instruct_jax.stages.experience import ExperienceConfig, response_logprobs, response_values
from instruct_jax.stages.gradient import accumulate
from instruct_jax.stages.pretrain import make_loss as make_lm_loss
from instruct_jax.stages.rollout import SamplerConfig


@dataclasses.dataclass(frozen=True)
class PpoConfig:
    """Defaults are the paper's (C.4) where it speaks."""

    iterations: int = 500  # 256k episodes
    batch: int = 512  # prompts per iteration, all hosts together
    minibatch: int = 64  # sequences per update, all hosts together
    epochs: int = 1  # passes over each rollout
    micro_batches: int = 1  # parts of each minibatch
    # policy
    optimizer: OptimizerConfig = OptimizerConfig(
        learning_rate=1e-5, schedule="constant", clip_norm=None
    )
    value_optimizer: OptimizerConfig = OptimizerConfig(
        learning_rate=9e-6, schedule="constant", clip_norm=None
    )
    warmup_iterations: int = 10  # of the policy's rate, from a tenth of the peak
    critic_warmup: int = 0  # first iterations in which only the value function learns
    clip: float = 0.2
    value_clip: float | None = 0.2  # Stiennon et al. 2020
    kl_coef: float = 0.02  # beta
    # nats per sequence: adapts beta (Ziegler et al. 2019); None = beta stays fixed
    kl_target: float | None = None
    kl_horizon: float = 10_000.0  # episodes
    kl_budget: float | None = None  # nats per sequence at which the run stops
    entropy_bonus: float = 0.0
    # gamma, times the mean loss per pretraining token; 0 = PPO, > 0 = PPO-ptx
    ptx_coef: float = 0.0
    ptx_batch: int = 0  # pretraining rows per update
    ptx_length: int = 128  # tokens per row
    ema_decay: float = 0.992  # per iteration
    value_init: Literal["reward", "policy", "fresh"] = "reward"
    sampler: SamplerConfig = SamplerConfig()
    experience: ExperienceConfig = ExperienceConfig()
    save_every: int = 50  # iterations between checkpoints
    # iterations: these checkpoints stay, and `evaluate` draws score over KL through them
    keep_every: int | None = None

    def __post_init__(self):
        for key in ("iterations", "batch", "epochs", "ptx_length", "save_every"):
            value = getattr(self, key)
            require(value >= 1, f"{key}={value} must be at least 1")
        for key in ("warmup_iterations", "critic_warmup", "kl_coef"):
            value = getattr(self, key)
            require(value >= 0, f"{key}={value} must not be negative")
        for key in ("clip", "value_clip", "kl_target", "kl_horizon", "kl_budget"):
            value = getattr(self, key)
            require(value is None or value > 0, f"{key}={value} must be positive")
        require(
            self.minibatch >= 1 and self.batch % self.minibatch == 0,
            f"batch={self.batch} must be a multiple of minibatch={self.minibatch}",
        )
        require(
            self.micro_batches >= 1 and self.minibatch % self.micro_batches == 0,
            f"micro_batches={self.micro_batches} must divide minibatch={self.minibatch}",
        )
        require(
            not self.sampler.truncates,
            f"sampler has temperature={self.sampler.temperature}, top_k={self.sampler.top_k},"
            f" top_p={self.sampler.top_p}: PPO needs samples from the policy's whole distribution,"
            " or ratios and KL are wrong; use temperature > 0, top_k=0, top_p=1",
        )
        require(
            (self.ptx_coef > 0) == (self.ptx_batch > 0),
            f"ptx_coef={self.ptx_coef} and ptx_batch={self.ptx_batch} must both be 0 (PPO)"
            " or both positive (PPO-ptx)",
        )
        require(
            self.ptx_batch % self.micro_batches == 0,
            f"micro_batches={self.micro_batches} must divide ptx_batch={self.ptx_batch}",
        )
        if self.keep_every is not None:
            require(
                self.keep_every >= 1 and self.keep_every % self.save_every == 0,
                f"keep_every={self.keep_every} must be a multiple of"
                f" save_every={self.save_every}: only what is saved can be kept",
            )
        require(0 <= self.ema_decay < 1, f"ema_decay={self.ema_decay} must lie in [0, 1)")

    @property
    def updates(self) -> int:
        """Optimizer steps per iteration."""
        return self.epochs * self.batch // self.minibatch

    @property
    def policy_optimizer(self) -> OptimizerConfig:
        """The policy's optimizer with its warm-up counted in optimizer steps."""
        return dataclasses.replace(
            self.optimizer, warmup_steps=self.warmup_iterations * self.updates, warmup_from=0.1
        )


def iteration_keys(state: TrainState) -> dict[str, jax.Array]:
    """The keys of one iteration; each is consumed once, `rollout` by the sampler, the others by the
    update.
    """
    names = ("rollout", "shuffle", "learn")
    key = jax.random.fold_in(state.key, state.step)
    keys = jax.random.split(key, len(names))
    return dict(zip(names, keys, strict=True))


def make_losses(
    policy: LanguageModel,
    value: ScalarModel,
    config: PpoConfig,
    bases: Params | None = None,
):
    """(policy loss, value loss) over (experience, weight [B, T]), as weighted sums.

    bases: {"policy", "value"}, the frozen parameters that the trained ones lie on, if they do.
    """
    policy_base = bases["policy"] if bases else None
    value_base = bases["value"] if bases else None

    def policy_fn(
        params: Params,
        batch: tuple[Experience, jax.Array],
        key: jax.Array,
    ) -> tuple[jax.Array, Metrics]:
        made, weight = batch
        rollout = made.rollout
        whole = merge(policy_base, params)
        logp, entropy = response_logprobs(policy, whole, rollout, config.sampler.temperature)
        loss, metrics = policy_loss(logp, rollout.logp, made.advantage, weight, clip=config.clip)
        mean_entropy = (entropy * weight).sum()
        return loss - config.entropy_bonus * mean_entropy, metrics

    def value_fn(
        params: Params,
        batch: tuple[Experience, jax.Array],
        key: jax.Array,
    ) -> tuple[jax.Array, Metrics]:
        made, weight = batch
        whole = merge(value_base, params)
        values = response_values(value, whole, made.rollout)
        return value_loss(values, made.value, made.target, weight, clip=config.value_clip)

    return policy_fn, value_fn


def make_update(
    policy: LanguageModel,
    value: ScalarModel,
    config: PpoConfig,
    policy_optimizer: optax.GradientTransformation,
    value_optimizer: optax.GradientTransformation,
    *,
    bases: Params | None = None,
) -> Callable[[TrainState, Experience, TokenBatch | None], tuple[TrainState, Metrics]]:
    """update(state, experience, ptx): `epochs` passes over the experience in random minibatches,
    one optimizer step each.

    ptx: pretraining rows [updates, ptx_batch, ptx_length], weights summing to 1 in each update;
    None without PPO-ptx.  Both gradients are accumulated into one step: grad = grad_PPO + ptx_coef
    * grad_NLL, where NLL is a mean per token.

    bases: {"policy", "value"}, the frozen parameters that those of the state lie on; None where all
    are trained.
    """
    policy_fn, value_fn = make_losses(policy, value, config, bases)
    base = bases["policy"] if bases else None
    lm_fn = make_lm_loss(policy, "ptx")

    def ptx_fn(params: Params, batch: TokenBatch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        whole = merge(base, params)
        return lm_fn(whole, batch, key)

    rows = config.batch // config.minibatch

    def policy_gradient(params, minibatch, ptx, key):
        grads, metrics = accumulate(policy_fn, params, minibatch, key, config.micro_batches)
        metrics |= {"policy/grad_norm": optax.tree.norm(grads)}
        if ptx is None:
            return grads, metrics
        ptx_grads, ptx_metrics = accumulate(ptx_fn, params, ptx, key, config.micro_batches)
        grads = jax.tree.map(lambda g, p: g + config.ptx_coef * p, grads, ptx_grads)
        ptx_norm = optax.tree.norm(ptx_grads)
        metrics |= {
            "ptx/nll": ptx_metrics["ptx/nll"],
            "ptx/grad_norm": config.ptx_coef * ptx_norm,
        }
        return grads, metrics

    def learn(carry, part):
        params, opt_state, active, key = carry
        index, made, ptx = part
        key_step = jax.random.fold_in(key, index)
        mask = made.rollout.mask
        weight = mask / jnp.maximum(mask.sum(), 1)
        minibatch = made, weight
        grads, metrics = policy_gradient(params["policy"], minibatch, ptx, key_step)
        value_grads, value_metrics = accumulate(
            value_fn, params["value"], minibatch, key_step, config.micro_batches
        )
        updates, policy_state = policy_optimizer.update(
            grads, opt_state["policy"], params["policy"]
        )
        value_updates, value_state = value_optimizer.update(
            value_grads, opt_state["value"], params["value"]
        )
        updates = jax.tree.map(lambda u: jnp.where(active, u, 0.0), updates)
        policy_state = jax.tree.map(
            lambda new, old: jnp.where(active, new, old), policy_state, opt_state["policy"]
        )
        params = {
            "policy": optax.apply_updates(params["policy"], updates),
            "value": optax.apply_updates(params["value"], value_updates),
        }
        opt_state = {"policy": policy_state, "value": value_state}
        metrics |= value_metrics | {"value/grad_norm": optax.tree.norm(value_grads)}
        return (params, opt_state, active, key), metrics

    def update(
        state: TrainState,
        made: Experience,
        ptx: TokenBatch | None,
    ) -> tuple[TrainState, Metrics]:
        keys = iteration_keys(state)
        epoch_keys = jax.random.split(keys["shuffle"], config.epochs)
        orders = jax.vmap(lambda k: jax.random.permutation(k, config.batch))(epoch_keys)

        def shuffle(x):
            shuffled = x[orders]
            return shuffled.reshape(config.epochs * rows, config.minibatch, *x.shape[1:])

        minibatches = jax.tree.map(shuffle, made)
        active = state.step >= config.critic_warmup
        start = state.params, state.opt_state, active, keys["learn"]
        parts = jnp.arange(config.updates), minibatches, ptx
        (params, opt_state, _, _), metrics = jax.lax.scan(learn, start, parts)
        state = dataclasses.replace(
            state,
            step=state.step + 1,
            params=params,
            opt_state=opt_state,
            ema=update_ema(state.ema, params["policy"], config.ema_decay),
        )
        metrics = jax.tree.map(lambda x: x.mean(), metrics)
        return state, metrics

    return update


def adapt(state: TrainState, kl: jax.Array, config: PpoConfig) -> TrainState:
    """Moves beta towards the KL target; the identity where there is none.

    kl: nats per sequence of the last rollout.
    """
    if config.kl_target is None:
        return state
    kl_coef = adaptive_kl(
        state.kl_coef,
        kl,
        config.batch,
        target=config.kl_target,
        horizon=config.kl_horizon,
    )
    return dataclasses.replace(state, kl_coef=kl_coef)
