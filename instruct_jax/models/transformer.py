"""The decoder.  One module serves training, prefill and decoding, so the sampler and the learner run the same forward pass.

Layers are scanned, so compile time does not grow with depth.  Parameters are float32, activations `config.dtype`; norms and softmax
are computed in float32.  The logical axis names beside each initialiser are mapped to mesh axes in `sharding.py`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from instruct_jax.config import ModelConfig

Constrain = Callable[[jax.Array, tuple[str | None, ...]], jax.Array]
REMAT = {"dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable, "full": None}


@struct.dataclass
class KVCache:
    """Keys and values of all tokens so far; slot s of every row is written at the same time."""

    k: jax.Array  # [N, B, S, G, C] config.dtype
    v: jax.Array  # [N, B, S, G, C] config.dtype
    mask: jax.Array  # [B, S] bool, True = real token
    slot: jax.Array  # [] int32, the next slot to write


def rotary(x: jax.Array, positions: jax.Array, base: float) -> jax.Array:
    """Rotates the two halves of each head by position * base^(-2i/C) (Su et al. 2021, arXiv:2104.09864); x [B, L, H, C], positions [B, L]."""
    half = x.shape[-1] // 2
    frequency = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = positions.astype(jnp.float32)[:, :, None, None] * frequency[None, None, None, :]
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """softmax(q k / sqrt(C)) v with grouped heads; q [B, L, H, C], k and v [B, S, G, C], mask [B, 1, L, S] bool -> [B, L, H, C].

    A row whose mask is all False (padding) gets a finite value that nobody reads.
    """
    b, l, h, c = q.shape
    groups = k.shape[2]
    q = q.reshape(b, l, groups, h // groups, c) * (c**-0.5)
    logits = jnp.einsum("blgrc,bsgc->bgrls", q, k, preferred_element_type=jnp.float32)
    logits = jnp.where(mask[:, :, None], logits, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    return jnp.einsum("bgrls,bsgc->blgrc", weights, v).reshape(b, l, h, c)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); as a scan body: (x, cache), layer -> (x, cache)."""

    config: ModelConfig
    constrain: Constrain

    def _dense(self, name: str, features, axes: tuple[str, ...], contract: int = 1, std: float | None = None, bias_std: float = 0.0):
        """A projection over the last `contract` axes whose kernel has these logical axis names."""
        cfg = self.config
        return nn.DenseGeneral(
            features,
            axis=tuple(range(-contract, 0)),
            use_bias=cfg.bias,
            dtype=cfg.dtype,
            kernel_init=nn.with_logical_partitioning(nn.initializers.normal(cfg.init_std if std is None else std), axes),
            bias_init=nn.with_logical_partitioning(nn.initializers.normal(bias_std) if bias_std else nn.initializers.zeros, axes[contract:]),
            name=name,
        )

    @nn.compact
    def __call__(self, carry, layer, mask, positions, deterministic):
        cfg = self.config
        x, cache = carry
        residual_std = cfg.init_std * (2 * cfg.layers) ** -0.5

        y = Norm(cfg, name="attention_norm")(x)
        q = self._dense("q", (cfg.heads, cfg.head_size), ("embed", "heads", "head"), bias_std=cfg.qk_bias_std)(y)
        k = self._dense("k", (cfg.groups, cfg.head_size), ("embed", "kv_heads", "head"), bias_std=cfg.qk_bias_std)(y)
        v = self._dense("v", (cfg.groups, cfg.head_size), ("embed", "kv_heads", "head"))(y)
        if cfg.positions == "rotary":
            q, k = rotary(q, positions, cfg.rotary_base), rotary(k, positions, cfg.rotary_base)
        if cache is not None:
            start = (layer, 0, cache.slot, 0, 0)
            cache = cache.replace(
                k=jax.lax.dynamic_update_slice(cache.k, k[None], start), v=jax.lax.dynamic_update_slice(cache.v, v[None], start)
            )
            k = jax.lax.dynamic_index_in_dim(cache.k, layer, keepdims=False)
            v = jax.lax.dynamic_index_in_dim(cache.v, layer, keepdims=False)
        y = self._dense("out", cfg.width, ("heads", "head", "embed"), contract=2, std=residual_std)(attend(q, k, v, mask))
        x = self._residual(x, y, deterministic)

        y = Norm(cfg, name="mlp_norm")(x)
        act = {"gelu": nn.gelu, "silu": nn.silu}[cfg.activation]
        up = self._dense("up", cfg.mlp_size, ("embed", "mlp"))(y)
        up = act(self._dense("gate", cfg.mlp_size, ("embed", "mlp"))(y)) * up if cfg.gated else act(up)
        y = self._dense("down", cfg.width, ("mlp", "embed"), std=residual_std)(up)
        return (self._residual(x, y, deterministic), cache), None

    def _residual(self, x, y, deterministic):
        y = nn.Dropout(self.dropout)(y, deterministic=deterministic)
        return self.constrain(x + y, ("batch", None, None))

    dropout: float = 0.0


class Norm(nn.Module):
    """LayerNorm or RMSNorm, computed in float32."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x):
        cfg = self.config
        scale = nn.with_logical_partitioning(nn.initializers.ones, ("norm",))
        if cfg.norm == "rmsnorm":
            return nn.RMSNorm(epsilon=cfg.norm_eps, dtype=cfg.dtype, scale_init=scale, name="norm")(x)
        bias = nn.with_logical_partitioning(nn.initializers.zeros, ("norm",))
        return nn.LayerNorm(epsilon=cfg.norm_eps, dtype=cfg.dtype, scale_init=scale, bias_init=bias, name="norm")(x)


class Transformer(nn.Module):
    """Tokens to the normed hidden states of the last layer."""

    config: ModelConfig
    constrain: Constrain
    dropout: float = 0.0  # on every residual branch and on the embeddings (paper C.1)
    unroll: int = 1  # layers per loop iteration; decoding unrolls small models

    @nn.compact
    def __call__(self, tokens, mask, positions, cache: KVCache | None = None, *, deterministic: bool = True):
        """tokens, positions [B, L] int32; mask [B, 1, L, S] bool -> hidden [B, L, D], cache.  Without a cache S = L."""
        cfg = self.config
        table = nn.with_logical_partitioning(nn.initializers.normal(cfg.init_std), ("vocab", "embed"))
        embedding = self.param("embedding", table, (cfg.vocab_size, cfg.width), jnp.float32)
        if not cfg.tied:
            self.param("unembedding", table, (cfg.vocab_size, cfg.width), jnp.float32)
        x = embedding.astype(cfg.dtype)[tokens]
        if cfg.positions == "learned":
            table = nn.with_logical_partitioning(nn.initializers.normal(cfg.init_std / 2), ("position", "embed"))
            x = x + self.param("position", table, (cfg.context, cfg.width), jnp.float32).astype(cfg.dtype)[positions]
        x = nn.Dropout(self.dropout)(x, deterministic=deterministic)
        x = self.constrain(x, ("batch", None, None))

        block = Block if cfg.remat == "none" else nn.remat(Block, policy=REMAT[cfg.remat], prevent_cse=False, static_argnums=(5,))
        layers = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast),
            length=cfg.layers,
            unroll=self.unroll,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(cfg, self.constrain, dropout=self.dropout, name="layers")
        (x, cache), _ = layers((x, cache), jnp.arange(cfg.layers), mask, positions, deterministic)
        return Norm(cfg, name="final_norm")(x), cache
