"""A toy stage that uses all of a TrainState: Adam, EMA, noise from the key, an adaptive coefficient
and the order of the data.

Also a program, so that tests can kill it: python toy.py FOLDER STEP SIGNAL...
"""

import dataclasses
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from instruct_jax.records import TrainState
from instruct_jax.runtime.loop import Training, train
from instruct_jax.sharding import only_finite

STEPS = 12
FINGERPRINTS = {"model": "toy", "tokenizer": "t1"}
tx = optax.adam(0.1)


def create(width: int = 4) -> TrainState:
    params = {"w": jnp.full((width,), 2.0, jnp.float32), "b": jnp.zeros(())}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=tx.init(params),
        ema=jax.tree.map(jnp.copy, params),
        key=jax.random.key(7),
        kl_coef=jnp.ones(()),
    )


def loss_fn(params: Any, batch: Any, key: jax.Array) -> jax.Array:
    noise = jax.random.normal(key, params["w"].shape)
    return jnp.mean((batch["x"] @ (params["w"] + 0.1 * noise) + params["b"]) ** 2)


@jax.jit
def update(state: TrainState, batch: Any) -> tuple[TrainState, dict[str, jax.Array]]:
    loss, grads = jax.value_and_grad(loss_fn)(
        state.params, batch, jax.random.fold_in(state.key, state.step)
    )
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = jax.tree.map(lambda e, p: 0.9 * e + 0.1 * p, state.ema, params)
    kl_coef = state.kl_coef * jnp.where(loss > 1, 1.1, 0.9)
    state = dataclasses.replace(
        state, step=state.step + 1, params=params, opt_state=opt_state, ema=ema, kl_coef=kl_coef
    )
    return state, {"toy/loss": loss, "toy/kl_coef": kl_coef}


step_fn = jax.jit(only_finite(update), donate_argnums=0)


def batch_at(step: int) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng([3, step]).normal(size=(8, 4)).astype(np.float32)}


def signal_at(step: int, *numbers: int) -> Callable[[int], dict[str, np.ndarray]]:
    """batch_at, but the process gets signals when it asks for the batch of `step`."""

    def batch(at: int) -> dict[str, np.ndarray]:
        if at == step:
            for number in numbers:
                os.kill(os.getpid(), number)
        return batch_at(at)

    return batch


def run(
    folder: Path,
    *,
    batches: Callable[[int], Any] = batch_at,
    step_fn: Callable[..., Any] = step_fn,
    total_steps: int = STEPS,
    save_every: int | None = 3,
    save_seconds: float = 600.0,
    **options: Any,
) -> TrainState:
    """Trains the toy; the further options are those of Training."""
    training = Training(
        step_fn,
        create(),
        batches,
        total_steps,
        FINGERPRINTS,
        save_every=save_every,
        **options,
    )
    return train(training, folder, save_seconds=save_seconds)


if __name__ == "__main__":
    folder, step, *names = sys.argv[1:]
    run(Path(folder), batches=signal_at(int(step), *(signal.Signals[name] for name in names)))
