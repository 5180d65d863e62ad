"""token_logprobs against the plain formula: values, gradients, memory, layout."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from instruct_jax.ops.logprobs import token_logprobs

VOCAB, WIDTH = 13, 6


def plain(hidden, unembed, targets, temperature=1.0):
    """The formula, with every logit kept."""
    logits = (
        jnp.einsum(
            "...d,vd->...v",
            hidden,
            unembed.astype(hidden.dtype),
            preferred_element_type=jnp.float32,
        )
        / temperature
    )
    logp = jax.nn.log_softmax(logits)
    return jnp.take_along_axis(logp, targets[..., None], axis=-1)[..., 0], -(
        jnp.exp(logp) * logp
    ).sum(-1)


def inputs(shape, dtype=jnp.float32, vocab=VOCAB, width=WIDTH):
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(*shape, width)), dtype)
    unembed = jnp.asarray(rng.normal(size=(vocab, width)), jnp.float32)
    return hidden, unembed, jnp.asarray(rng.integers(0, vocab, shape), jnp.int32)


def test_by_hand():
    """Logits log 1, log 2, log 5: probabilities 1/8, 2/8, 5/8."""
    unembed = jnp.log(jnp.array([[1.0], [2.0], [5.0]]))
    logp, entropy = token_logprobs(jnp.ones((2, 1)), unembed, jnp.array([2, 0]), chunk=1)
    p = np.array([1, 2, 5]) / 8
    np.testing.assert_allclose(logp, np.log([5 / 8, 1 / 8]), rtol=1e-6)
    np.testing.assert_allclose(entropy, [-(p * np.log(p)).sum()] * 2, rtol=1e-6)


def test_tokens_that_are_never_drawn_have_no_probability():
    """As if their rows were not there, and no gradient reaches these."""
    hidden, unembed, targets = inputs((3, 5), vocab=9)
    rows = np.array([0, 1, 3, 4, 5, 6, 7, 9, 10])

    def loss(unembed, targets, **settings):
        logp, entropy = token_logprobs(hidden, unembed, targets, chunk=4, **settings)
        return (logp + 0.3 * entropy).sum(), (logp, entropy)

    wider = jnp.ones((12, WIDTH)).at[rows].set(unembed)
    read = jax.grad(loss, has_aux=True)
    grads, expected = read(unembed, targets)
    wider_grads, found = read(wider, jnp.asarray(rows)[targets], vocab=11, never=(2, 8))
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(wider_grads[rows], grads, rtol=1e-5, atol=1e-6)
    assert (wider_grads[np.array([2, 8, 11])] == 0).all()


@pytest.mark.parametrize(
    "shape, chunk, temperature",
    [
        ((12,), 4, 1.0),  # even chunks
        ((12,), 4, 0.7),
        ((3, 5), 4, 3.0),  # a last chunk that is not full
        ((2, 3, 4), 7, 0.7),
        ((3, 5), 1, 0.7),  # one position at a time
        ((3, 5), 15, 0.7),  # exactly one chunk
        ((2, 2), 100, 3.0),  # less than one
        ((), 1, 1.0),
    ],
)
def test_values_and_gradients_against_the_plain_formula(shape, chunk, temperature):
    hidden, unembed, targets = inputs(shape)
    a, b = (jnp.asarray(x, jnp.float32) for x in np.random.default_rng(1).normal(size=(2, *shape)))

    def weighed(op, **settings):  # a scalar of both outputs, with other weights at every position
        def loss(hidden, unembed):
            logp, entropy = op(hidden, unembed, targets, temperature=temperature, **settings)
            return (a * logp + b * entropy).sum(), (logp, entropy)

        return jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(hidden, unembed)

    grads, result = weighed(token_logprobs, chunk=chunk)
    chex.assert_shape(result, shape)
    chex.assert_type(result, jnp.float32)
    chex.assert_trees_all_close((grads, result), weighed(plain), rtol=1e-5, atol=1e-5)


def test_bf16_hidden_gives_f32_results_and_gradients_in_the_types_of_the_inputs():
    hidden, unembed, targets = inputs((3, 7), jnp.bfloat16)

    def gradient(op):
        return jax.jit(jax.grad(lambda h, u: op(h, u).sum(), argnums=(0, 1)))(hidden, unembed)

    result, expected = (
        token_logprobs(hidden, unembed, targets, chunk=4),
        plain(hidden, unembed, targets),
    )
    chex.assert_type(result, jnp.float32)
    chex.assert_trees_all_close(result, expected, rtol=1e-5, atol=1e-5)
    grads = gradient(lambda h, u: token_logprobs(h, u, targets, chunk=4)[0])
    chex.assert_type(grads, [jnp.bfloat16, jnp.float32])
    chex.assert_trees_all_close(
        grads, gradient(lambda h, u: plain(h, u, targets)[0]), rtol=0.02, atol=0.03
    )


def test_gradients_of_unembed_are_summed_in_its_own_type():
    """512 chunks, each adding nearly the same 1: summed in bf16 the sum would stop at 256."""
    hidden, targets = jnp.ones((512, 1), jnp.bfloat16), jnp.zeros(512, jnp.int32)
    unembed = jnp.array([[-20.0], [0.0]])  # p(target) is nearly 0
    grad = jax.jit(jax.grad(lambda u: token_logprobs(hidden, u, targets, chunk=1)[0].sum()))(
        unembed
    )
    np.testing.assert_allclose(grad, [[512], [-512]], rtol=1e-3)


def test_logits_are_float32_though_hidden_is_bf16():
    """Logits 256 and 257 are one number in bf16."""
    unembed = jnp.array([[256.0, 0.0], [256.0, 1.0]])
    logp, _ = token_logprobs(jnp.ones((1, 2), jnp.bfloat16), unembed, jnp.array([1]), chunk=1)
    np.testing.assert_allclose(logp, [-np.log1p(np.exp(-1.0))], rtol=1e-5)


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_rows_beyond_the_vocabulary_have_no_probability(temperature):
    """Their target, PAD, has a finite one all the same: its weight is 0, and 0 times infinity is
    not.
    """
    hidden, unembed, targets = inputs((3, 7))
    more = jnp.concatenate([unembed, unembed[:2]])

    def read(u, t, **options):
        return token_logprobs(hidden, u, t, temperature=temperature, chunk=4, **options)

    chex.assert_trees_all_close(
        read(more, targets, vocab=len(unembed)), read(unembed, targets), rtol=1e-5, atol=1e-5
    )
    logp, entropy = read(more, jnp.full_like(targets, len(unembed)), vocab=len(unembed))
    assert np.isfinite(logp).all() and np.isfinite(entropy).all() and (logp < -1e30).all()


def test_no_big_array_is_kept():
    """Of 4096 positions and 4096 tokens, one [B, T, V] array in f32 is 64 MiB.

    The plain gradient needs it, this one far less.
    """
    hidden, unembed, targets = (
        jax.ShapeDtypeStruct(x.shape, x.dtype) for x in inputs((8, 512), vocab=4096, width=8)
    )
    whole = 4 * targets.size * 4096
    weight = jnp.ones(targets.shape)

    def temporary_bytes(op, **settings):
        def loss(hidden, unembed, targets):
            logp, entropy = op(hidden, unembed, targets, **settings)
            return (weight * (logp + entropy)).sum()

        lowered = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(hidden, unembed, targets)
        memory = lowered.compile().memory_analysis()
        assert memory is not None
        return memory.temp_size_in_bytes

    assert temporary_bytes(plain) >= whole
    assert temporary_bytes(token_logprobs, chunk=256) < whole / 4


def test_each_device_reads_its_own_rows():
    """Rows sharded over 8 devices: no collective moves hidden states or logits, only the gradient
    of unembed is summed.
    """
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows, everywhere = (
        NamedSharding(mesh, PartitionSpec("data")),
        NamedSharding(mesh, PartitionSpec()),
    )
    hidden, unembed, targets = inputs((8, 16))
    loss = lambda h, u, t: token_logprobs(h, u, t, chunk=32)[0].sum()  # noqa: E731
    run = jax.jit(
        jax.value_and_grad(loss, argnums=(0, 1)),
        in_shardings=(rows, everywhere, rows),
        out_shardings=(everywhere, (rows, everywhere)),
    )
    program = run.lower(hidden, unembed, targets).compile().as_text()
    assert program is not None and "all-reduce" in program
    for collective in ("all-gather", "all-to-all", "collective-permute"):
        assert collective not in program
    value, grads = run(*jax.device_put((hidden, unembed, targets), (rows, everywhere, rows)))
    expected = jax.value_and_grad(loss, argnums=(0, 1))(hidden, unembed, targets)
    chex.assert_trees_all_close((value, grads), expected, rtol=1e-4, atol=1e-5)


def test_wrong_shapes_are_refused():
    hidden, unembed, targets = inputs((3, 5))
    with pytest.raises(AssertionError):
        token_logprobs(hidden, unembed.T, targets, chunk=4)
    with pytest.raises(AssertionError):
        token_logprobs(hidden, unembed, targets[:2], chunk=4)
