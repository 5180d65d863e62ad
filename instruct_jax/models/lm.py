"""The seam between models and stages: pure functions over a plain dict of parameters.

Nothing above this floor imports flax.linen.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from instruct_jax.config import LoraConfig, ModelConfig
from instruct_jax.models.attention import Attention, make_attention
from instruct_jax.models.transformer import KVCache, Transformer, gathered
from instruct_jax.ops import masking
from instruct_jax.ops.logprobs import softcap, token_logprobs
from instruct_jax.records import Array, Params, PromptBatch
from instruct_jax.sharding import Layout


class LanguageModel(NamedTuple):
    """A decoder-only language model.

    `params` is {"transformer": ...}: the same tree in every function.
    """

    config: ModelConfig
    layout: Layout | None = None  # where activations lie; None = one device
    # of the adapters in the parameters; parameters without them are read without
    lora: LoraConfig | None = None
    lower: int = 0  # so many of the first layers lie in "lower_layers", the others in "layers"
    never: tuple[int, ...] = ()  # ids that are never drawn: the tokenizer does not have them

    @property
    def adapter_dropout(self) -> bool:
        return self.lora is not None and self.lora.dropout > 0

    def init(self, key: jax.Array) -> Params:
        """Parameters, each boxed with its logical axis names (sharding.create_sharded unboxes
        them).
        """
        tokens = jnp.zeros((1, 2), jnp.int32)
        attention = self._plain
        visible = attention.prepare(tokens)
        module = Transformer(
            config=self.config,
            layout=None,
            attention=attention,
            lora=self.lora,
            lower=self.lower,
        )
        variables = module.init(key, tokens, visible, tokens)
        return variables["params"]

    def hidden(
        self,
        params: Params,
        tokens: Array,
        segments: Array,
        *,
        dropout: float = 0.0,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """Hidden states [B, L, D] of rows [B, L]; segment 0 is padding, wherever it stands.

        `key` turns all dropout on.
        """
        hidden, _ = self._read(
            params,
            tokens,
            segments,
            dropout=dropout,
            deterministic=key is None,
            rngs=None if key is None else {"dropout": key},
        )
        return hidden[:, : tokens.shape[1]]

    def _read(self, params: Params, tokens: Array, segments: Array, **options: Any) -> Any:
        """Hidden states, keys and values of rows [B, L], with padding behind them where the
        attention wants a rounder L.
        """
        attention = make_attention(self.config, self.layout)
        behind = ((0, 0), (0, -tokens.shape[1] % attention.multiple))
        tokens = jnp.pad(tokens, behind)
        segments = jnp.pad(segments, behind)
        visible = attention.prepare(segments)
        positions = masking.positions(segments)
        return self._run(attention, params, tokens, visible, positions, **options)

    @property
    def _plain(self) -> Attention:
        """Attention as any device can compute it."""
        return make_attention(dataclasses.replace(self.config, attention="xla"), None)

    def _run(
        self,
        attention: Attention,
        params: Params,
        *inputs: Any,
        dropout: float = 0.0,
        **options: Any,
    ) -> Any:
        module = Transformer(
            config=self.config,
            layout=self.layout,
            attention=attention,
            dropout=dropout,
            lora=self.lora,
            lower=self.lower,
        )
        return module.apply({"params": params}, *inputs, **options)

    def unembedding(self, params: Params) -> jax.Array:
        """The [V, D] matrix that turns hidden states into logits."""
        return params["embedding" if self.config.tied else "unembedding"]

    def logprobs(
        self,
        params: Params,
        hidden: jax.Array,
        targets: Array,
        *,
        temperature: float = 1.0,
        never: tuple[int, ...] = (),
    ) -> tuple[jax.Array, jax.Array]:
        """log p(target) and entropy in nats, f32, of hidden states [B, L, D], targets [B, L] under
        softmax(logits / temperature), in which the tokens `never` have probability 0.
        """
        cfg = self.config
        layout = self.layout
        read = functools.partial(
            token_logprobs,
            temperature=temperature,
            chunk=cfg.logprob_chunk,
            vocab=cfg.vocab_size,
            never=never,
            cap=cfg.logit_softcap,
        )
        if layout is None or layout.parts("batch") * layout.parts("sequence") == 1:
            return read(hidden, self.unembedding(params), targets)
        # Every device reads its own positions, so the gradient of the unembedding is summed over
        # devices once, not once per chunk.
        length = targets.shape[1]
        more = -length % layout.parts("sequence")
        hidden = jnp.pad(hidden, ((0, 0), (0, more), (0, 0)))
        targets = jnp.pad(targets, ((0, 0), (0, more)))
        positions = layout.sharding("batch", "sequence").spec
        states = layout.sharding("batch", "sequence", None).spec
        own = jax.shard_map(
            read,
            mesh=layout.mesh,
            in_specs=(states, jax.sharding.PartitionSpec(), positions),
            out_specs=(positions, positions),
            axis_names=set(layout.rules["batch"] + layout.rules["sequence"]),
            check_vma=False,
        )
        weight = gathered(layout, self.unembedding(params), "vocab")
        logp, entropy = own(hidden, weight, targets)
        return logp[:, :length], entropy[:, :length]

    def logits(self, params: Params, hidden: jax.Array) -> jax.Array:
        """[B, V] f32 logits of the next token after hidden states [B, D]; those of the ids in
        `never` are -inf.
        """
        weight = self.unembedding(params).astype(hidden.dtype)
        logits = jnp.einsum("bd,vd->bv", hidden, weight, preferred_element_type=jnp.float32)
        logits = logits[:, : self.config.vocab_size]
        logits = softcap(logits, self.config.logit_softcap)
        if self.never:
            logits = logits.at[:, np.array(self.never)].set(-jnp.inf)
        return logits

    def prefill(
        self,
        params: Params,
        prompts: PromptBatch,
        length: int,
    ) -> tuple[jax.Array, KVCache]:
        """Reads left-padded prompts [B, P].

        Returns the last hidden state [B, D] and a cache with `length` slots.
        """
        segments = prompts.mask.astype(jnp.int32)
        hidden, (k, v) = self._read(params, prompts.tokens, segments)
        prompt = prompts.tokens.shape[1]
        free = (0, length - prompt)

        def held(layer):
            layer = layer[:, :, :prompt]
            layer = jnp.pad(layer, ((0, 0), (0, 0), free, (0, 0)))
            return self._held(layer)

        k = tuple(held(layer) for layer in k)
        v = tuple(held(layer) for layer in v)
        mask = jnp.pad(prompts.mask, ((0, 0), free))
        last = hidden[:, prompt - 1]
        slot = jnp.asarray(prompt, jnp.int32)
        return last, KVCache(k, v, mask, slot)

    def _held(self, layer: jax.Array) -> jax.Array:
        """Keys or values [B, G, S, C] of a cache, pinned to the mesh."""
        if self.layout is None:
            return layer
        return self.layout.constrain(layer, "rows", "kv_heads", None, None)

    def cast(self, params: Params) -> Params:
        """The weights in config.dtype, as the forward pass reads them, norms as they are: half the
        bytes for whoever only reads.
        """

        def cast(path, x):
            of_norm = any("norm" in entry.key for entry in path)
            return x if of_norm else x.astype(self.config.dtype)

        return jax.tree_util.tree_map_with_path(cast, params)

    def unstacked(self, params: Params) -> Params:
        """The same parameters for `decode` and `logits`, layers apart, weights in config.dtype:
        made once for all tokens.
        """
        params = self.cast(params)
        return {
            name: jax.tree.map(tuple, part) if name.endswith("layers") else part
            for name, part in params.items()
        }

    def decode(
        self,
        params: Params,
        cache: KVCache,
        tokens: jax.Array,
    ) -> tuple[jax.Array, KVCache]:
        """Appends one token [B] to every row.

        Returns its hidden state [B, D] and the cache.  params: plain or unstacked.
        """
        attention = self._plain
        positions = cache.mask.sum(-1, dtype=jnp.int32)[:, None]
        real = jnp.ones((tokens.shape[0], 1), bool)
        seen = jax.lax.dynamic_update_slice(cache.mask, real, (0, cache.slot))
        column = tokens[:, None]
        visible = attention.seen_by(seen, cache.slot)
        hidden, (k, v) = self._run(attention, params, column, visible, positions, cache)
        last = hidden[:, 0]
        return last, KVCache(k, v, seen, cache.slot + 1)


def parameter_count(params: Params) -> int:
    """Number of scalars in a tree of (abstract) arrays."""
    return sum(x.size for x in jax.tree.leaves(nn.unbox(params)))
