"""Low-rank adapters (Hu et al. 2021, arXiv:2106.09685): beside a projection x W lies alpha / rank *
(x A) B, and only A and B are trained.

Adapters are parts of the parameters whose names end in _lora.  A tree without them is the model
with its adapters off.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from instruct_jax.config import LoraConfig
from instruct_jax.records import Params


class Adapter(nn.Module):
    """alpha / rank * (x A) B over the last axes of x, whose logical names `axes` begins with."""

    lora: LoraConfig
    features: tuple[int, ...]
    axes: tuple[str, ...]
    dtype: str

    @nn.compact
    def __call__(self, x, deterministic):
        contract = len(self.axes) - len(self.features)
        into, rank = x.shape[-contract:], self.lora.rank
        bound = math.prod(into) ** -0.5  # as peft begins

        def uniform(key, shape, dtype=jnp.float32):
            return jax.random.uniform(key, shape, dtype, -bound, bound)

        init = nn.with_logical_partitioning(uniform, (*self.axes[:contract], "rank"))
        a: Any = self.param("a", init, (*into, rank), jnp.float32)
        init = nn.with_logical_partitioning(nn.initializers.zeros, ("rank", *self.axes[contract:]))
        b: Any = self.param("b", init, (rank, *self.features), jnp.float32)
        x = nn.Dropout(self.lora.dropout)(x, deterministic=deterministic)
        low = jnp.tensordot(x, a.astype(self.dtype), contract) * (self.lora.alpha / rank)
        return jnp.tensordot(low, b.astype(self.dtype), 1)


def split(params: Params, *, adapters: bool = True) -> tuple[Params, Params]:
    """(what stays as it is, what is trained); join is the inverse.  Trained are adapters and scalar
    heads; with adapters=False all but the lower layers."""
    frozen, trained = {}, {}
    for name, part in params.items():
        if name.endswith("_lora") or name == "head":
            trained[name] = part
        elif name == "lower_layers" and not adapters:
            frozen[name] = part
        elif isinstance(part, dict):
            below = split(part, adapters=adapters)
            for side, own in zip((frozen, trained), below, strict=True):
                side |= {name: own} if own else {}
        else:
            (frozen if adapters else trained)[name] = part
    return frozen, trained


def join(base: Params | None, params: Params) -> Params:
    """Both trees in one; the arrays are the same, those of params where both have one."""
    if not isinstance(base, dict) or not base:
        return params
    both = {name: join(base[name], params[name]) for name in base.keys() & params.keys()}
    return {**base, **params, **both}


def backbone_of(params: Params) -> Params:
    """The language model's parameters without its unembedding, which no scalar model reads."""
    return {name: part for name, part in params.items() if name != "unembedding"}


def scalar_base(base: Params | None) -> Params:
    """The frozen part of a scalar model on the same base; {} where there is none."""
    return {"backbone": backbone_of(base)} if base else {}


def merged(params: Params, lora: LoraConfig | None) -> Params:
    """The same function without adapters: W + alpha / rank * A B, float32.

    The identity where there are none.
    """
    if lora is None:
        return params
    layers = {name: part for name, part in params["layers"].items() if not name.endswith("_lora")}
    for name, part in params["layers"].items():
        if name.endswith("_lora"):
            own = layers[name.removesuffix("_lora")]
            change = jax.vmap(lambda a, b: jnp.tensordot(a, b, 1))(part["a"], part["b"]) * (
                lora.alpha / lora.rank
            )
            layers[name.removesuffix("_lora")] = {**own, "kernel": own["kernel"] + change}
    return {**params, "layers": layers}
