"""Attention over whole texts, for training and prefill: one function, three kernels.  Decoding one
token uses `attend`.

xla      plain jax, any device and type
cudnn    flash attention of cuDNN through jax.nn.dot_product_attention; GPU, bfloat16
splash   the Pallas kernel of jax.experimental; TPU
"""

import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from instruct_jax.config import ModelConfig
from instruct_jax.ops import masking
from instruct_jax.ops.logprobs import softcap
from instruct_jax.sharding import Layout

LANES = 128  # splash attention reads texts of a multiple of this length


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array,
    scale: float | None = None,
    cap: float | None = None,
) -> jax.Array:
    """softmax(softcap(scale q k)) v with grouped heads; scale None: 1 / sqrt(C).

    q [B, L, H, C], k and v [B, G, S, C], mask [B, 1, L, S] bool -> [B, L, H, C].  The queries of
    the heads that share a group are read as one longer list.  A row whose mask is all False
    (padding) gets a finite value that nobody reads.
    """
    b, l, h, c = q.shape
    groups = k.shape[1]
    share = h // groups
    q = q * (c**-0.5 if scale is None else scale)
    q = q.reshape(b, l, groups, share, c).transpose(0, 2, 3, 1, 4)
    q = q.reshape(b, groups, share * l, c)
    logits = jnp.einsum("bgqc,bgsc->bgqs", q, k, preferred_element_type=jnp.float32)
    logits = softcap(logits, cap)
    mask = jnp.tile(mask, (1, 1, share, 1))
    logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
    highest = logits.max(axis=-1, keepdims=True)
    weights = jnp.exp(logits - jax.lax.stop_gradient(highest))
    y = jnp.einsum(
        "bgqs,bgsc->bgqc", weights.astype(v.dtype), v, preferred_element_type=jnp.float32
    )
    # normalised here: [q, C] is less than [q, S]
    y = y / weights.sum(axis=-1, keepdims=True)
    y = y.astype(v.dtype)
    y = y.reshape(b, groups, share, l, c).transpose(0, 3, 1, 2, 4)
    return y.reshape(b, l, h, c)


def attend_cudnn(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array,
    scale: float | None = None,
) -> jax.Array:
    """`attend` by cuDNN's flash attention; bfloat16 or float16, C a multiple of 8 up to 128 (256 on
    newer devices).
    """
    return jax.nn.dot_product_attention(
        q, k.swapaxes(1, 2), v.swapaxes(1, 2), mask=mask, scale=scale, implementation="cudnn"
    )


def attend_splash(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    visible: tuple[jax.Array, jax.Array],
    kernel: Any,
    scale: float | None = None,
) -> jax.Array:
    """`attend` by splash attention, which makes its own mask: causal, within a segment.

    visible: segments of queries and of keys.
    """
    # a quarter of a second that only TPUs need
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    b, l, h, c = q.shape
    groups = k.shape[1]
    share = h // groups
    q = q * (c**-0.5 if scale is None else scale)
    q = q.reshape(b, l, groups, share, c).transpose(0, 2, 3, 1, 4)
    of_group = jax.vmap(kernel, in_axes=(0, 0, 0, None))  # the heads that share keys and values

    def of_row(q, k, v, own, seen):
        return of_group(q, k, v, splash.SegmentIds(own, seen))

    y = jax.vmap(of_row)(q, k, v, *visible)
    return y.transpose(0, 3, 1, 2, 4).reshape(b, l, h, c)


def splash_kernel(
    length: int,
    heads: int,
    parts: int,
    window: int | None = None,
    cap: float | None = None,
) -> Any:
    """Causal attention of `heads` query heads to one head of keys and values, where the queries lie
    in `parts` parts.
    """
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    rows = length // parts
    blocks = (LANES, 2 * LANES, 4 * LANES)
    block = max(size for size in blocks if rows % size == 0)
    sizes = splash.BlockSizes(block, block, block, block, block, block, block, block)
    shape = (length, length)
    if window is None:
        mask = splash.CausalMask(shape)
    else:
        mask = splash.LocalMask(shape, (window - 1, 0), 0)
    return splash.make_splash_mqa(
        splash.MultiHeadMask([mask] * heads),
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=parts,
        attn_logits_soft_cap=cap,
    )


class Visible(NamedTuple):
    """What each query may see: without a window and, where some layers have one, with it."""

    whole: Any
    local: Any = None

    def of_layer(self, local: bool | jax.Array) -> jax.Array:
        """The mask of a layer that has the window, or has it not."""
        if self.local is None:
            return self.whole
        return jnp.where(local, self.local, self.whole)


class Attention(NamedTuple):
    """(q [B, L, H, C], k and v [B, G, L, C], visible, local) -> [B, L, H, C], where visible =
    prepare(segments [B, L]) and `local` says whether this layer has the window.

    On a mesh every device has its own rows, heads and part of the queries; keys and values are
    gathered over the parts of the sequence.
    """

    kind: Literal["xla", "cudnn", "splash"] = "xla"
    layout: Layout | None = None
    scale: float | None = None
    cap: float | None = None
    window: int | None = None

    @property
    def multiple(self) -> int:
        """L must be a multiple of this."""
        return self._parts * (LANES if self.kind == "splash" else 1)

    @property
    def _parts(self) -> int:
        return 1 if self.layout is None else self.layout.parts("sequence")

    def prepare(self, segments: jax.Array) -> Visible:
        """Made once for all layers."""
        if self.kind == "splash":
            return Visible((segments, segments))
        local = None
        if self.window is not None:
            local = masking.attention_mask(segments, self.window)
        return Visible(masking.attention_mask(segments), local)

    def seen_by(self, mask: jax.Array, slot: jax.Array) -> Visible:
        """The same of one token in `slot`, with a cache [B, S] of which mask is True where there
        are tokens.
        """
        if self.window is None:
            return Visible(mask[:, None, None])
        distance = slot - jnp.arange(mask.shape[1])
        near = distance < self.window
        local = mask & near[None]
        return Visible(mask[:, None, None], local[:, None, None])

    def decode(
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        visible: Visible,
        local: bool | jax.Array,
    ) -> jax.Array:
        """Of one token; every kernel is as fast as this one."""
        return attend(q, k, v, visible.of_layer(local), self.scale, self.cap)

    def __call__(
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        visible: Visible,
        local: bool | jax.Array = False,
    ) -> jax.Array:
        if self.kind != "splash":
            return self._on_mesh(q, k, v, visible.of_layer(local), None)
        _, length, heads, _ = q.shape
        share = heads // k.shape[1]
        causal = splash_kernel(length, share, self._parts, cap=self.cap)
        if self.window is None:
            return self._on_mesh(q, k, v, visible.whole, causal)
        near = splash_kernel(length, share, self._parts, self.window, cap=self.cap)
        whole = functools.partial(self._on_mesh, kernel=causal)
        windowed = functools.partial(self._on_mesh, kernel=near)
        return jax.lax.cond(local, windowed, whole, q, k, v, visible.whole)

    def _on_mesh(
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        seen: Any,
        kernel: Any,
    ) -> jax.Array:
        layout = self.layout
        if layout is None or layout.mesh.size == 1:
            return self._attend(q, k, v, seen, kernel)
        spec = lambda *axes: layout.sharding(*axes).spec  # noqa: E731
        queries = spec("batch", "sequence", "heads", None)
        keys = spec("batch", "kv_heads", "sequence", None)
        if kernel:
            visible = (spec("batch", "sequence"), spec("batch", None))
            of_kernel = kernel.manual_sharding_spec(layout.sharding(None, "sequence"))
        else:
            visible = spec("batch", None, "sequence", None)
            of_kernel = None

        def on_each(q, k, v, seen, kernel):
            if self._parts > 1:
                sequence = layout.rules["sequence"]
                k = jax.lax.all_gather(k, sequence, axis=2, tiled=True)
                v = jax.lax.all_gather(v, sequence, axis=2, tiled=True)
            return self._attend(q, k, v, seen, kernel)

        on_all = jax.shard_map(
            on_each,
            mesh=layout.mesh,
            in_specs=(queries, keys, keys, visible, of_kernel),
            out_specs=queries,
            check_vma=False,
        )
        return on_all(q, k, v, seen, kernel)

    def _attend(
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        seen: Any,
        kernel: Any,
    ) -> jax.Array:
        """On one device."""
        if self.kind == "splash":
            return attend_splash(q, k, v, seen, kernel, self.scale)
        if self.kind == "cudnn":
            return attend_cudnn(q, k, v, seen, self.scale)
        return attend(q, k, v, seen, self.scale, self.cap)


def make_attention(config: ModelConfig, layout: Layout | None) -> Attention:
    """The kernel that the config asks for; auto takes the best one that the platform of the mesh
    has for this model.
    """
    kind = config.attention
    if kind == "auto":
        platform = "cpu" if layout is None else layout.mesh.devices.flat[0].platform
        fits = (
            config.dtype == "bfloat16"
            and config.head_size % 8 == 0
            and config.head_size <= 128
            and config.attention_softcap is None
        )
        kind = "xla"
        if platform == "tpu":
            kind = "splash"
        if platform == "gpu" and fits:
            kind = "cudnn"
    return Attention(
        kind=kind,
        layout=layout,
        scale=config.query_scale,
        cap=config.attention_softcap,
        window=config.window,
    )
