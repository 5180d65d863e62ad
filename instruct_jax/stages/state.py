"""The state of a stage before its first step, on one device.  On a mesh: sharding.create_state."""

import jax
import jax.numpy as jnp
import optax

from instruct_jax import sharding
from instruct_jax.records import Params, TrainState


def new_state(
    params: Params,
    optimizer: optax.GradientTransformation,
    key: jax.Array,
) -> TrainState:
    """For a step of make_step: any parameters, one optimizer."""
    return sharding.new_state(params, key, init_optimizer=optimizer.init)


def new_ppo_state(
    policy: Params,
    value: Params,
    policy_optimizer: optax.GradientTransformation,
    value_optimizer: optax.GradientTransformation,
    key: jax.Array,
    *,
    kl_coef: float,
) -> TrainState:
    """For make_update: policy and value function with an optimizer each, and a moving average.

    The average begins as a copy of the policy, so that the state may be donated.
    """

    def init_optimizer(params: Params) -> dict[str, optax.OptState]:
        return {
            "policy": policy_optimizer.init(params["policy"]),
            "value": value_optimizer.init(params["value"]),
        }

    def average(params: Params) -> Params:
        return jax.tree.map(jnp.copy, params["policy"])

    return sharding.new_state(
        {"policy": policy, "value": value},
        key,
        init_optimizer=init_optimizer,
        averaged=average,
        kl_coef=kl_coef,
    )
