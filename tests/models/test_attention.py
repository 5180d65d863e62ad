"""The kernels of attention give what `attend` gives: fused ones where their platform is, splash
also by its interpreter.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas.ops.tpu import splash_attention as splash

from instruct_jax.models import attention
from instruct_jax.models.attention import Attention, attend
from instruct_jax.ops import masking

PLATFORM = jax.default_backend()
B, L, H, G, C = 2, 256, 4, 2, 64


def inputs(dtype=np.float32):
    """Rows of two documents with padding on both sides."""
    rng = np.random.default_rng(0)
    q, k, v = (
        rng.normal(size=shape).astype(dtype) for shape in ((B, L, H, C), (B, G, L, C), (B, G, L, C))
    )
    at = np.arange(L)
    segments = np.stack(
        [np.where(at < 100, 1, np.where(at < 200, 2, 0)), np.where(at < 30, 0, 1)]
    ).astype(np.int32)
    return q, k, v, segments


def outputs_and_gradients(read, dtype=np.float32):
    """Of a random function of the outputs, at real tokens only."""
    q, k, v, segments = inputs(dtype)
    weight = np.random.default_rng(1).normal(size=(B, L, H, C)) * (segments > 0)[:, :, None, None]

    @jax.jit
    def run(q, k, v):
        y, gradient = jax.vjp(lambda q, k, v: read(q, k, v, segments), q, k, v)
        return y * (segments > 0)[:, :, None, None], gradient(weight.astype(y.dtype))

    return jax.tree.map(lambda x: np.asarray(x, np.float32), run(q, k, v))


def by_attend(q, k, v, segments):
    return attend(q, k, v, masking.attention_mask(segments))


def by(kind, local=False, **facts):
    kernel = Attention(kind, **facts)
    return lambda q, k, v, segments: kernel(q, k, v, kernel.prepare(segments), local)


def same(
    kind: str, dtype=np.float32, rtol: float = 1e-4, atol: float = 1e-4, twin=by_attend, **facts
) -> None:
    ours, theirs = (outputs_and_gradients(read, dtype) for read in (by(kind, **facts), twin))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


def test_splash_by_its_interpreter(monkeypatch):
    monkeypatch.setattr(
        splash, "make_splash_mqa", functools.partial(splash.make_splash_mqa, interpret=True)
    )
    same("splash")


FACTS = {"scale": 0.3, "cap": 1.5, "window": 37}


def by_hand(local):
    """Windows, soft caps and scales, written out."""

    def read(q, k, v, segments):
        seen = masking.attention_mask(segments)
        near = (np.arange(L)[:, None] - np.arange(L)[None, :] < FACTS["window"])[None, None]
        seen = seen & near if local else seen
        k, v = (jnp.repeat(x, H // G, axis=1).swapaxes(1, 2) for x in (k, v))
        logits = FACTS["cap"] * jnp.tanh(
            FACTS["scale"] * jnp.einsum("blhc,bshc->bhls", q, k) / FACTS["cap"]
        )
        return jnp.einsum(
            "bhls,bshc->blhc", jax.nn.softmax(jnp.where(seen, logits, -1e9), axis=-1), v
        )

    return read


@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("kind", ["xla", "splash"])
def test_windows_caps_and_scales(kind, local, monkeypatch):
    monkeypatch.setattr(
        splash, "make_splash_mqa", functools.partial(splash.make_splash_mqa, interpret=True)
    )
    same(kind, twin=by_hand(local), local=local, **FACTS)


@pytest.mark.skipif(PLATFORM != "tpu", reason="needs a TPU: JAX_PLATFORMS=tpu")
def test_splash():
    same("splash", rtol=2e-2, atol=2e-2)  # a TPU multiplies in bfloat16


@pytest.mark.skipif(PLATFORM != "gpu", reason="needs a GPU: JAX_PLATFORMS=cuda")
def test_cudnn():
    same("cudnn", dtype=jax.numpy.bfloat16, rtol=2e-2, atol=2e-2)


def test_auto_takes_what_the_platform_has():
    import dataclasses
    import types

    import tiny

    def chosen(platform: str, **options) -> str:
        mesh = types.SimpleNamespace(devices=np.array([types.SimpleNamespace(platform=platform)]))
        config = dataclasses.replace(tiny.GPT, **options)
        return attention.make_attention(config, types.SimpleNamespace(mesh=mesh)).kind  # type: ignore[arg-type]

    assert chosen("tpu") == "splash" and chosen("cpu") == "xla"
    assert chosen("gpu", dtype="bfloat16", head_width=64) == "cudnn"
    assert chosen("gpu", dtype="float32", head_width=64) == "xla"  # cuDNN has no float32
    assert chosen("gpu", dtype="bfloat16", head_width=6) == "xla"
    assert chosen("tpu", attention="xla") == "xla"
