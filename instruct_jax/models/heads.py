"""The unembedding replaced by a scalar (paper 3.5): reward model and value function."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from instruct_jax.models.lm import LanguageModel
from instruct_jax.models.lora import backbone_of
from instruct_jax.ops import masking
from instruct_jax.records import Array, Params


class ScalarModel(NamedTuple):
    """params = {"backbone": the language model's tree without unembedding, "head": {"kernel": [D],
    "bias": []}}.
    """

    lm: LanguageModel

    def init(self, key: jax.Array) -> Params:
        """Fresh parameters, boxed with their logical axis names."""
        backbone_key, head_key = jax.random.split(key)
        backbone = backbone_of(self.lm.init(backbone_key))
        head = self.init_head(head_key)
        return {"backbone": backbone, "head": head}

    def init_head(self, key: jax.Array) -> Params:
        """A head to put on a trained backbone: kernel ~ N(0, 1/(D+1)), bias 0 (Stiennon et al.

        2020); boxed.
        """
        width = self.lm.config.width
        std = (width + 1) ** -0.5
        kernel = jax.random.normal(key, (width,), jnp.float32) * std
        bias = jnp.zeros((), jnp.float32)
        return {
            "kernel": nn.LogicallyPartitioned(kernel, ("norm",)),
            "bias": nn.LogicallyPartitioned(bias, ()),
        }

    def values(
        self,
        params: Params,
        tokens: Array,
        segments: Array,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """One f32 scalar per position of rows [B, L], read *after* token t.

        `key` turns the dropout of adapters on.
        """
        hidden = self.lm.hidden(params["backbone"], tokens, segments, key=key)
        hidden = hidden.astype(jnp.float32)
        head = params["head"]
        return jnp.einsum("bld,d->bl", hidden, head["kernel"]) + head["bias"]

    def score(
        self,
        params: Params,
        tokens: Array,
        mask: Array,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """Reward [B] f32 of rows [B, L], read at the last real token (wherever the
        padding stands).
        """
        values = self.values(params, tokens, mask.astype(jnp.int32), key)
        last = masking.last_index(mask)
        return jnp.take_along_axis(values, last[:, None], axis=1)[:, 0]


def recentred(params: Params, mean: float | jax.Array, scale: float | jax.Array) -> Params:
    """The same scalar model with its output mapped to (output - mean) / scale; stored in the head,
    nothing to remember.
    """
    head = params["head"]
    kernel = head["kernel"] / scale
    bias = (head["bias"] - mean) / scale
    return {**params, "head": {"kernel": kernel, "bias": bias}}
