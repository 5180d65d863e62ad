"""Runs that begin with a model of Hugging Face: its config is `model`, its tokenizer
`files.tokenizer`, its weights the stage pretrain.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from instruct_jax import sharding
from instruct_jax.chain.load import build_config, load_config
from instruct_jax.chain.settings import RunConfig
from instruct_jax.chain.workspace import Workspace
from instruct_jax.data.hub import model_folder
from instruct_jax.errors import ConfigError, DataError, shorten
from instruct_jax.huggingface import peft as adapters
from instruct_jax.huggingface.families import family_of, read_config
from instruct_jax.huggingface.weights import read_params
from instruct_jax.models.lm import parameter_count
from instruct_jax.records import Params
from instruct_jax.runtime.checkpoints import Checkpoints
from instruct_jax.runtime.folders import file_hash

# keys of `model` that are ours to choose for any weights
FREE = ("vocab_multiple", "dtype", "remat", "logprob_chunk", "attention")


def load_run(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The config of a run, with what its `base` says filled in."""
    return load_config(RunConfig, path, overrides, _fill_in)


def imported_as(base: str, out: str, overrides: Sequence[str] = ()) -> RunConfig:
    """The config of a run that only imports `base` into the folder `out`."""
    tree: dict[str, Any] = {"out": out, "base": base, "files": {"tokenizer": base}}
    # fits every model; nothing is trained
    short = {"pretrain": {"length": 2}, "sft": {"length": 2}, "ppo": {"sampler": {"max_tokens": 1}}}
    tree |= short | {"text": {"max_prompt": 1, "max_completion": 2}}
    return build_config(RunConfig, tree, "command line", overrides, _fill_in)


def _fill_in(tree: dict[str, Any]) -> None:
    base, given = tree.get("base"), tree.get("model", {})
    if not isinstance(base, str) or not isinstance(given, dict):
        return  # nothing to fill in, or a mistake that the loader explains
    if isinstance(files := tree.get("files"), dict):
        files.setdefault("tokenizer", base)
    try:
        folder = model_folder(base, weights=False)
    except DataError:
        if (
            "family" in given
        ):  # written out, as in the config of a run folder: the model itself need not be here
            return
        raise
    own = json.loads(
        json.dumps(dataclasses.asdict(read_config(_their_config(_parts(folder, weights=False)[0]))))
    )
    for key, value in given.items():
        if key in own and key not in FREE and value != own[key]:
            raise ConfigError(
                f"model.{key}={shorten(value)}, but {base} has {shorten(own[key])}; remove it, the"
                " model's config says it"
            )
    tree["model"] = own | given


def _parts(folder: Path, *, weights: bool = True) -> tuple[Path, Path | None]:
    """(the folder of the model, that of an adapter on it): an adapter of peft names the model that
    it belongs to.
    """
    if not (folder / adapters.CONFIG).is_file():
        return folder, None
    return (
        model_folder(
            str(adapters.Added(folder).about.get("base_model_name_or_path")), weights=weights
        ),
        folder,
    )


def _their_config(folder: Path) -> Any:
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the library raises anything from KeyError to OSError
        raise DataError(
            f"{folder}: no config of a model ({shorten(error, 200)}); give a folder with"
            " config.json"
        ) from error


def read_base(ws: Workspace, *, head: bool = False) -> Params:
    """The weights of `base`: of the language model or, with `head`, of the reward model."""
    folder, adapter = _parts(model_folder(str(ws.config.base)))
    boxed = ws.boxed_scalar if head else ws.boxed_pretrained
    added = None if adapter is None else adapters.Added(adapter)
    family = family_of(_their_config(folder))
    params = read_params(folder, family, ws.config.model, boxed, ws.layout, head=head, added=added)
    if added is not None:
        added.check_used()
    return params


def import_base(ws: Workspace) -> dict[str, Any]:
    """The weights of `base` as the checkpoint of the stage pretrain."""
    folder, params = model_folder(str(ws.config.base)), read_base(ws)
    state = sharding.new_state(params, ws.key("imported"), init_optimizer=lambda _: {})
    with Checkpoints(
        ws.folder / "pretrain" / "checkpoints", fingerprints=ws.fingerprints("pretrain")
    ) as checkpoints:
        checkpoints.save(state)
    files = [
        path
        for path in sorted(folder.iterdir())
        if path.name == "config.json" or path.suffix == ".safetensors"
    ]
    return {
        "base": ws.config.base,
        "parameters": parameter_count(params),
        "files": {path.name: file_hash(path) for path in files},
    }
