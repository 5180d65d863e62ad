"""The jitted functions of a run, built from its config: what `run` computes with, and what `plan`
compiles.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import optax

from instruct_jax import optim, sharding
from instruct_jax.chain.settings import RunConfig
from instruct_jax.models.heads import ScalarModel
from instruct_jax.models.lm import LanguageModel
from instruct_jax.models.lora import join, scalar_base, split
from instruct_jax.records import Experience, Metrics, Params, Rollout, TokenBatch, TrainState
from instruct_jax.sharding import Layout
from instruct_jax.stages import ppo
from instruct_jax.stages.experience import make_experience
from instruct_jax.stages.gradient import LossFn, make_step
from instruct_jax.stages.rollout import SamplerConfig, make_rollout


class Models(NamedTuple):
    """The models of a run and where their arrays lie."""

    training: Layout
    sampling: Layout
    policy: LanguageModel
    sampler: LanguageModel  # the policy in the sampling layout
    scalar: ScalarModel  # reward model, and value function


def build_models(config: RunConfig, devices: Sequence[Any] | None = None) -> Models:
    """On the mesh of the config over these devices (all that are here)."""
    training, sampling = sharding.layouts(config.mesh, sharding.make_mesh(config.mesh, devices))
    model, frozen = config.model, (config.lora, config.frozen_layers)
    scalar = ScalarModel(LanguageModel(config.reward_model or model, training, *frozen))
    return Models(
        training,
        sampling,
        LanguageModel(model, training, *frozen),
        LanguageModel(model, sampling, *frozen),
        scalar,
    )


def parted(params: Params, config: RunConfig) -> tuple[Params, Params]:
    """(the frozen base, what the stages after pretraining train on it); {} where they train all."""
    if config.lora is None and config.frozen_layers == 0:
        return {}, params
    return split(params, adapters=config.lora is not None)


def compile_supervised(
    models: Models,
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    base: Params,
    micro_batches: int,
) -> Callable:
    """(state, base, batch) -> (state, metrics): gradient.make_step on a frozen base, which is {}
    where all weights are trained.
    """

    def step(state: TrainState, base: Params, batch: Any) -> tuple[TrainState, Metrics]:
        def on_base(params: Params, batch: Any, key: jax.Array) -> tuple[jax.Array, Metrics]:
            return loss_fn(join(base, params), batch, key)

        return make_step(on_base, optimizer, micro_batches=micro_batches)(state, batch)

    return sharding.compile_step(
        step, models.training, state, _shardings(base), models.training.sharding("batch")
    )


def _shardings(tree: Any) -> Any:
    return jax.tree.map(lambda x: x.sharding, tree)


def compile_rollout(
    models: Models, sampler: SamplerConfig, *, eos: int, pad: int, samples: int = 1
) -> Callable:
    """rollout.make_rollout"""
    run = make_rollout(models.sampler, sampler, eos=eos, pad=pad, samples=samples)
    return jax.jit(run, out_shardings=models.sampling.sharding("batch"))


def compile_experience(models: Models, config: ppo.PpoConfig) -> Callable:
    """experience.make_experience, which reads as many rows at a time as the update does;
    frozen["base"] is what adapters lie on, or {}
    """
    parts = config.batch // config.minibatch * config.micro_batches
    make = make_experience(
        models.policy,
        models.scalar,
        models.scalar,
        config.experience,
        temperature=config.sampler.temperature,
        parts=parts,
    )

    def on_base(
        params: Params, frozen: Params, rollout: Rollout, kl_coef: jax.Array
    ) -> tuple[Experience, Metrics]:
        base, scalars = frozen["base"], scalar_base(frozen["base"])
        params = {"policy": join(base, params["policy"]), "value": join(scalars, params["value"])}
        frozen = {
            "reference": join(base, frozen["reference"]),
            "reward": join(scalars, frozen["reward"]),
        }
        return make(params, frozen, rollout, kl_coef)

    return jax.jit(
        on_base, out_shardings=(models.training.sharding("batch"), models.training.sharding())
    )


# of policy and value function
Optimizers = tuple[optax.GradientTransformation, optax.GradientTransformation]


def ppo_optimizers(config: ppo.PpoConfig) -> Optimizers:
    updates = config.iterations * config.updates
    return optim.make_optimizer(config.policy_optimizer, updates), optim.make_optimizer(
        config.value_optimizer, updates
    )


def ppo_state(config: ppo.PpoConfig, optimizers: Optimizers) -> dict[str, Any]:
    """What sharding.new_state asks for besides parameters and key."""

    def init(params: Params) -> dict[str, Any]:
        return {
            "policy": optimizers[0].init(params["policy"]),
            "value": optimizers[1].init(params["value"]),
        }

    return {
        "init_optimizer": init,
        "averaged": lambda params: params["policy"],
        "kl_coef": config.kl_coef,
    }


def compile_update(
    models: Models, config: ppo.PpoConfig, optimizers: Optimizers, state: TrainState, base: Params
) -> Callable:
    """(state, base, experience, ptx rows, metrics of the experience) -> (state, all metrics): beta
    adapts, then ppo.make_update.
    """
    split = models.training.sharding

    def update(
        state: TrainState, base: Params, made: Experience, ptx: TokenBatch | None, seen: Metrics
    ) -> tuple[TrainState, Metrics]:
        learn = ppo.make_update(models.policy, models.scalar, config, *optimizers, base=base)
        state, metrics = learn(ppo.adapt(state, seen["ppo/kl"], config), made, ptx)
        return state, seen | metrics

    return sharding.compile_step(
        update,
        models.training,
        state,
        _shardings(base),
        split("batch"),
        split(None, "batch"),
        split(),
    )
