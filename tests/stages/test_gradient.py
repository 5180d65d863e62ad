"""The supervised step: micro-batches add up, padding weighs nothing, the loss falls."""

import jax
import numpy as np
import optax
import pytest
import tiny

from instruct_jax.models.heads import ScalarModel
from instruct_jax.models.lm import LanguageModel
from instruct_jax.stages import dpo, pretrain, reward_model
from instruct_jax.stages.gradient import accumulate

LM = LanguageModel(tiny.GPT)
compiled = jax.jit(accumulate, static_argnums=(0, 4))  # one program; op by op, each op is one
LOSSES = {
    "language model": (pretrain.make_loss(LM, "sft"), tiny.params, tiny.token_batch),
    "reward model": (
        reward_model.make_loss(ScalarModel(LM)),
        tiny.scalar_params,
        tiny.ranking_batch,
    ),
    "dpo": (dpo.make_loss(LM, 0.1), tiny.params, tiny.dpo_batch),
}


@pytest.mark.parametrize("name", LOSSES)
def test_micro_batches_equal_one_batch(name):
    loss_fn, params, batch = LOSSES[name]
    key = jax.random.key(0)
    whole_grads, whole = compiled(loss_fn, params(), batch(), key, 1)
    for parts in (2, 4, 8):
        grads, metrics = compiled(loss_fn, params(), batch(), key, parts)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), grads, whole_grads)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), metrics, whole)
    assert optax.tree.norm(whole_grads) > 1e-3


def test_loss_is_the_mean_over_counted_tokens():
    batch, params = tiny.token_batch(), tiny.params()
    loss, metrics = LOSSES["language model"][0](params, batch, jax.random.key(0))
    logits = LM.hidden(params, batch.tokens, batch.segments) @ LM.unembedding(params).T
    logp = np.asarray(jax.nn.log_softmax(logits))
    counted = [
        -logp[b, t - 1, batch.tokens[b, t]]
        for b in range(8)
        for t in range(1, 12)
        if batch.segments[b, t]
    ]
    np.testing.assert_allclose(loss, np.mean(counted), rtol=1e-5)
    assert set(metrics) == {"sft/nll", "sft/entropy"}


def test_packed_rows_give_the_gradients_of_unpacked_ones():
    rows = tiny.tokens((4, 6))
    weight = np.tile((np.arange(6) > 0) / 20, (4, 1)).astype(np.float32)
    unpacked = tiny.TokenBatch(rows, np.ones_like(rows), weight)
    packed = tiny.TokenBatch(
        rows.reshape(2, 12), np.tile(np.repeat([1, 2], 6), (2, 1)), weight.reshape(2, 12)
    )
    loss_fn = LOSSES["language model"][0]
    a, b = (
        compiled(loss_fn, tiny.params(), batch, jax.random.key(0), 1)
        for batch in (unpacked, packed)
    )
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), a, b)


def test_a_ranking_is_all_its_pairs():
    """One K-wise batch element has the loss and the gradient of its pairs as elements of their own,
    each weighing 1 / pairs.
    """
    loss_fn, params = LOSSES["reward model"][0], tiny.scalar_params()
    whole = tiny.ranking_batch(rows=1, k=4)
    better = [(i, j) for i in range(4) for j in range(4) if whole.ranks[0, i] < whole.ranks[0, j]]
    pick = np.array(better)
    pairs = tiny.RankingBatch(
        whole.tokens[0][pick],
        whole.mask[0][pick],
        np.tile([1, 2], (len(pick), 1)).astype(np.int32),
        np.full(len(pick), 1 / 6, np.float32),
    )
    a, b = (compiled(loss_fn, params, batch, jax.random.key(0), 1) for batch in (whole, pairs))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), a, b)
