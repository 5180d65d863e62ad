"""The decoder against a slow twin in numpy, and the invariances that everything above relies on."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from instruct_jax.models.lm import LanguageModel
from instruct_jax.records import PromptBatch

FAMILIES = pytest.mark.parametrize("config", tiny.CONFIGS.values(), ids=tiny.CONFIGS.keys())


def slow_logits(config, params, tokens):
    """One unpadded sequence [L] through the decoder, head by head, position by position, in
    float64.
    """
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)

    def norm(x, w):
        if config.norm == "rmsnorm":
            return x / np.sqrt((x**2).mean(-1, keepdims=True) + config.norm_eps) * w["scale"]
        x = x - x.mean(-1, keepdims=True)
        return (
            x / np.sqrt((x**2).mean(-1, keepdims=True) + config.norm_eps) * w["scale"] + w["bias"]
        )

    def dense(x, w):
        flat = w["kernel"].reshape(x.shape[-1], -1)
        return x @ flat + (w["bias"].reshape(-1) if config.bias else 0)

    def rotate(x, t):
        half = len(x) // 2
        angle = t * config.rotary_base ** (-np.arange(half) / half)
        return np.concatenate(
            [
                x[:half] * np.cos(angle) - x[half:] * np.sin(angle),
                x[half:] * np.cos(angle) + x[:half] * np.sin(angle),
            ]
        )

    def gelu(x):
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

    def silu(x):
        return x / (1 + np.exp(-x))

    act = {"gelu": gelu, "silu": silu}[config.activation]
    x = p["embedding"][tokens]
    if config.positions == "learned":
        x = x + p["position"][: len(tokens)]
    for i in range(config.layers):
        w = jax.tree.map(lambda a, i=i: a[i], p["layers"])
        y = norm(x, w["attention_norm"])
        q = dense(y, w["q"]).reshape(len(tokens), config.heads, config.head_size)
        k = dense(y, w["k"]).reshape(len(tokens), config.groups, config.head_size)
        v = dense(y, w["v"]).reshape(len(tokens), config.groups, config.head_size)
        out = np.zeros_like(q)
        for h in range(config.heads):
            g = h // (config.heads // config.groups)
            for t in range(len(tokens)):
                turn = (
                    (lambda z, s: rotate(z, s))
                    if config.positions == "rotary"
                    else (lambda z, s: z)
                )
                a = np.array([turn(q[t, h], t) @ turn(k[s, g], s) for s in range(t + 1)]) / np.sqrt(
                    config.head_size
                )
                a = np.exp(a - a.max())
                out[t, h] = (a / a.sum()) @ v[: t + 1, g]
        o = w["out"]["kernel"].reshape(-1, config.width)
        x = x + out.reshape(len(tokens), -1) @ o + (w["out"]["bias"] if config.bias else 0)
        y = norm(x, w["mlp_norm"])
        up = dense(y, w["up"])
        up = act(dense(y, w["gate"])) * up if config.gated else act(up)
        x = x + dense(up, w["down"])
    return norm(x, p["final_norm"]) @ p["embedding" if config.tied else "unembedding"].T


@functools.partial(jax.jit, static_argnums=0)  # one program; op by op, each op is one
def logits(config, params, tokens, segments):
    lm = LanguageModel(config)
    return lm.hidden(params, tokens, segments) @ lm.unembedding(params).T


@FAMILIES
def test_forward_equals_slow_twin(config):
    params, tokens = tiny.params(config), tiny.tokens((2, 9))
    fast = logits(config, params, tokens, jnp.ones_like(tokens))
    for row in range(2):
        np.testing.assert_allclose(fast[row], slow_logits(config, params, tokens[row]), atol=2e-5)


@FAMILIES
def test_padding_and_packing_change_nothing(config):
    params, tokens = tiny.params(config), tiny.tokens((2, 7))
    ones = np.ones_like(tokens)
    plain = logits(config, params, tokens, ones)
    for left in (0, 3, 5):
        padded = logits(config, params, tiny.shift(tokens, left, 12), tiny.shift(ones, left, 12))
        np.testing.assert_allclose(padded[:, left : left + 7], plain, atol=1e-5)
    packed = logits(config, params, tokens.reshape(1, 14), np.repeat([1, 2], 7)[None])
    np.testing.assert_allclose(packed.reshape(2, 7, -1), plain, atol=1e-5)


@FAMILIES
def test_no_token_sees_the_future(config):
    """The gradient of position t with respect to the embedding of a later token is exactly 0; to an
    earlier one it is not.
    """
    params, tokens = tiny.params(config), np.arange(3, 11, dtype=np.int32)[None]
    lm = LanguageModel(config)

    def output(embedding):
        return lm.hidden({**params, "embedding": embedding}, tokens, np.ones_like(tokens))[
            0, 4
        ].sum()

    moved = np.abs(jax.jit(jax.grad(output))(params["embedding"])).sum(-1)
    assert (moved[tokens[0, :5]] > 0).all() and (moved[tokens[0, 5:]] == 0).all()


@FAMILIES
def test_prefill_and_decode_equal_the_full_forward(config):
    """Left-padded prompts of different lengths, then five tokens one at a time."""
    lm, params = LanguageModel(config), tiny.params(config)
    prompts, response = tiny.prompt_batch(rows=4), tiny.tokens((4, 5), seed=3)
    tokens = np.concatenate([prompts.tokens, response], axis=1)
    segments = np.concatenate([prompts.mask, np.ones((4, 5), bool)], axis=1).astype(np.int32)
    full = jax.jit(lm.hidden)(params, tokens, segments)
    prefill, decode = jax.jit(lm.prefill, static_argnums=2), jax.jit(lm.decode)
    hidden, cache = prefill(
        params, PromptBatch(jnp.asarray(prompts.tokens), jnp.asarray(prompts.mask)), 11
    )
    np.testing.assert_allclose(hidden, full[:, 5], atol=1e-5)
    for t in range(5):
        hidden, cache = decode(params, cache, response[:, t])
        np.testing.assert_allclose(hidden, full[:, 6 + t], atol=1e-5)


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_remat_changes_no_gradient(remat):
    params, batch = tiny.params(), tiny.token_batch()

    def loss(params, config):
        return jnp.square(LanguageModel(config).hidden(params, batch.tokens, batch.segments)).mean()

    gradient = jax.jit(jax.grad(loss), static_argnums=1)
    plain, again = (
        gradient(params, tiny.GPT),
        gradient(params, dataclasses.replace(tiny.GPT, remat=remat)),
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), plain, again)


def test_dropout_needs_a_key_and_differs_between_keys():
    lm, params, batch = LanguageModel(tiny.GPT), tiny.params(), tiny.token_batch()
    run = lambda key: lm.hidden(params, batch.tokens, batch.segments, dropout=0.5, key=key)  # noqa: E731
    off = lm.hidden(params, batch.tokens, batch.segments)
    np.testing.assert_array_equal(run(None), off)
    a, b = run(jax.random.key(0)), run(jax.random.key(1))
    assert np.abs(a - b).max() > 1e-3 and np.abs(a - off).max() > 1e-3


def test_bfloat16_computes_in_bfloat16_and_stays_close():
    config = dataclasses.replace(tiny.GPT, dtype="bfloat16")
    lm, params, batch = LanguageModel(config), tiny.params(), tiny.token_batch()
    hidden = lm.hidden(params, batch.tokens, batch.segments)
    assert hidden.dtype == jnp.bfloat16
    exact = LanguageModel(tiny.GPT).hidden(params, batch.tokens, batch.segments)
    assert np.abs(hidden.astype(jnp.float32) - exact)[batch.segments > 0].mean() < 0.05
    logp, entropy = lm.logprobs(params, hidden, batch.tokens)
    assert logp.dtype == entropy.dtype == jnp.float32


def test_compiled_size_does_not_grow_with_depth():
    batch = tiny.token_batch()

    def size(layers):
        config = dataclasses.replace(tiny.GPT, layers=layers)
        run = lambda p: LanguageModel(config).hidden(p, batch.tokens, batch.segments)  # noqa: E731
        return len(jax.jit(run).lower(jax.eval_shape(lambda: tiny.params(config))).as_text())

    assert size(12) < 1.1 * size(3)


def test_rows_that_only_make_the_vocabulary_rounder_change_nothing():
    rounder = LanguageModel(dataclasses.replace(tiny.GPT, vocab_multiple=10))
    plain, params = LanguageModel(tiny.GPT), tiny.params()
    padded = params | {"embedding": jnp.concatenate([params["embedding"], jnp.full((8, 16), 3.0)])}
    assert jax.eval_shape(rounder.init, jax.random.key(0))["embedding"].value.shape == (40, 16)
    tokens, segments = tiny.tokens((2, 6)), np.ones((2, 6), np.int32)
    hidden = plain.hidden(params, tokens, segments)
    np.testing.assert_array_equal(rounder.hidden(padded, tokens, segments), hidden)
    for a, b in zip(
        rounder.logprobs(padded, hidden, tokens),
        plain.logprobs(params, hidden, tokens),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5)
    np.testing.assert_allclose(
        rounder.logits(padded, hidden[:, 0]), plain.logits(params, hidden[:, 0]), rtol=1e-5
    )
    gradient = jax.grad(lambda p: rounder.logprobs(p, hidden, tokens)[0].sum())(padded)["embedding"]
    assert not gradient[32:].any() and gradient[:32].any()
