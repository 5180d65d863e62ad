"""What the compiled steps send between devices is what theory asks for, and nothing else."""

from typing import Any

import jax
import numpy as np
import pytest
import tiny
from test_mesh import MODEL, PPO, RATE, models

from instruct_jax import optim, sharding
from instruct_jax.plan.collectives import Collective, collectives
from instruct_jax.records import Experience, Rollout, TrainState
from instruct_jax.stages import ppo, pretrain
from instruct_jax.stages.gradient import make_step

ROWS, LENGTH, N = 16, 12, MODEL.layers
# bytes: metrics, norms of gradients, the maximum and the sum of a softmax over a split vocabulary
SMALL = 1024
STATES = ROWS * LENGTH * MODEL.width * 4  # bytes of hidden states [B, L, D]
TABLES = (MODEL.vocab_size * MODEL.width * 4, MODEL.context * MODEL.width * 4)


def size(tree) -> int:
    return sum(x.nbytes for x in jax.tree.leaves(tree))


def compiled_sft(shape) -> tuple[TrainState, Any]:
    layout, lm, _, _ = models(shape)
    key, tx = jax.random.key(0), optim.make_optimizer(RATE, 10)
    state = sharding.create_state(
        layout,
        jax.eval_shape(lm.init, key),
        sharding.create_sharded(lm.init, layout, key),
        tx.init,
        key,
    )
    step = sharding.compile_step(make_step(pretrain.make_loss(lm, "sft"), tx), layout, state)
    return state, step.lower(state, tiny.token_batch(ROWS, LENGTH)).compile()


def compiled_update(shape) -> tuple[TrainState, Any]:
    """PPO-ptx."""
    layout, lm, _, scalar = models(shape)
    key, tx = jax.random.key(0), optim.make_optimizer(RATE, 10)
    params = {
        "policy": sharding.create_sharded(lm.init, layout, key),
        "value": sharding.create_sharded(scalar.init, layout, key),
    }
    state = sharding.create_state(
        layout,
        {"policy": jax.eval_shape(lm.init, key), "value": jax.eval_shape(scalar.init, key)},
        params,
        lambda p: {name: tx.init(p[name]) for name in p},
        key,
        averaged=lambda p: p["policy"],
    )

    def rows(*shape: int, dtype: Any = np.float32) -> np.ndarray:
        return np.zeros((ROWS, *shape), dtype)

    rollout = Rollout(
        rows(6, dtype=np.int32),
        rows(6, dtype=bool),
        rows(6, dtype=np.int32),
        rows(6, dtype=bool),
        rows(6),
        rows(dtype=bool),
    )
    ptx = jax.tree.map(
        lambda *x: np.stack(x), *[tiny.token_batch(rows=8, seed=i) for i in range(PPO.updates)]
    )
    update = sharding.compile_step(
        ppo.make_update(lm, scalar, PPO, tx, tx),
        layout,
        state,
        layout.sharding("batch"),
        layout.sharding(None, "batch"),
    )
    return state, update.lower(state, Experience(rollout, rows(6), rows(6), rows(6)), ptx).compile()


def large(found: list[Collective], *kinds: str) -> list[Collective]:
    return [c for c in found if c.kind in kinds and c.bytes > SMALL]


def total(found: list[Collective]) -> int:
    return sum(c.total for c in found)


def gathered(found: list[Collective], layers) -> tuple[int, int]:
    """Bytes of layers and number of tables that all-gathers make whole; every one must be a weight
    of one layer, or a table.
    """
    of_layers = [c for c in large(found, "all-gather") if "/layers/" in c.source]
    of_tables = [c for c in large(found, "all-gather") if "/layers/" not in c.source]
    assert {c.bytes for c in of_layers} <= {x.nbytes // N for x in jax.tree.leaves(layers)}
    assert {c.bytes for c in of_tables} <= set(TABLES)
    return total(of_layers), sum(c.times for c in of_tables)


def test_data_parallel_sft_sums_the_gradients_and_sends_nothing_else():
    state, step = compiled_sft((8, 1, 1, 1))
    found = collectives(step.as_text())
    assert {c.kind for c in found} == {"all-reduce"}
    # the embedding is read at both ends, and each end sums its own gradient
    expected = size(state.params) + TABLES[0]
    assert expected <= total(found) < expected + SMALL


def test_data_parallel_ppo_sums_the_gradients_and_sends_nothing_else():
    state, step = compiled_update((8, 1, 1, 1))
    found = collectives(step.as_text())
    assert {c.kind for c in found} == {"all-reduce"}
    policy = size(state.params["policy"]) + TABLES[0]
    expected = PPO.updates * (2 * policy + size(state.params["value"]))  # PPO and ptx
    # rows of the rollout go to other devices' minibatches
    shuffled = ROWS * (3 * 6 * 4 + 2 * 6 * 4)
    assert expected <= total(found) < expected + shuffled + SMALL


@pytest.mark.parametrize(
    "compiled, passes", [(compiled_sft, 1), (compiled_update, 3 * PPO.updates)], ids=["sft", "ppo"]
)
def test_fsdp_gathers_weights_sums_gradients_and_splits_the_optimizer(compiled, passes):
    """passes: how often a model of this size is read and its gradient taken; PPO-ptx: policy twice,
    value once, in each update.
    """
    state, step = compiled((1, 8, 1, 1))
    found = collectives(step.as_text())
    policy = state.params.get("policy", state.params)
    matrices = size([x for x in jax.tree.leaves(policy["layers"]) if x.nbytes // N > SMALL])
    of_layers, tables = gathered(found, policy["layers"])
    # forward, and once more backward
    assert matrices * passes <= of_layers <= 2 * matrices * passes
    assert tables <= passes * 3  # embedding and positions, and the head
    gradients = total(large(found, "all-reduce", "reduce-scatter"))
    assert gradients < 1.05 * passes * size(policy) + 2 * size(tiny.prompt_batch(ROWS))
    assert not large(found, "all-to-all", "collective-permute")
    whole, own = (
        size([x for x in jax.tree.leaves(state) if x.dtype != state.key.dtype]),
        step.memory_analysis().argument_size_in_bytes,
    )
    assert own < 1.25 * whole / 8  # norms and biases are not split


@pytest.mark.parametrize("compiled", [compiled_sft], ids=["sft"])
def test_tensor_parallel_sums_hidden_states_and_moves_no_weight(compiled):
    """Forward: the embedding, and two sums a layer (attention out, MLP down).  Backward: MLP up,
    and q, k and v, whose sums are not merged; and the head.
    """
    _, step = compiled((1, 1, 8, 1))
    found = collectives(step.as_text())
    assert {c.kind for c in large(found, *{c.kind for c in found})} == {"all-reduce"}
    assert total(large(found, "all-reduce")) == STATES * (1 + 2 * N + 4 * N + 1)


def test_tensor_parallel_ppo_moves_no_weight():
    state, step = compiled_update((1, 1, 8, 1))
    found = collectives(step.as_text())
    assert not large(found, "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
    policy = size(state.params["policy"])
    assert max(c.bytes for c in found) < policy  # hidden states only
