"""The decoder.  One module serves training, prefill and decoding, so the sampler and the learner run the same forward pass.

Layers are scanned, so compile time does not grow with depth.  Parameters are float32, activations `config.dtype`; norms and softmax
are computed in float32.  The logical axis names beside each initialiser are mapped to mesh axes in `sharding.py`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from instruct_jax.config import ModelConfig
from instruct_jax.models.attention import Attention, attend
from instruct_jax.sharding import Layout

REMAT = {"dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable, "full": None}


@struct.dataclass
class KVCache:
    """Keys and values of all tokens so far; slot s of every row is written at the same time."""

    k: tuple[jax.Array, ...]  # N of [B, G, S, C] config.dtype; apart, because a slice of one array would be copied at every token
    v: tuple[jax.Array, ...]  # N of [B, G, S, C] config.dtype
    mask: jax.Array  # [B, S] bool, True = real token
    slot: jax.Array  # [] int32, the next slot to write


def rotary(x: jax.Array, positions: jax.Array, base: float) -> jax.Array:
    """Rotates the halves of each head by position * base^(-2i/C) (Su et al. 2021, arXiv:2104.09864); x [B, L, H, C]."""
    half = x.shape[-1] // 2
    frequency = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = positions.astype(jnp.float32)[:, :, None, None] * frequency[None, None, None, :]
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)).  Returns x and the keys and values [B, G, S, C] that were attended to."""

    config: ModelConfig
    layout: Layout | None
    attention: Attention
    dropout: float = 0.0

    def _dense(self, name: str, features, axes: tuple[str, ...], contract: int = 1, std: float | None = None, bias_std: float = 0.0):
        """A projection over the last `contract` axes whose kernel has these logical axis names."""
        cfg = self.config
        return nn.DenseGeneral(
            features,
            axis=tuple(range(-contract, 0)),
            use_bias=cfg.bias,
            dtype=cfg.dtype,
            kernel_init=nn.with_logical_partitioning(nn.initializers.normal(cfg.init_std if std is None else std), axes),
            bias_init=nn.with_logical_partitioning(
                nn.initializers.normal(bias_std) if bias_std else nn.initializers.zeros, axes[contract:]
            ),
            name=name,
        )

    @nn.compact
    def __call__(self, x, visible, positions, deterministic, past=None):
        """past: keys and values so far and the slot where those of x go; None if x is all there is.  visible: what each query may see, as
        self.attention has it, and with a past a mask [B, 1, 1, S]."""
        cfg = self.config
        residual_std = cfg.init_std * (2 * cfg.layers) ** -0.5

        y = Norm(cfg, name="attention_norm")(x)
        q = self._dense("q", (cfg.heads, cfg.head_size), ("embed", "heads", "head"), bias_std=cfg.qk_bias_std)(y)
        k = self._dense("k", (cfg.groups, cfg.head_size), ("embed", "kv_heads", "head"), bias_std=cfg.qk_bias_std)(y)
        v = self._dense("v", (cfg.groups, cfg.head_size), ("embed", "kv_heads", "head"))(y)
        if cfg.positions == "rotary":
            q, k = rotary(q, positions, cfg.rotary_base), rotary(k, positions, cfg.rotary_base)
        k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
        if past is None:
            y = self.attention(q, k, v, visible)
        else:
            start = (0, 0, past[2], 0)
            k, v = jax.lax.dynamic_update_slice(past[0], k, start), jax.lax.dynamic_update_slice(past[1], v, start)
            y = attend(q, k, v, visible)
        y = self._dense("out", cfg.width, ("heads", "head", "embed"), contract=2, std=residual_std)(y)
        x = self._residual(x, y, deterministic)

        y = Norm(cfg, name="mlp_norm")(x)
        act = {"gelu": nn.gelu, "silu": nn.silu}[cfg.activation]
        up = self._dense("up", cfg.mlp_size, ("embed", "mlp"))(y)
        up = act(self._dense("gate", cfg.mlp_size, ("embed", "mlp"))(y)) * up if cfg.gated else act(up)
        y = self._dense("down", cfg.width, ("mlp", "embed"), std=residual_std)(up)
        return self._residual(x, y, deterministic), (k, v)

    def _residual(self, x, y, deterministic):
        y = nn.Dropout(self.dropout)(y, deterministic=deterministic)
        return constrained(self.layout, x + y)


def constrained(layout: Layout | None, x: jax.Array) -> jax.Array:
    """Pins the states [B, L, D] of a text, or [B, 1, D] of one token, to the mesh."""
    if layout is None:
        return x
    return layout.constrain(x, "rows", None, None) if x.shape[1] == 1 else layout.constrain(x, "batch", "sequence", None)


def gathered(layout: Layout | None, table: jax.Array, rows: str | None) -> jax.Array:
    """A table [rows, D] with whole rows on every device: looked up or multiplied split along D, it would spread the states along D too."""
    return table if layout is None else layout.constrain(table, rows, None)


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
    layout: Layout | None
    attention: Attention
    dropout: float = 0.0  # on every residual branch and on the embeddings (paper C.1)

    @nn.compact
    def __call__(self, tokens, visible, positions, cache: KVCache | None = None, *, deterministic: bool = True):
        """tokens, positions [B, L] int32, visible as in Block -> hidden [B, L, D], (keys, values).

        Without a cache keys and values are one array [N, B, G, L, C] each; with one they are as in KVCache.
        """
        cfg = self.config
        table = nn.with_logical_partitioning(nn.initializers.normal(cfg.init_std), ("vocab", "embed"))
        embedding: Any = self.param("embedding", table, (cfg.vocab_rows, cfg.width), jnp.float32)
        if not cfg.tied:
            self.param("unembedding", table, (cfg.vocab_rows, cfg.width), jnp.float32)
        x = gathered(self.layout, embedding.astype(cfg.dtype), "vocab")[tokens]
        if cfg.positions == "learned":
            table = nn.with_logical_partitioning(nn.initializers.normal(cfg.init_std / 2), ("position", "embed"))
            position: Any = self.param("position", table, (cfg.context, cfg.width), jnp.float32)
            x = x + gathered(self.layout, position.astype(cfg.dtype), None)[positions]
        x = nn.Dropout(self.dropout)(x, deterministic=deterministic)
        x = constrained(self.layout, x)

        if cache is None:
            block = Block if cfg.remat == "none" else nn.remat(Block, policy=REMAT[cfg.remat], prevent_cse=False, static_argnums=(4,))
            layers = nn.scan(
                block,
                variable_axes={"params": 0},
                split_rngs={"params": True, "dropout": True},
                in_axes=nn.broadcast,  # pyright: ignore[reportArgumentType]
                length=cfg.layers,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )(cfg, self.layout, self.attention, self.dropout, name="layers")
            x, seen = layers(x, visible, positions, deterministic)
        else:
            weights, pairs = self.get_variable("params", "layers"), []
            for layer, (k, v) in enumerate(zip(cache.k, cache.v, strict=True)):
                own = {"params": jax.tree.map(lambda w, i=layer: w[i], weights, is_leaf=lambda w: isinstance(w, tuple))}
                block = Block(cfg, self.layout, self.attention, parent=None)
                x, pair = block.apply(own, x, visible, positions, True, (k, v, cache.slot))
                pairs.append(pair)
            seen = tuple(zip(*pairs, strict=True))
        return Norm(cfg, name="final_norm")(x), seen
