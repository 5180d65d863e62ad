"""The seam between models and stages: pure functions over a plain dict of parameters.  Nothing above this floor imports flax.linen."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from instruct_jax.config import ModelConfig
from instruct_jax.models.transformer import Constrain, KVCache, Transformer
from instruct_jax.ops import masking
from instruct_jax.ops.logprobs import token_logprobs
from instruct_jax.records import Params, PromptBatch


def unconstrained(x: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
    """The layout hint of a model on one device: none."""
    return x


class LanguageModel(NamedTuple):
    """A decoder-only language model.  `params` is {"transformer": ...}: the same tree in every function."""

    config: ModelConfig
    constrain: Constrain = unconstrained  # pins activations to the mesh; see sharding.constrain

    def init(self, key: jax.Array) -> Params:
        """Parameters, each boxed with its logical axis names (sharding.create_sharded unboxes them)."""
        tokens = jnp.zeros((1, 2), jnp.int32)
        mask = jnp.ones((1, 1, 2, 2), bool)
        return Transformer(self.config, self.constrain).init(key, tokens, mask, tokens)["params"]

    def hidden(
        self, params: Params, tokens: jax.Array, segments: jax.Array, *, dropout: float = 0.0, key: jax.Array | None = None
    ) -> jax.Array:
        """Hidden states [B, L, D] of rows [B, L]; segment 0 is padding, wherever it stands.  `key` turns dropout on."""
        rngs = None if key is None else {"dropout": key}
        mask, positions = masking.attention_mask(segments), masking.positions(segments)
        return self._run(params, tokens, mask, positions, dropout=dropout, deterministic=key is None, rngs=rngs)[0]

    def _run(self, params: Params, *inputs: Any, dropout: float = 0.0, **options: Any) -> Any:
        return Transformer(self.config, self.constrain, dropout).apply({"params": params}, *inputs, **options)

    def unembedding(self, params: Params) -> jax.Array:
        """The [V, D] matrix that turns hidden states into logits."""
        return params["embedding" if self.config.tied else "unembedding"]

    def logprobs(self, params: Params, hidden: jax.Array, targets: jax.Array, *, temperature: float = 1.0) -> tuple[jax.Array, jax.Array]:
        """log p(target) and entropy in nats, f32, of hidden states [..., D], targets [...] under softmax(logits / temperature)."""
        return token_logprobs(hidden, self.unembedding(params), targets, temperature=temperature, chunk=self.config.logprob_chunk)

    def logits(self, params: Params, hidden: jax.Array) -> jax.Array:
        """[B, V] f32 logits of one position per row [B, D]."""
        weight = self.unembedding(params).astype(hidden.dtype)
        return jnp.einsum("bd,vd->bv", hidden, weight, preferred_element_type=jnp.float32)

    def prefill(self, params: Params, prompts: PromptBatch, length: int) -> tuple[jax.Array, KVCache]:
        """Reads left-padded prompts [B, P].  Returns the last hidden state [B, D] and a cache with `length` slots."""
        segments = prompts.mask.astype(jnp.int32)
        mask, positions = masking.attention_mask(segments), masking.positions(segments)
        hidden, seen = self._run(params, prompts.tokens, mask, positions)
        prompt = prompts.tokens.shape[1]
        free = ((0, 0), (0, 0), (0, length - prompt), (0, 0))
        k, v = (tuple(jnp.pad(layer, free) for layer in x) for x in seen)
        return hidden[:, -1], KVCache(k, v, jnp.pad(prompts.mask, ((0, 0), (0, length - prompt))), jnp.asarray(prompt, jnp.int32))

    def unstacked(self, params: Params) -> Params:
        """The same parameters for `decode` and `logits`, layers apart, weights in config.dtype: made once for all tokens."""

        def cast(path, x: jax.Array) -> jax.Array:
            return x if any("norm" in entry.key for entry in path) else x.astype(self.config.dtype)

        params = jax.tree_util.tree_map_with_path(cast, params)
        return {**params, "layers": jax.tree.map(tuple, params["layers"])}

    def decode(self, params: Params, cache: KVCache, tokens: jax.Array) -> tuple[jax.Array, KVCache]:
        """Appends one token [B] to every row.  Returns its hidden state [B, D] and the cache.  params: plain or unstacked."""
        positions = cache.mask.sum(-1, dtype=jnp.int32)[:, None]
        seen = jax.lax.dynamic_update_slice(cache.mask, jnp.ones((tokens.shape[0], 1), bool), (0, cache.slot))
        hidden, (k, v) = self._run(params, tokens[:, None], seen[:, None, None, :], positions, cache)
        return hidden[:, 0], KVCache(k, v, seen, cache.slot + 1)


def parameter_count(params: Params) -> int:
    """Number of scalars in a tree of (abstract) arrays."""
    return sum(x.size for x in jax.tree.leaves(nn.unbox(params)))
