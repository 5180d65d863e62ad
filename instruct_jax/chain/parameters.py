"""Parameters on disk: those that stages left, and those of Hugging Face models."""

from pathlib import Path
from typing import NamedTuple

from instruct_jax import sharding
from instruct_jax.chain.context import Run
from instruct_jax.chain.graph import Place
from instruct_jax.chain.networks import Network
from instruct_jax.chain.spec import (
    Checkpoint,
    base_and_adapter,
    model_leaves,
    read_spec,
    their_config,
)
from instruct_jax.data.hub import model_folder
from instruct_jax.errors import require
from instruct_jax.huggingface.families import family_of
from instruct_jax.huggingface.peft import PeftAdapter
from instruct_jax.huggingface.weights import read_params
from instruct_jax.models.lora import merge, scalar_base, split_adapters
from instruct_jax.records import Params
from instruct_jax.runtime.checkpoints import restore_params


class Model(NamedTuple):
    """A network with its parameters, those of the frozen base among them."""

    net: Network
    params: Params


def policy(run: Run, place: Place, step: int | None = None) -> Model:
    """The policy of a place, or of one of the steps that its stage kept."""
    net = run.network(run.spec(place))
    if place.model is not None:
        return Model(net, _of_hub(net, place))
    boxed = net.trained(net.boxed_policy)
    trained = _load(run, net, place, boxed, step)
    return Model(net, merge(base(run, net), trained))


def scalar(run: Run, place: Place) -> Model:
    """The reward model of a place, normalised as it was left."""
    net = run.network(run.spec(place))
    if place.model is not None:
        return Model(net, _of_hub(net, place, head=True))
    boxed = net.trained(net.boxed_scalar)
    trained = _load(run, net, place, boxed, None)
    whole = merge(scalar_base(base(run, net)), trained)
    return Model(net, _normalised(run, place, whole))


def _normalised(run: Run, place: Place, params: Params) -> Params:
    from instruct_jax.models.heads import recentred

    if run.abstract:
        return params
    shift = run.output(place).get("normalisation")
    if shift is None:
        return params
    return recentred(params, shift["mean"], shift["scale"])


def base(run: Run, net: Network) -> Params:
    """What no stage trains, in the dtype of the model; {} where all weights are trained.

    Networks on the same frozen weights share these arrays.
    """
    root = net.spec.root
    if root is None:
        return {}
    weights = net.spec.without_text
    if weights not in run.bases:
        whole = policy(run, root).params
        if net.spec.lora is None:
            whole, _ = net.split_frozen(whole)
        run.bases[weights] = net.cast(whole)
    return run.bases[weights]


def adapters(run: Run, net: Network, key) -> Params:
    """New ones, which change nothing yet; {} where there are none."""
    if net.spec.lora is None:
        return {}

    def create(key) -> Params:
        _, new = split_adapters(net.policy.init(key))
        return new

    return run.born(create, net.layout, key)


def start_params(run: Run, net: Network, place: Place, key) -> Params:
    """The policy of `place` as the first parameters of a stage whose network is `net`."""
    if net.spec.whole or run.spec(place).without_text == net.spec.without_text:
        return policy(run, place).params
    if net.spec.lora is None:
        own = net.trained(policy(run, place).params)
    else:
        own = adapters(run, net, key)
    return merge(base(run, net), own)


def _load(run: Run, net: Network, place: Place, boxed: Params, step: int | None) -> Params:
    """The trained parameters that a stage left, born in the layout of the mesh."""
    shapes = sharding.abstract(boxed, net.layout)
    if run.abstract:
        return shapes
    folder = run.folder if place.run is None else Path(place.run)
    if step is None:
        _, left = read_spec(folder, str(place.stage))
    else:
        left = _kept(run, place, step)
    return restore_params(
        folder / left.stage / "checkpoints",
        shapes,
        part=left.part,
        step=left.step,
        fingerprints=net.fingerprints,
    )


def _kept(run: Run, place: Place, step: int) -> Checkpoint:
    """One of the steps that a stage of this run kept; the stage may not be finished yet."""
    folder = run.folder if place.run is None else Path(place.run)
    path = folder / str(place.stage)
    if (path / "model.json").exists():
        _, left = read_spec(folder, str(place.stage))
        return Checkpoint(left.stage, left.part, step)
    return Checkpoint(str(place.stage), "params", step)


def _of_hub(net: Network, place: Place, *, head: bool = False) -> Params:
    """The weights of a model of Hugging Face, with its scalar head where `head` asks for it."""
    require(
        head or model_leaves(str(place.model)) != "scalar",
        f"{place} is a model for sequence classification, and a language model is needed; give the"
        " one that it was made from, or use this one for rewards",
    )
    boxed = net.boxed_scalar if head else net.boxed_whole
    if net.abstract:
        return sharding.abstract(boxed, net.layout)
    folder, adapter = base_and_adapter(model_folder(str(place.model)))
    lora = None if adapter is None else PeftAdapter(adapter)
    theirs = their_config(folder)
    params = read_params(
        folder,
        family_of(theirs),
        net.spec.model,
        boxed,
        net.layout,
        head=head,
        vocabulary=theirs.vocab_size,
        change=None if lora is None else lora.change,
    )
    if lora is not None:
        lora.check_used()
    return params
