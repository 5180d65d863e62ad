"""Optimizers and schedules: optax, from a config."""

import jax
import jax.numpy as jnp
import optax

from instruct_jax.config import OptimizerConfig
from instruct_jax.records import Params


def schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate by optimizer step: linear from warmup_from * peak, then constant, or
    cosine/linear to final_fraction * peak.
    """
    peak, rest = config.learning_rate, max(steps - config.warmup_steps, 1)
    after = {
        "constant": lambda: optax.constant_schedule(peak),
        "cosine": lambda: optax.cosine_decay_schedule(peak, rest, alpha=config.final_fraction),
        "linear": lambda: optax.linear_schedule(peak, peak * config.final_fraction, rest),
    }[config.schedule]()
    if not config.warmup_steps:
        return after
    warmup = optax.linear_schedule(peak * config.warmup_from, peak, config.warmup_steps)
    return optax.join_schedules([warmup, after], [config.warmup_steps])


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """AdamW with global-norm clipping.  Weight decay spares norms, biases and scalar heads."""
    adam = optax.adamw(
        schedule(config, steps),
        b1=config.b1,
        b2=config.b2,
        eps=config.eps,
        weight_decay=config.weight_decay,
        mask=_is_matrix,
    )
    return (
        adam
        if config.clip_norm is None
        else optax.chain(optax.clip_by_global_norm(config.clip_norm), adam)
    )


def _is_matrix(params: Params) -> Params:
    names = {"bias", "scale", "head"}
    return jax.tree_util.tree_map_with_path(
        lambda path, x: not names & {getattr(k, "key", None) for k in path}, params
    )


def update_ema(ema: Params, params: Params, decay: float) -> Params:
    """decay * ema + (1 - decay) * params (paper C.4: 0.992)."""
    return jax.tree.map(lambda e, p: e * decay + p.astype(jnp.float32) * (1 - decay), ema, params)
