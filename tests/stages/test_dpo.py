"""DPO: log 2 while the policy is the reference, the paper's loss for pairs, all pairs for more."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from flax import linen as nn

from instruct_jax.config import LoraConfig
from instruct_jax.models.lm import LanguageModel
from instruct_jax.models.lora import merge, split_adapters
from instruct_jax.records import RankingBatch
from instruct_jax.stages import dpo
from instruct_jax.stages.gradient import accumulate

LM = LanguageModel(tiny.GPT)
BETA = 0.3
KEY = jax.random.key(0)
LOSS = dpo.make_loss(LM, BETA)
compiled = jax.jit(accumulate, static_argnums=(0, 4))  # one program; op by op, each op is one
logp_of = jax.jit(dpo.sequence_logp, static_argnums=0)
hidden = jax.jit(LM.hidden)


def with_prompts(rankings: RankingBatch) -> RankingBatch:
    """Four tokens of a prompt before the completions of each."""
    rows, k, _ = rankings.tokens.shape
    prompts = np.repeat(tiny.tokens((rows, 1, 4), seed=9), k, axis=1)
    present = np.repeat(np.asarray(rankings.mask)[:, :, :1], 4, axis=2)
    prompts = np.where(present, prompts, tiny.PAD)
    return dataclasses.replace(
        rankings,
        tokens=np.concatenate([prompts, rankings.tokens], axis=2),
        mask=np.concatenate([present, rankings.mask], axis=2),
    )


def batch_of(rankings: RankingBatch) -> dpo.DpoBatch:
    return dpo.DpoBatch(rankings, logp_of(LM, tiny.params(), rankings))


def slow_logp(params, ids) -> float:
    """log p of a whole unpadded sequence but its first token, token by token, in nats."""
    states = hidden(params, ids[None], np.ones((1, len(ids)), np.int32))[0]
    logits = np.asarray(states @ LM.unembedding(params).T, np.float64)
    table = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return sum(table[t - 1, ids[t]] for t in range(1, len(ids)))


def slow_loss(policy, reference, rankings: RankingBatch) -> dict[str, float]:
    """Eq. 7 of the paper for every pair, mean over the pairs of a prompt, then over prompts."""
    totals = {"dpo/loss": 0.0, "dpo/accuracy": 0.0, "dpo/margin": 0.0}
    for tokens, mask, ranks, weight in zip(
        rankings.tokens, rankings.mask, rankings.ranks, rankings.weight, strict=True
    ):
        scores = []
        for ids, real in zip(tokens[ranks > 0], mask[ranks > 0], strict=True):
            row = ids[real]
            scores.append(BETA * (slow_logp(policy, row) - slow_logp(reference, row)))
        present = ranks[ranks > 0]
        margins = []
        for better, worse in itertools.permutations(range(len(present)), 2):
            if present[better] < present[worse]:
                margins.append(scores[better] - scores[worse])
        totals["dpo/loss"] += weight * np.mean(np.log1p(np.exp(-np.array(margins))))
        totals["dpo/accuracy"] += weight * np.mean(np.array(margins) > 0)
        totals["dpo/margin"] += weight * np.mean(margins)
    return totals


@pytest.mark.parametrize("k", [2, 4])
def test_the_loss_is_log_2_while_the_policy_is_the_reference(k):
    rankings = with_prompts(tiny.ranking_batch(k=k, rows=2))
    if k == 2:  # its second prompt has one completion only, and no pair
        rankings.weight[:] = [1, 0]
    reference = dpo.sequence_logp(LM, tiny.params(), rankings)
    loss, metrics = LOSS(tiny.params(), dpo.DpoBatch(rankings, reference), KEY)
    np.testing.assert_allclose(loss, np.log(2), rtol=1e-6)
    assert metrics["dpo/accuracy"] == metrics["dpo/margin"] == metrics["dpo/chosen_score"] == 0


@pytest.mark.parametrize("ranks", [[1, 2], [2, 1], [3, 1, 2], [2, 1, 2], [1, 2, 0], [4, 1, 3, 2]])
def test_against_the_formula_of_the_paper_for_every_pair(ranks):
    """The whole sequences count there, prompt included: pairs cancel what is left out here."""
    k = len(ranks)
    rankings = with_prompts(tiny.ranking_batch(rows=1, k=k))
    rankings.ranks[:] = ranks
    if 0 in ranks:
        rankings.mask[0, -1] = False
    policy = tiny.params(seed=1)
    loss, metrics = LOSS(policy, batch_of(rankings), KEY)
    expected = slow_loss(policy, tiny.params(), rankings)
    assert loss == metrics["dpo/loss"]
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4, atol=1e-5, err_msg=name)


def test_the_log_prob_is_of_what_the_completions_do_not_share():
    rankings = with_prompts(tiny.ranking_batch(rows=1, k=3))
    params = tiny.params(seed=1)
    prompt = rankings.tokens[0, 0, :4]
    for i, logp in enumerate(logp_of(LM, params, rankings)[0]):
        ids = rankings.tokens[0, i][rankings.mask[0, i]]
        expected = slow_logp(params, ids) - slow_logp(params, prompt)
        np.testing.assert_allclose(logp, expected, rtol=1e-4)


def test_a_completion_that_another_one_continues_differs_at_its_end():
    """One has EOS where the other goes on; one stops without EOS, and padding has the id of EOS."""
    long = [5, 6, 7, 8, tiny.EOS]
    rows = np.array([[long, [5, 6, 7, tiny.EOS, tiny.EOS]]], np.int32)
    for length in (4, 3):
        mask = np.arange(5) < np.array([[[5], [length]]])
        own = dpo.own_tokens(RankingBatch(rows, mask, np.array([[1, 2]]), np.ones(1)))
        np.testing.assert_array_equal(own[0], (np.arange(5) >= 3) & mask[0])


def test_padding_and_absent_completions_change_nothing():
    rankings = with_prompts(tiny.ranking_batch())
    policy = tiny.params(seed=1)
    wide = dataclasses.replace(
        rankings,
        tokens=np.pad(rankings.tokens, ((0, 0), (0, 2), (0, 5))),
        mask=np.pad(rankings.mask, ((0, 0), (0, 2), (0, 5))),
        ranks=np.pad(rankings.ranks, ((0, 0), (0, 2))),
    )
    plain, padded = batch_of(rankings), batch_of(wide)
    garbage = dataclasses.replace(
        padded, reference=jnp.asarray(padded.reference).at[:, -2:].set(99.0)
    )
    expected = compiled(LOSS, policy, plain, KEY, 1)
    for batch in (padded, garbage):
        result = compiled(LOSS, policy, batch, KEY, 1)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), result, expected)


def test_nothing_beyond_eos_counts():
    rankings = with_prompts(tiny.ranking_batch())
    noise = tiny.tokens(rankings.tokens.shape, seed=5)
    spoiled = dataclasses.replace(rankings, tokens=np.where(rankings.mask, rankings.tokens, noise))
    policy = tiny.params(seed=1)
    batches = batch_of(rankings), batch_of(spoiled)
    a, b = (compiled(LOSS, policy, batch, KEY, 1) for batch in batches)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), a, b)


def test_a_step_lowers_the_loss_and_raises_the_margin():
    batch = batch_of(with_prompts(tiny.ranking_batch()))
    grads, before = compiled(LOSS, tiny.params(), batch, KEY, 1)
    moved = optax.apply_updates(tiny.params(), jax.tree.map(lambda g: -0.1 * g, grads))
    _, after = LOSS(moved, batch, KEY)
    assert after["dpo/loss"] < before["dpo/loss"]
    assert after["dpo/margin"] > 0 and after["dpo/accuracy"] > 0.5


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_adapters_start_at_the_reference_and_their_dropout_is_on_in_training_only(dropout):
    lm = LanguageModel(tiny.GPT, lora=LoraConfig(rank=2, dropout=dropout))
    adapters = split_adapters(nn.unbox(jax.jit(lm.init)(KEY)))[1]
    batch = batch_of(with_prompts(tiny.ranking_batch()))
    loss_fn = dpo.make_loss(lm, BETA)

    def loss_of(adapters, batch, key):
        return loss_fn(merge(tiny.params(), adapters), batch, key)

    grads, metrics = compiled(loss_of, adapters, batch, KEY, 1)
    share = jnp.asarray(batch.rankings.weight).sum()
    np.testing.assert_allclose(metrics["dpo/loss"], share * np.log(2), rtol=1e-5)
    moved = jax.tree.map(lambda x, g: x - 0.01 * g, adapters, grads)
    losses = [float(loss_of(moved, batch, jax.random.key(i))[0]) for i in range(2)]
    assert (losses[0] == losses[1]) == (dropout == 0)
    assert max(losses) < metrics["dpo/loss"]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"beta": 0.0}, "beta=0.0 must be positive"),
        ({"epochs": 0}, "epochs=0"),
        ({"micro_batches": 3}, "micro_batches=3 must divide"),
        ({"save_every": 0}, "save_every=0"),
    ],
)
def test_impossible_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(dpo.DpoConfig(), **change)
