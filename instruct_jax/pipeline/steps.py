"""The jitted functions of a run, built from its config: what `run` computes with, and what `plan` compiles."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import optax

from instruct_jax import optim, sharding
from instruct_jax.models.heads import ScalarModel
from instruct_jax.models.lm import LanguageModel
from instruct_jax.pipeline.settings import RunConfig
from instruct_jax.records import Experience, Metrics, Params, TokenBatch, TrainState
from instruct_jax.sharding import Layout
from instruct_jax.stages import ppo
from instruct_jax.stages.experience import make_experience
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
    scalar = ScalarModel(LanguageModel(config.reward_model or config.model, training))
    return Models(training, sampling, LanguageModel(config.model, training), LanguageModel(config.model, sampling), scalar)


def compile_rollout(models: Models, sampler: SamplerConfig, *, eos: int, pad: int, samples: int = 1) -> Callable:
    """rollout.make_rollout"""
    run = make_rollout(models.sampler, sampler, eos=eos, pad=pad, samples=samples)
    return jax.jit(run, out_shardings=models.sampling.sharding("batch"))


def compile_experience(models: Models, config: ppo.PpoConfig) -> Callable:
    """experience.make_experience, which reads as many rows at a time as the update does"""
    parts = config.batch // config.minibatch * config.micro_batches
    make = make_experience(
        models.policy, models.scalar, models.scalar, config.experience, temperature=config.sampler.temperature, parts=parts
    )
    return jax.jit(make, out_shardings=(models.training.sharding("batch"), models.training.sharding()))


Optimizers = tuple[optax.GradientTransformation, optax.GradientTransformation]  # of policy and value function


def ppo_optimizers(config: ppo.PpoConfig) -> Optimizers:
    updates = config.iterations * config.updates
    return optim.make_optimizer(config.policy_optimizer, updates), optim.make_optimizer(config.value_optimizer, updates)


def ppo_state(config: ppo.PpoConfig, optimizers: Optimizers) -> dict[str, Any]:
    """What sharding.new_state asks for besides parameters and key."""

    def init(params: Params) -> dict[str, Any]:
        return {"policy": optimizers[0].init(params["policy"]), "value": optimizers[1].init(params["value"])}

    return {"init_optimizer": init, "averaged": lambda params: params["policy"], "kl_coef": config.kl_coef}


def compile_update(models: Models, config: ppo.PpoConfig, optimizers: Optimizers, state: TrainState) -> Callable:
    """(state, experience, ptx rows, metrics of the experience) -> (state, all metrics): beta adapts, then ppo.make_update."""
    learn, split = ppo.make_update(models.policy, models.scalar, config, *optimizers), models.training.sharding

    def update(state: TrainState, made: Experience, ptx: TokenBatch | None, seen: Metrics) -> tuple[TrainState, Metrics]:
        state, metrics = learn(ppo.adapt(state, seen["ppo/kl"], config), made, ptx)
        return state, seen | metrics

    return sharding.compile_step(update, models.training, state, split("batch"), split(None, "batch"), split())
