"""What a stage is made from: the settings that change its result, the content of the records that
it reads, and the identities of what it starts from and uses.
"""

import dataclasses
import functools
import hashlib
import json
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from instruct_jax.chain.context import Run, Stage
from instruct_jax.chain.graph import Place
from instruct_jax.chain.kind import HOW
from instruct_jax.chain.kinds import KINDS
from instruct_jax.chain.spec import NAME, TokenizerSource, base_and_adapter, read_spec
from instruct_jax.chain.task import GROUPS, merged_data
from instruct_jax.data.hub import model_folder
from instruct_jax.data.tokenize import fingerprint, load_tokenizer
from instruct_jax.errors import RunError
from instruct_jax.runtime.checkpoints import saved_digests
from instruct_jax.runtime.folders import file_hash, read_note

# keys of a model that only say how it is computed
HOW_OF_MODELS = ("family", "remat", "logprob_chunk", "attention", "vocab_multiple")


def identity(stage: Stage) -> dict[str, Any]:
    """What the stage would be made from now, by dotted key."""
    kind = KINDS[stage.settings.kind]
    found: dict[str, Any] = {"kind": stage.settings.kind, "seed": stage.seed}
    found |= flat("settings", _settings(stage.settings, (*HOW, *kind.how)))
    for key in kind.run_keys:
        value: Any = getattr(stage.run.config, key)
        if not isinstance(value, int):
            value = dataclasses.asdict(value)
        found |= flat(key, value)
    found |= _of_model(stage)
    for name, records in kind.records(stage).items():
        files = _named_files(stage, name)
        found[f"data.{name}"] = files + records_hash(records)
    for key, place in stage.uses.items():
        found[f"uses.{key}"] = place_hash(stage.run, place)
    return found


def _settings(settings: Any, how: Iterable[str]) -> dict[str, Any]:
    silent = {"kind", "seed", "data", "model", *how}
    tree = dataclasses.asdict(settings)
    return {key: value for key, value in tree.items() if key not in silent}


def _of_model(stage: Stage) -> dict[str, Any]:
    """Shape, adapters and tokenizer of what the stage makes."""
    if stage.settings.leaves not in ("policy", "scalar"):
        return {}
    spec = stage.spec
    model = dataclasses.asdict(spec.model)
    shape = {key: value for key, value in model.items() if key not in HOW_OF_MODELS}
    if not stage.settings.whole:
        shape = {"dtype": shape["dtype"]}  # all else is what it starts from
    found = flat("model", shape)
    found["lora"] = None if spec.lora is None else dataclasses.asdict(spec.lora)
    found["frozen_layers"] = spec.frozen_layers
    found["tokenizer"] = tokenizer_fingerprint(stage.run, spec.tokenizer)
    return found


def flat(prefix: str, tree: Any) -> dict[str, Any]:
    """Dotted key -> value; lists are values."""
    if not isinstance(tree, Mapping) or not tree:
        return {prefix: tree}
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= flat(f"{prefix}.{key}", value)
    return found


def tokenizer_fingerprint(run: Run, source: TokenizerSource) -> str:
    """Of a tokenizer; of the world's also before the run has saved it."""
    world = run.config.world
    if world is None or Path(source.place).exists():
        return _fingerprint(source)
    from instruct_jax.world.tokenizer import save_tokenizer

    with tempfile.TemporaryDirectory() as folder:
        save_tokenizer(run.config.seed, folder)
        return fingerprint(load_tokenizer(folder))


@functools.lru_cache(maxsize=32)
def _fingerprint(source: TokenizerSource) -> str:
    return fingerprint(source.load())


def _named_files(stage: Stage, kind: str) -> str:
    """The files that the records are from, before their hash."""
    data = stage.run.config.data
    if data is None:
        return ""
    own = merged_data(data, stage.settings.data)
    files = getattr(own, kind, ())
    return "".join(f"{file} " for file in files)


def records_hash(records: Any) -> str:
    """SHA-256 of records, whatever files they lie in."""
    digest = hashlib.sha256()
    for record in records:
        text = json.dumps(record, sort_keys=True, ensure_ascii=False)
        digest.update(text.encode())
        digest.update(b"\n")
    return f"sha256:{digest.hexdigest()}"


def place_hash(run: Run, place: Place) -> str:
    """Of a finished stage (see `stage_hash`) or of the files of a model."""
    if place.model is not None:
        return _model_hash(place.model)
    folder = run.stage_folder(place)
    if not (folder / "done.json").exists():
        raise RunError(f"{folder} is not finished; run the stage {place} first")
    return stage_hash(folder)


def stage_hash(folder: Path) -> str:
    """SHA-256 of what a finished stage was made from and of what it left: the same where it is
    made again bit for bit.
    """
    done = read_note(folder / "done.json")
    identities = {"inputs": done["inputs"], "left": done.get("left")}
    for path in _rankings(folder):
        identities[path.name] = file_hash(path)  # now, since people correct them by hand
    return records_hash([identities])


def _rankings(folder: Path) -> list[Path]:
    paths = [folder / f"{group}.jsonl" for group in GROUPS]
    return [path for path in paths if path.exists()]


def left_by(stage: Stage) -> dict[str, int]:
    """The checksums of the parameters that a stage left."""
    if not (stage.folder / NAME).exists():
        return {}
    _, left = read_spec(stage.run.folder, stage.name)
    folder = stage.run.folder / left.stage / "checkpoints"
    return saved_digests(folder, part=left.part, step=left.step)


@functools.lru_cache(maxsize=32)
def _model_hash(name: str) -> str:
    """SHA-256 of config and weights of a model of Hugging Face, of an adapter's base too."""
    folder, adapter = base_and_adapter(model_folder(name))
    digest = hashlib.sha256()
    for place in (folder, adapter):
        if place is None:
            continue
        for path in sorted(place.iterdir()):
            if path.suffix in (".json", ".safetensors"):
                line = f"{path.name} {file_hash(path)}\n"
                digest.update(line.encode())
    return f"sha256:{digest.hexdigest()}"
