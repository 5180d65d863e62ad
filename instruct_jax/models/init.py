"""Fresh parameters as plain dicts of arrays: what a user of the library begins with."""

import jax
from flax import linen as nn

from instruct_jax.models.heads import ScalarModel
from instruct_jax.models.lm import LanguageModel
from instruct_jax.records import Params


def init(model: LanguageModel | ScalarModel, key: jax.Array) -> Params:
    """The float32 parameters of a model on the default device, a nested dict of arrays.

    On a mesh, where no device should ever hold the whole model, use sharding.create_sharded.
    """
    return nn.unbox(jax.jit(model.init)(key))
