"""The arithmetic of plans: by hand, and beside what XLA counts."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import pytest
import tiny
from flax import linen as nn

from instruct_jax.config import MESH
from instruct_jax.models.lm import LanguageModel
from instruct_jax.plan.costs import Costs, Work
from instruct_jax.records import Params, TokenBatch
from instruct_jax.stages import pretrain


@pytest.mark.parametrize("config", tiny.CONFIGS.values(), ids=tiny.CONFIGS)
def test_the_arithmetic_agrees_with_xla(config):
    """One layer and one chunk of logits, as XLA counts what is in a loop once; it also counts
    norms, masks and softmax.
    """
    sizes = {"context": 64, "width": 64, "mlp_width": 256, "head_width": 16, "vocab_size": 512}
    config = dataclasses.replace(config, layers=1, logprob_chunk=4096, **sizes)
    lm, rows, length = LanguageModel(config), 16, 64
    costs = Costs(config, dict.fromkeys(MESH, 1), fused=False)
    batch = tiny.token_batch(rows, length)
    params = jax.eval_shape(lambda key: nn.unbox(lm.init(key)), jax.random.key(0))

    def loss(params: Params, batch: TokenBatch) -> jax.Array:
        return pretrain.make_loss(lm, "x")(params, batch, jax.random.key(0))[0]

    def flops(run: Callable) -> float:
        counts: Any = jax.jit(run).lower(params, batch).cost_analysis()
        return counts["flops"]

    ahead = costs.forward(rows, length, rows * length)
    whole = costs.training(rows, length, rows * length)
    assert flops(loss) == pytest.approx(ahead.computed, rel=0.15)
    assert flops(jax.grad(loss)) == pytest.approx(whole.computed, rel=0.15)


def test_costs_by_hand():
    config = dataclasses.replace(
        tiny.GPT, width=16, heads=2, layers=3, vocab_size=32, dtype="bfloat16"
    )
    one = Costs(config, dict.fromkeys(MESH, 1), fused=True)
    weights = 16 * (4 * 16 + 2 * 64)  # q, k, v, out; up, down
    ahead = one.forward(5, 7)
    # a query sees (7 + 1) / 2 keys
    assert ahead.flops == ahead.computed == 2 * weights * 3 * 35 + 4 * 3 * 16 * 35 * 4
    assert one.training(5, 7, 0).flops == 3 * ahead.flops
    # logits are made again
    assert one.training(5, 7, 35).computed == 3 * ahead.flops + 4 * 2 * 32 * 16 * 35
    remat = one._replace(model=dataclasses.replace(config, remat="full"))
    assert remat.training(5, 7, 0).computed == 4 * ahead.flops
    assert one.learning(1000, parts=2, steps=3) == Work(0, 0, 3 * 1000 * (28 + 16))
    decoding = one.decoding(5, prompt=6, tokens=2)
    # the tokens see 7 and 8 keys
    assert decoding.flops == 2 * 5 * 2 * (weights * 3 + 32 * 16) + 4 * 3 * 16 * 5 * (7 + 8)
    cache = 2 * 3 * 16 * 8 * 5 * 2
    assert decoding.traffic == 2 * ((weights * 3 + 32 * 16) * 2 + cache + 3 * 4 * 32 * 5)
    half = one._replace(sizes=dict.fromkeys(MESH, 1) | {"fsdp": 2})
    assert (
        half.decoding(5, 6, 2).traffic < decoding.traffic
        and half.decoding(5, 6, 2).flops == decoding.flops
    )
