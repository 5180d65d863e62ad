"""The sampler: its log-probs, its stops, its keys."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from instruct_jax.models.lm import LanguageModel
from instruct_jax.records import PromptBatch
from instruct_jax.stages.experience import response_logprobs
from instruct_jax.stages.rollout import SamplerConfig, make_rollout

LM = LanguageModel(tiny.LLAMA)
CONFIG = SamplerConfig(max_tokens=10, temperature=0.8)


def sampler(config=CONFIG, samples=1):
    return jax.jit(make_rollout(LM, config, eos=(tiny.EOS,), pad=tiny.PAD, samples=samples))


@pytest.fixture(scope="module")
def drawn():
    return sampler(samples=8)(tiny.params(tiny.LLAMA), tiny.prompt_batch(), jax.random.key(0))


def test_shapes_and_stops(drawn):
    assert drawn.tokens.shape == (64, 10)
    tokens, mask = np.asarray(drawn.tokens), np.asarray(drawn.mask)
    assert drawn.ended.any() and not drawn.ended.all(), "the test needs both kinds"
    for row in range(64):
        stops = np.flatnonzero(tokens[row] == tiny.EOS)
        length = stops[0] + 1 if len(stops) else 10
        assert mask[row].sum() == length and mask[row, :length].all()
        assert bool(drawn.ended[row]) == bool(len(stops))
        assert (tokens[row, length:] == tiny.PAD).all() and (
            np.asarray(drawn.logp)[row, length:] == 0
        ).all()


def test_each_of_several_ends_stops_a_row(drawn):
    ends = (tiny.EOS, 7)
    run = jax.jit(make_rollout(LM, CONFIG, eos=ends, pad=tiny.PAD, samples=8))
    found = run(tiny.params(tiny.LLAMA), tiny.prompt_batch(), jax.random.key(0))
    last = set()
    for row in range(64):
        tokens = np.asarray(drawn.tokens[row])[np.asarray(drawn.mask[row])].tolist()
        stops = [i for i, token in enumerate(tokens) if token in ends]
        expected = tokens[: stops[0] + 1] if stops else tokens
        assert np.asarray(found.tokens[row])[np.asarray(found.mask[row])].tolist() == expected
        assert bool(found.ended[row]) == bool(stops)
        last.add(expected[-1])
    assert last >= set(ends), "the test needs both"


def test_logp_is_the_learners_at_the_same_temperature(drawn):
    logp, _ = response_logprobs(LM, tiny.params(tiny.LLAMA), drawn, CONFIG.temperature)
    np.testing.assert_allclose(jnp.where(drawn.mask, logp, 0), drawn.logp, atol=1e-5)
    other, _ = response_logprobs(LM, tiny.params(tiny.LLAMA), drawn, 1.0)
    assert np.abs(jnp.where(drawn.mask, other, 0) - drawn.logp).max() > 1e-2


def test_ids_that_the_tokenizer_does_not_have_are_never_drawn():
    """Two in the middle and all from 20 on; the learner gives the same log-probs."""
    never = (5, 9, *range(20, 32))
    lm = LM._replace(never=never)
    params = tiny.params(tiny.LLAMA)
    for temperature in (1.0, 0.0):
        config = SamplerConfig(max_tokens=10, temperature=temperature)
        run = jax.jit(make_rollout(lm, config, eos=(tiny.EOS,), pad=tiny.PAD, samples=8))
        drawn = run(params, tiny.prompt_batch(), jax.random.key(0))
        tokens = np.asarray(drawn.tokens)[np.asarray(drawn.mask)]
        assert not set(tokens.tolist()) & set(never)
        if temperature:
            logp, entropy = response_logprobs(lm, params, drawn, temperature)
            np.testing.assert_allclose(jnp.where(drawn.mask, logp, 0), drawn.logp, atol=1e-5)
            assert np.isfinite(entropy).all()


def test_samples_of_one_prompt_stand_together_and_differ(drawn):
    prompts = np.asarray(drawn.prompt).reshape(8, 8, -1)
    assert (prompts == prompts[:, :1]).all()
    tokens = np.asarray(drawn.tokens).reshape(8, 8, -1)
    assert all(len({tuple(t) for t in group}) > 4 for group in tokens)


def test_two_keys_two_rollouts_one_key_one_rollout():
    run, params, prompts = sampler(), tiny.params(tiny.LLAMA), tiny.prompt_batch()
    a, b, c = (run(params, prompts, jax.random.key(i)).tokens for i in (0, 1, 0))
    assert (a != b).any() and (a == c).all()


def test_greedy_takes_the_most_likely_token():
    params, prompts = tiny.params(tiny.LLAMA), tiny.prompt_batch()
    out = sampler(SamplerConfig(max_tokens=4, temperature=0))(params, prompts, jax.random.key(0))
    hidden = jax.jit(LM.hidden)
    for row in range(8):
        ids = list(prompts.tokens[row][prompts.mask[row]])
        for t in range(int(out.mask[row].sum())):
            tokens = jnp.asarray([ids])
            best = int(
                (
                    hidden(params, tokens, jnp.ones_like(tokens))[0, -1] @ LM.unembedding(params).T
                ).argmax()
            )
            assert out.tokens[row, t] == best
            ids.append(best)


def test_padding_of_the_prompts_changes_nothing():
    params, prompts = tiny.params(tiny.LLAMA), tiny.prompt_batch()
    wider = PromptBatch(
        np.pad(prompts.tokens, ((0, 0), (4, 0))), np.pad(prompts.mask, ((0, 0), (4, 0)))
    )
    run = sampler()
    a, b = (run(params, p, jax.random.key(5)) for p in (prompts, wider))
    np.testing.assert_array_equal(a.tokens, b.tokens)
    np.testing.assert_allclose(a.logp, b.logp, atol=1e-5)


def test_early_exit_leaves_the_rest_blank():
    """A model that always says eos stops after one token, whatever the limit."""
    params = dict(tiny.params(tiny.LLAMA))
    params["unembedding"] = params["unembedding"].at[:].set(0.0)
    norm = params["final_norm"]["scale"]
    params["final_norm"] = {"scale": jnp.zeros_like(norm)}
    greedy = sampler(SamplerConfig(max_tokens=10, temperature=1.0))
    uniform = greedy(params, tiny.prompt_batch(), jax.random.key(0))
    np.testing.assert_allclose(uniform.logp[uniform.mask], -np.log(32), atol=1e-5)


@pytest.mark.parametrize(
    "change", [{"temperature": -1}, {"top_p": 0}, {"top_k": -1}, {"max_tokens": 0}]
)
def test_bad_settings_are_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        dataclasses.replace(CONFIG, **change)
