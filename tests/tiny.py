"""Tiny models and batches shared by the whole suite; built once per process."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from instruct_jax.config import ModelConfig
from instruct_jax.models.heads import ScalarModel
from instruct_jax.models.lm import LanguageModel
from instruct_jax.models.lora import backbone_of
from instruct_jax.records import PromptBatch, RankingBatch, TokenBatch
from instruct_jax.stages.dpo import DpoBatch

PAD, BOS, EOS = 0, 1, 2
GPT = ModelConfig(
    vocab_size=32, context=24, width=16, layers=2, heads=2, init_std=0.3, logprob_chunk=8
)
LLAMA = ModelConfig(
    vocab_size=32,
    context=24,
    width=16,
    layers=3,
    heads=4,
    kv_heads=2,
    head_width=6,
    mlp_width=24,
    positions="rotary",
    rotary_base=100.0,
    norm="rmsnorm",
    activation="silu",
    gated=True,
    bias=False,
    tied=False,
    init_std=0.3,
    logprob_chunk=64,
)
CONFIGS = {"gpt": GPT, "llama": LLAMA}


@functools.cache
def params(config: ModelConfig = GPT, seed: int = 0):
    """Parameters with random biases, so that nothing hides behind zeros."""
    tree = nn.unbox(jax.jit(LanguageModel(config).init)(jax.random.key(seed)))
    leaves, treedef = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(seed + 100), len(leaves))
    return jax.tree.unflatten(
        treedef,
        [x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)],
    )


@functools.cache
def scalar_params(config: ModelConfig = GPT, seed: int = 1):
    head = ScalarModel(LanguageModel(config)).init_head(jax.random.key(seed))
    return {"backbone": backbone_of(params(config, seed)), "head": nn.unbox(head)}


def tokens(shape, seed=0):
    return np.random.default_rng(seed).integers(3, 32, shape).astype(np.int32)


def token_batch(rows=8, length=12, seed=0) -> TokenBatch:
    """Right-padded rows of different lengths, all tokens but the first weigh the same."""
    lengths = np.random.default_rng(seed).integers(3, length + 1, rows)
    real = np.arange(length)[None, :] < lengths[:, None]
    weight = (real & (np.arange(length) > 0)[None, :]).astype(np.float32)
    return TokenBatch(
        np.where(real, tokens((rows, length), seed), PAD),
        real.astype(np.int32),
        weight / weight.sum(),
    )


def prompt_batch(rows=8, length=6, seed=0) -> PromptBatch:
    """Left-padded prompts of different lengths."""
    lengths = np.random.default_rng(seed).integers(2, length + 1, rows)
    mask = np.arange(length)[None, :] >= length - lengths[:, None]
    return PromptBatch(np.where(mask, tokens((rows, length), seed), PAD), mask)


def ranking_batch(rows=8, k=3, length=10, seed=0) -> RankingBatch:
    """Right-padded completions; every second prompt has one completion fewer."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, length + 1, (rows, k))
    lengths[1::2, -1] = 0
    mask = np.arange(length)[None, None, :] < lengths[:, :, None]
    ranks = np.stack([rng.permutation(k) + 1 for _ in range(rows)]).astype(np.int32)
    ranks[1::2, -1] = 0
    return RankingBatch(
        np.where(mask, tokens((rows, k, length), seed), PAD),
        mask,
        ranks,
        np.full(rows, 1 / rows, np.float32),
    )


def dpo_batch(rows=8, seed=0) -> DpoBatch:
    """Rankings with log-probs of a reference that is no model."""
    rankings = ranking_batch(rows, seed=seed)
    logp = np.random.default_rng(seed).normal(-20, 3, rankings.ranks.shape)
    return DpoBatch(rankings, logp.astype(np.float32))


def shift(x, left: int, total: int):
    """Rows [B, L] with `left` padding columns before and the rest after."""
    return jnp.pad(x, ((0, 0), (left, total - left - x.shape[1])))
