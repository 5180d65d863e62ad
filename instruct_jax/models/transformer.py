"""The decoder.  One module serves training, prefill and decoding, so the sampler and the learner
run the same forward pass.

Layers are scanned, so compile time does not grow with depth.  Parameters are float32, activations
`config.dtype`; norms and softmax are computed in float32.  The logical axis names beside each
initialiser are mapped to mesh axes in `sharding.py`.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct

from instruct_jax.config import LoraConfig, ModelConfig
from instruct_jax.models.attention import Attention
from instruct_jax.models.lora import Adapter
from instruct_jax.ops import rotary
from instruct_jax.sharding import Layout

ACTIVATIONS = {
    "gelu": nn.gelu,
    "gelu_exact": functools.partial(nn.gelu, approximate=False),
    "relu": nn.relu,
    "silu": nn.silu,
}
REMAT = {"dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable, "full": None}


@struct.dataclass
class KVCache:
    """Keys and values of all tokens so far; slot s of every row is written at the same time."""

    # N of [B, G, S, C] config.dtype; apart, because a slice of one array would be copied at every
    # token
    k: tuple[jax.Array, ...]
    v: tuple[jax.Array, ...]  # N of [B, G, S, C] config.dtype
    mask: jax.Array  # [B, S] bool, True = real token
    slot: jax.Array  # [] int32, the next slot to write


class Facts(NamedTuple):
    """What is not the same in every layer; arrays [N] where layers are scanned."""

    layer: Any  # its number, from 0
    local: Any  # has it the window?


def rotary_tables(config: ModelConfig) -> tuple[np.ndarray, np.ndarray, float]:
    """Frequencies of whole layers and of those with a window, and the factor of what is rotated."""
    base = config.rotary_base
    scaling = config.rope_scaling
    plain = rotary.frequencies(config.rotated, base)
    local = plain
    if config.local_rotary_base is not None:
        local = rotary.frequencies(config.rotated, config.local_rotary_base)
    if scaling is None:
        return plain, local, 1.0
    context = scaling.original_context
    factor = 1.0
    if scaling.kind == "linear":
        whole = plain / np.float32(scaling.factor)
    elif scaling.kind == "llama3":
        whole = rotary.stretch_llama3(
            plain, scaling.factor, context, scaling.low_frequency, scaling.high_frequency
        )
    else:
        whole = rotary.stretch_yarn(
            plain, base, scaling.factor, context, scaling.beta_fast, scaling.beta_slow
        )
        factor = scaling.attention_factor
        if factor is None:
            factor = 0.1 * math.log(scaling.factor) + 1
    if config.local_rotary_base is None:
        local = whole
    return whole, local, factor


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)).  Returns x and the keys and values [B, G, S,
    C] that were attended to.

    Where the config says so, norms stand elsewhere, and attention and MLP read the same x.
    """

    config: ModelConfig
    layout: Layout | None
    attention: Attention
    dropout: float = 0.0
    lora: LoraConfig | None = None

    def _project(
        self,
        name: str,
        x,
        features: tuple[int, ...],
        axes: tuple[str, ...],
        bias: bool,
        deterministic,
        std=None,
        bias_std=0.0,
    ):
        """A projection whose kernel has these logical axis names, with its adapter where the
        parameters have one.
        """
        cfg = self.config
        contract = len(axes) - len(features)
        kernel_init = nn.initializers.normal(cfg.init_std if std is None else std)
        bias_init = nn.initializers.normal(bias_std) if bias_std else nn.initializers.zeros
        dense = nn.DenseGeneral(
            features,
            axis=tuple(range(-contract, 0)),
            use_bias=bias,
            dtype=cfg.dtype,
            kernel_init=nn.with_logical_partitioning(kernel_init, axes),
            bias_init=nn.with_logical_partitioning(bias_init, axes[contract:]),
            name=name,
        )
        y = dense(x)
        lora = self.lora
        if lora is None or name not in lora.targets:
            return y
        adapter = f"{name}_lora"
        if not (self.is_initializing() or self.has_variable("params", adapter)):
            return y
        low_rank = Adapter(lora, features, axes, cfg.dtype, name=adapter)
        return y + low_rank(x, deterministic)

    @nn.compact
    def __call__(self, x, visible, positions, deterministic, facts, past=None):
        """past: keys and values so far and the slot where those of x go; None if x is all there
        is.  visible: what each query may see, as self.attention has it.
        """
        cfg = self.config
        before = cfg.norm_place != "post"
        after = cfg.norm_place != "pre"

        read = Norm(cfg, name="attention_norm")(x) if before else x
        y, seen = self._attend(read, visible, positions, deterministic, facts, past)
        if after:
            y = Norm(cfg, name="attention_out_norm")(y)
        between = x if cfg.parallel else self._residual(x, y, deterministic)
        read = Norm(cfg, name="mlp_norm")(between) if before else between
        z = self._mlp(read, deterministic)
        if after:
            z = Norm(cfg, name="mlp_out_norm")(z)
        if cfg.parallel:
            z = y + z
        return self._residual(between, z, deterministic), seen

    def _attend(self, x, visible, positions, deterministic, facts, past):
        cfg = self.config
        bias = cfg.bias if cfg.qkv_bias is None else cfg.qkv_bias
        q = self._project(
            "q",
            x,
            features=(cfg.heads, cfg.head_size),
            axes=("embed", "heads", "head"),
            bias=bias,
            deterministic=deterministic,
            bias_std=cfg.qk_bias_std,
        )
        k = self._project(
            "k",
            x,
            features=(cfg.groups, cfg.head_size),
            axes=("embed", "kv_heads", "head"),
            bias=bias,
            deterministic=deterministic,
            bias_std=cfg.qk_bias_std,
        )
        v = self._project(
            "v",
            x,
            features=(cfg.groups, cfg.head_size),
            axes=("embed", "kv_heads", "head"),
            bias=bias,
            deterministic=deterministic,
        )
        if cfg.qk_norm != "none":
            normed = 1 if cfg.qk_norm == "head" else 2  # axes that are normed together
            q = Norm(cfg, ("heads", "head")[-normed:], name="q_norm")(q)
            k = Norm(cfg, ("kv_heads", "head")[-normed:], name="k_norm")(k)
        if cfg.positions == "rotary":
            whole, local, factor = rotary_tables(cfg)
            frequency = jnp.where(facts.local, local, whole)
            q = rotary.rotate(q, positions, frequency, factor)
            k = rotary.rotate(k, positions, frequency, factor)
        if cfg.scale_by_layer:
            q = q / jnp.asarray(facts.layer + 1, q.dtype)
        k = k.swapaxes(1, 2)
        v = v.swapaxes(1, 2)
        if past is None:
            y = self.attention(q, k, v, visible, facts.local)
        else:
            past_k, past_v, slot = past
            start = (0, 0, slot, 0)
            k = jax.lax.dynamic_update_slice(past_k, k, start)
            v = jax.lax.dynamic_update_slice(past_v, v, start)
            y = self.attention.decode(q, k, v, visible, facts.local)
        y = self._project(
            "out",
            y,
            features=(cfg.width,),
            axes=("heads", "head", "embed"),
            bias=cfg.bias,
            deterministic=deterministic,
            std=self._residual_std,
        )
        return y, (k, v)

    def _mlp(self, x, deterministic):
        cfg = self.config
        bias = cfg.bias if cfg.mlp_bias is None else cfg.mlp_bias
        act = ACTIVATIONS[cfg.activation]
        wide = (cfg.mlp_size,)
        axes = ("embed", "mlp")
        up = self._project("up", x, wide, axes, bias, deterministic)
        if cfg.gated:
            gate = self._project("gate", x, wide, axes, bias, deterministic)
            up = act(gate) * up
        else:
            up = act(up)
        return self._project(
            "down",
            up,
            features=(cfg.width,),
            axes=("mlp", "embed"),
            bias=bias,
            deterministic=deterministic,
            std=self._residual_std,
        )

    @property
    def _residual_std(self) -> float:
        return self.config.init_std * (2 * self.config.layers) ** -0.5

    def _residual(self, x, y, deterministic):
        y = nn.Dropout(self.dropout)(y, deterministic=deterministic)
        return constrained(self.layout, x + y)


def _words(config: ModelConfig) -> nn.initializers.Initializer:
    """Of an embedding; the rows that only make its size rounder are 0, as an import has them."""

    def init(key, shape, dtype=jnp.float32):
        table = nn.initializers.normal(config.init_std)(key, shape, dtype)
        return table.at[config.vocab_size :].set(0)

    return init


def constrained(layout: Layout | None, x: jax.Array) -> jax.Array:
    """Pins the states [B, L, D] of a text, or [B, 1, D] of one token, to the mesh."""
    if layout is None:
        return x
    if x.shape[1] == 1:
        return layout.constrain(x, "rows", None, None)
    return layout.constrain(x, "batch", "sequence", None)


def gathered(layout: Layout | None, table: jax.Array, rows: str | None) -> jax.Array:
    """A table [rows, D] with whole rows on every device: looked up or multiplied split along D, it
    would spread the states along D too.
    """
    return table if layout is None else layout.constrain(table, rows, None)


class Norm(nn.Module):
    """LayerNorm or RMSNorm over the last axes, which have these logical names; computed
    in float32.
    """

    config: ModelConfig
    axes: tuple[str, ...] = ("norm",)

    @nn.compact
    def __call__(self, x):
        cfg = self.config
        normed = len(self.axes)
        over = tuple(range(-normed, 0))

        def weight(name: str, value: float) -> Any:
            init = nn.with_logical_partitioning(nn.initializers.constant(value), self.axes)
            return self.param(name, init, x.shape[-normed:], jnp.float32)

        y = x.astype(jnp.float32)
        if cfg.norm == "layernorm":
            y = y - y.mean(over, keepdims=True)
        mean_square = jnp.square(y).mean(over, keepdims=True)
        y = y * jax.lax.rsqrt(mean_square + cfg.norm_eps)
        scale = weight("scale", 1 - cfg.norm_offset) + cfg.norm_offset
        y = y * scale[(None,) * (x.ndim - normed)]
        if cfg.norm == "layernorm":
            y = y + weight("bias", 0.0)[None, None]
        return y.astype(cfg.dtype)


class Transformer(nn.Module):
    """Tokens to the normed hidden states of the last layer."""

    config: ModelConfig
    layout: Layout | None
    attention: Attention
    dropout: float = 0.0  # on every residual branch and on the embeddings (paper C.1)
    lora: LoraConfig | None = None
    lower: int = 0  # so many of the first layers have parameters of their own, lower_layers

    @nn.compact
    def __call__(
        self,
        tokens,
        visible,
        positions,
        cache: KVCache | None = None,
        *,
        deterministic: bool = True,
    ):
        """tokens, positions [B, L] int32, visible as in Block -> hidden [B, L, D], (keys, values).

        Without a cache keys and values are one array [N, B, G, L, C] each; with one they are as in
        KVCache.
        """
        cfg = self.config
        table = nn.with_logical_partitioning(_words(cfg), ("vocab", "embed"))
        embedding: Any = self.param("embedding", table, (cfg.vocab_rows, cfg.width), jnp.float32)
        if not cfg.tied and self.is_initializing():
            self.param("unembedding", table, (cfg.vocab_rows, cfg.width), jnp.float32)
        x = gathered(self.layout, embedding.astype(cfg.dtype), "vocab")[tokens]
        if cfg.scale_embedding:
            x = x * jnp.asarray(cfg.width**0.5, x.dtype)
        if cfg.positions == "learned":
            normal = nn.initializers.normal(cfg.init_std / 2)
            table = nn.with_logical_partitioning(normal, ("position", "embed"))
            rows = cfg.context + cfg.position_offset
            position: Any = self.param("position", table, (rows, cfg.width), jnp.float32)
            places = gathered(self.layout, position.astype(cfg.dtype), None)
            x = x + places[positions + cfg.position_offset]
        x = nn.Dropout(self.dropout)(x, deterministic=deterministic)
        x = constrained(self.layout, x)

        local = [
            cfg.window is not None and layer not in cfg.full_layers for layer in range(cfg.layers)
        ]
        parts = [("lower_layers", 0, self.lower)] if self.lower else []
        parts.append(("layers", self.lower, cfg.layers))
        pairs = []
        for name, first, end in parts:
            if cache is None:
                facts = Facts(
                    layer=jnp.arange(first, end),
                    local=jnp.array(local[first:end]),
                )
                layers = self._scanned(name, end - first)
                x, pair = layers(x, visible, positions, deterministic, facts)
                pairs.append(pair)
                continue
            weights = self.get_variable("params", name)
            for layer in range(first, end):
                own = jax.tree.map(
                    lambda w, i=layer - first: w[i],
                    weights,
                    is_leaf=lambda w: isinstance(w, tuple),
                )
                block = Block(
                    config=cfg,
                    layout=self.layout,
                    attention=self.attention,
                    lora=self.lora,
                    parent=None,
                )
                facts = Facts(layer, local[layer])
                past = cache.k[layer], cache.v[layer], cache.slot
                x, pair = block.apply({"params": own}, x, visible, positions, True, facts, past)
                pairs.append(pair)
        k, v = zip(*pairs, strict=True)
        if cache:
            seen = k, v
        elif len(pairs) == 1:
            seen = k[0], v[0]
        else:
            seen = jnp.concatenate(k), jnp.concatenate(v)
        return Norm(cfg, name="final_norm")(x), seen

    def _scanned(self, name: str, length: int) -> Any:
        """So many layers, whose parameters lie in one stack."""
        cfg = self.config
        block = Block
        if cfg.remat != "none":
            block = nn.remat(
                Block,
                policy=REMAT[cfg.remat],
                prevent_cse=False,
                static_argnums=(4,),
            )
        stack = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(nn.broadcast, nn.broadcast, nn.broadcast, 0),  # pyright: ignore[reportArgumentType]
            length=length,
            metadata_params={nn.PARTITION_NAME: "layers"},
            check_constancy_invariants=False,  # which traces the block a second time
        )
        return stack(
            config=cfg,
            layout=self.layout,
            attention=self.attention,
            dropout=self.dropout,
            lora=self.lora,
            name=name,
        )
