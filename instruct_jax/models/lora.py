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
    """alpha / rank * (x A) B over the last axes of x.

    `axes` names the axes of W: those of x that are contracted, then those of `features`.
    """

    lora: LoraConfig
    features: tuple[int, ...]
    axes: tuple[str, ...]
    dtype: str

    @nn.compact
    def __call__(self, x, deterministic):
        contract = len(self.axes) - len(self.features)
        into = x.shape[-contract:]
        rank = self.lora.rank
        bound = math.prod(into) ** -0.5  # as peft initializes A

        def uniform(key, shape, dtype=jnp.float32):
            return jax.random.uniform(key, shape, dtype, -bound, bound)

        axes = (*self.axes[:contract], "rank")
        init = nn.with_logical_partitioning(uniform, axes)
        a: Any = self.param("a", init, (*into, rank), jnp.float32)
        axes = ("rank", *self.axes[contract:])
        init = nn.with_logical_partitioning(nn.initializers.zeros, axes)
        b: Any = self.param("b", init, (rank, *self.features), jnp.float32)
        x = nn.Dropout(self.lora.dropout)(x, deterministic=deterministic)
        low = jnp.tensordot(x, a.astype(self.dtype), contract)
        low = low * (self.lora.alpha / rank)
        return jnp.tensordot(low, b.astype(self.dtype), 1)


def split_adapters(params: Params) -> tuple[Params, Params]:
    """(frozen parameters, trained ones) where adapters and scalar heads are trained.

    Either may be {}.  `merge` is the inverse.
    """
    frozen = {}
    trained = {}
    for name, part in params.items():
        if name.endswith("_lora") or name == "head":
            trained[name] = part
        elif isinstance(part, dict):
            _put_both(frozen, trained, name, split_adapters(part))
        else:
            frozen[name] = part
    return frozen, trained


def split_lower_layers(params: Params) -> tuple[Params, Params]:
    """(frozen parameters, trained ones) where all but "lower_layers" is trained; `merge` is the
    inverse.
    """
    frozen = {}
    trained = {}
    for name, part in params.items():
        if name == "lower_layers":
            frozen[name] = part
        elif isinstance(part, dict):
            _put_both(frozen, trained, name, split_lower_layers(part))
        else:
            trained[name] = part
    return frozen, trained


def _put_both(frozen: Params, trained: Params, name: str, parts: tuple[Params, Params]) -> None:
    """Puts both parts of a subtree under its name, unless they are empty."""
    for side, part in zip((frozen, trained), parts, strict=True):
        if part:
            side[name] = part


def merge(base: Params | None, params: Params) -> Params:
    """Both trees in one; the arrays are the same, those of params where both have one."""
    if not isinstance(base, dict) or not base:
        return params
    whole = {**base, **params}
    for name in base.keys() & params.keys():
        whole[name] = merge(base[name], params[name])
    return whole


def backbone_of(params: Params) -> Params:
    """The language model's parameters without its unembedding, which no scalar model reads."""
    return {name: part for name, part in params.items() if name != "unembedding"}


def scalar_base(base: Params | None) -> Params:
    """The frozen part of a scalar model on the same base; {} where there is none."""
    return {"backbone": backbone_of(base)} if base else {}


def fold_adapters(params: Params, lora: LoraConfig | None) -> Params:
    """The same function without adapters: W + alpha / rank * A B, float32.

    The parameters as they are where there are none.
    """
    if lora is None:
        return params
    layers = {}
    adapters = {}
    for name, part in params["layers"].items():
        if name.endswith("_lora"):
            adapters[name.removesuffix("_lora")] = part
        else:
            layers[name] = part
    product = jax.vmap(lambda a, b: jnp.tensordot(a, b, 1))  # of each layer
    for name, adapter in adapters.items():
        layer = layers[name]
        change = product(adapter["a"], adapter["b"])
        change = change * (lora.alpha / lora.rank)
        layers[name] = {**layer, "kernel": layer["kernel"] + change}
    return {**params, "layers": layers}
