"""What the parameters of a stage mean: shape, adapters, tokenizer, and on which frozen weights they
lie.  A stage leaves it in its folder as model.json.
"""

import dataclasses
import functools
import hashlib
import json
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedTokenizerBase

from instruct_jax.chain.graph import Place, resolve, uses
from instruct_jax.chain.load import build_config
from instruct_jax.chain.settings import BASE, RunConfig
from instruct_jax.config import LoraConfig, ModelConfig
from instruct_jax.data.encode import TextFormat
from instruct_jax.data.hub import model_folder
from instruct_jax.data.tokenize import MESSAGES, load_tokenizer
from instruct_jax.errors import ConfigError, DataError, RunError, require, shorten
from instruct_jax.huggingface import peft
from instruct_jax.huggingface.families import read_config
from instruct_jax.huggingface.generation import end_ids
from instruct_jax.runtime.folders import read_note, write_atomic

NAME = "model.json"
WORLD_TOKENIZER = "tokenizer"  # a folder in the run folder of the embedded world
PLAIN = (TextFormat.template, MESSAGES)  # templates that nobody wrote for a model
# files with the words of a tokenizer
VOCABULARIES = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "vocab.json",
    "vocab.txt",
    "encoder.json",
    "encoder.json.gz",
)
# keys of a model that are ours to choose for any weights
FREE = ("vocab_multiple", "dtype", "remat", "logprob_chunk", "attention")


@dataclasses.dataclass(frozen=True)
class TokenizerSource:
    """Where a tokenizer is read from."""

    place: str
    pad_token: str | None = None
    eos_token: str | None = None

    def load(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(self.place, pad_token=self.pad_token, eos_token=self.eos_token)

    def listed_ends(self) -> tuple[int, ...]:
        """The ids that end a reply by the generation config of the model that it lies beside; ()
        where there is none.
        """
        folder, _ = base_and_adapter(model_folder(self.place, weights=False), weights=False)
        return end_ids(folder)


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """What parameters mean, and what they lie on."""

    model: ModelConfig
    tokenizer: TokenizerSource
    text: TextFormat  # how it is asked
    lora: LoraConfig | None = None
    frozen_layers: int = 0
    # the model whose frozen weights these lie on; None = all weights are here
    root: Place | None = None
    # a text prompt is one user message, where the tokenizer has a chat template: a language model
    # of others, which this run does not train
    of_others: bool = False

    @property
    def whole(self) -> bool:
        """Are all its weights in its own checkpoint?"""
        return self.root is None

    @property
    def without_text(self) -> "ModelSpec":
        """The same for all models whose parameters mean the same, however they are asked."""
        return dataclasses.replace(self, text=TextFormat(), of_others=False)


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Which saved parameters a stage leaves."""

    stage: str  # of the same run: that of `select` is another stage's
    part: str = "params"  # of its state
    step: int | None = None  # None = the last


def spec_of(config: RunConfig, folder: Path, place: Place) -> ModelSpec:
    """What the parameters of a place mean; ConfigError or RunError where that cannot be known."""
    if place.model is not None:
        return _of_hub(config, folder, place)
    if place.run is not None:
        return _of_other_run(config, place)
    stage = config.stages[str(place.stage)]
    used = uses(config, str(place.stage))
    if "start" not in used or stage.whole:
        return _new(config, folder, stage, used.get("start"))
    start = spec_of(config, folder, used["start"])
    return derived(config, start, used["start"])


def _of_other_run(config: RunConfig, place: Place) -> ModelSpec:
    """As it was left there, computed as this run says; `base` is asked as this run asks."""
    found, _ = read_spec(Path(str(place.run)), str(place.stage))
    found = dataclasses.replace(found, model=_computed_as(config, found.model))
    if config.base is not None and resolve(config, BASE, BASE) == place:
        return _asked_as(config, found)
    return found


def _asked_as(config: RunConfig, spec: ModelSpec) -> ModelSpec:
    """The same model, asked as this run asks."""
    return dataclasses.replace(spec, text=config.text, of_others=False)


def _computed_as(config: RunConfig, model: ModelConfig) -> ModelConfig:
    """The shape of a model, with the keys of this run that are ours to choose."""
    ours = {}
    for key in FREE:
        if key != "vocab_multiple":
            ours[key] = getattr(config.model, key)
    return dataclasses.replace(model, **ours)


def _new(config: RunConfig, folder: Path, stage: Any, start: Place | None) -> ModelSpec:
    """Of a stage that makes a model whole: from random weights, or a copy of another model."""
    if start is not None:
        found = spec_of(config, folder, start)
        return dataclasses.replace(
            found,
            frozen_layers=config.frozen_layers,
            text=config.text,
            of_others=found.of_others and not _trains(config),
        )
    model = getattr(stage, "model", None) or config.model
    return ModelSpec(
        model, run_tokenizer(config, folder), config.text, frozen_layers=config.frozen_layers
    )


def derived(config: RunConfig, start: ModelSpec, place: Place) -> ModelSpec:
    """Of a stage of this run that trains on from `start`, asked as this run asks."""
    start = _asked_as(config, start)
    if start.whole and config.lora is not None:
        return dataclasses.replace(start, lora=config.lora, root=place)
    if start.whole and config.frozen_layers:
        require(
            start.frozen_layers == config.frozen_layers,
            f"frozen_layers={config.frozen_layers}, and {place} was made with"
            f" {start.frozen_layers}; make them equal",
        )
        return dataclasses.replace(start, root=place)
    if start.whole:
        return start
    require(
        (start.lora, start.frozen_layers) == (config.lora, config.frozen_layers),
        f"{place} was trained with lora={_short(start.lora)}, frozen_layers={start.frozen_layers},"
        f" and this run has lora={_short(config.lora)}, frozen_layers={config.frozen_layers}; make"
        " them equal, or start from an export of it",
    )
    return start


def _short(lora: LoraConfig | None) -> str:
    return "null" if lora is None else f"{{rank: {lora.rank}, alpha: {lora.alpha:g}}}"


def run_tokenizer(config: RunConfig, folder: Path) -> TokenizerSource:
    """The tokenizer of the run's own data."""
    if config.data is None:
        return TokenizerSource(str(folder / WORLD_TOKENIZER))
    place = config.data.tokenizer
    if place is None:
        raise ConfigError(
            "data.tokenizer is missing; name a Hugging Face folder or OWNER/NAME, or set `base` to"
            " a model that has one"
        )
    return TokenizerSource(place, config.data.pad_token, config.data.eos_token)


def _of_hub(config: RunConfig, folder: Path, place: Place) -> ModelSpec:
    """Of a model of Hugging Face: `base` has the run's tokenizer, others their own.

    The base of a run that trains is asked as the run asks, so that it can be compared with what was
    made from it.
    """
    name = str(place.model)
    is_base = config.base is not None and resolve(config, BASE, BASE) == place
    if is_base:
        return ModelSpec(
            config.model,
            run_tokenizer(config, folder),
            config.text,
            frozen_layers=config.frozen_layers,
            of_others=not _trains(config) and config.text.template in PLAIN,
        )
    model = _computed_as(config, hub_config(name))
    source = TokenizerSource(tokenizer_place(name))
    if config.data is not None:
        source = dataclasses.replace(
            source, pad_token=config.data.pad_token, eos_token=config.data.eos_token
        )
    return ModelSpec(
        model,
        source,
        config.text,
        frozen_layers=config.frozen_layers,
        of_others=model_leaves(name) != "scalar",
    )


def _trains(config: RunConfig) -> bool:
    """Does a stage of the run train a model?  One that only copies another does not."""
    for stage in config.stages.values():
        copies = stage.whole and "start" in stage.uses()
        if stage.leaves in ("policy", "scalar") and not copies:
            return True
    return False


def model_leaves(name: str) -> str | None:
    """Is a model of Hugging Face a policy or a scalar model?  None where it is not here, or does
    not say.
    """
    try:
        folder, _ = base_and_adapter(model_folder(name, weights=False), weights=False)
        config = their_config(folder)
    except DataError:
        return None
    classes = config.architectures or [""]
    if classes[0].endswith("ForSequenceClassification"):
        return "scalar"
    return "policy" if classes[0].endswith(("ForCausalLM", "LMHeadModel")) else None


def hub_config(name: str) -> ModelConfig:
    """The shape of a model of Hugging Face, from its config.json."""
    folder, _ = base_and_adapter(model_folder(name, weights=False), weights=False)
    return read_config(their_config(folder))


def base_and_adapter(folder: Path, *, weights: bool = True) -> tuple[Path, Path | None]:
    """(the folder of the model, that of an adapter on it): an adapter of peft names its base."""
    if not (folder / peft.CONFIG).is_file():
        return folder, None
    base = base_of(folder)
    try:
        return model_folder(base, weights=weights), folder
    except DataError as error:
        raise DataError(
            f"{folder / peft.CONFIG}: base_model_name_or_path={shorten(base)} is not to be had;"
            f" correct it there ({error})"
        ) from error


def base_of(adapter: Path) -> str:
    """The model that an adapter of peft names."""
    config = peft.PeftAdapter(adapter).config
    base = config.get("base_model_name_or_path")
    if not base:
        raise DataError(
            f"{adapter / peft.CONFIG}: base_model_name_or_path={base!r} names no model; write the"
            " folder of the adapter's base, or OWNER/NAME"
        )
    revision = config.get("revision")
    if revision and not Path(base).is_dir():
        return f"{base}@{revision}"
    return base


def tokenizer_place(name: str) -> str:
    """Where the tokenizer of a model of Hugging Face lies: in its folder, or where that is an
    adapter without one, in that of its base.
    """
    folder = model_folder(name, weights=False)
    if not (folder / peft.CONFIG).is_file() or _has_tokenizer(folder):
        return name
    base, _ = base_and_adapter(folder, weights=False)
    if not _has_tokenizer(base):
        raise DataError(
            f"{name} has no tokenizer, and its base {base} has none; set data.tokenizer to a folder"
            " that has the base's"
        )
    return base_of(folder)


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in VOCABULARIES)


def their_config(folder: Path) -> Any:
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the library raises anything from KeyError to OSError
        raise DataError(
            f"{folder}: no config of a model ({shorten(error, 200)}); give a folder with"
            " config.json"
        ) from error


# --- on disk ---


def write_spec(folder: Path, stage: str, spec: ModelSpec, checkpoint: Checkpoint) -> None:
    """Leaves model.json in the folder of a stage."""
    tree = dataclasses.asdict(spec)
    tree["root"] = None if spec.root is None else str(spec.root)
    if Path(spec.tokenizer.place) == folder / WORLD_TOKENIZER:
        tree["tokenizer"]["place"] = WORLD_TOKENIZER  # a run folder may be moved
    note = {"spec": tree, "checkpoint": dataclasses.asdict(checkpoint)}
    text = json.dumps(note, indent=1)
    write_atomic(folder / stage / NAME, text + "\n")


@dataclasses.dataclass(frozen=True)
class _Saved:
    """A ModelSpec as it lies on disk."""

    model: ModelConfig
    tokenizer: TokenizerSource
    text: TextFormat
    lora: LoraConfig | None = None
    frozen_layers: int = 0
    root: str | None = None
    of_others: bool = False


def read_spec(run: Path, stage: str) -> tuple[ModelSpec, Checkpoint]:
    """What a finished stage left; its root and tokenizer as they are called from here."""
    path = run / stage / NAME
    if not path.is_file():
        raise RunError(
            f"{run} has no finished stage {stage} that left a model ({path} is missing); finish it"
            " there, or name another"
        )
    note = read_note(path)
    saved = _saved(json.dumps(note["spec"]), str(path))
    root = None if saved.root is None else _root(run, saved.root)
    tokenizer = saved.tokenizer
    if tokenizer.place == WORLD_TOKENIZER:
        tokenizer = TokenizerSource(str(run / WORLD_TOKENIZER))
    spec = ModelSpec(
        saved.model,
        tokenizer,
        saved.text,
        saved.lora,
        saved.frozen_layers,
        root,
        saved.of_others,
    )
    return spec, Checkpoint(**note["checkpoint"])


@functools.lru_cache(maxsize=64)  # a run asks many times
def _saved(text: str, source: str) -> _Saved:
    return build_config(_Saved, json.loads(text), source)


def _root(run: Path, root: str) -> Place:
    other, _, stage = root.rpartition(":")
    if other and stage and not Path(root).is_dir():
        return Place(other, stage)
    if (run / root / NAME).is_file():
        return Place(str(run), root)
    return Place(None, None, root)


def model_fingerprint(config: ModelConfig) -> str:
    """Changes with every key that changes what the parameters mean; a key that has its default is
    as if it were not there.
    """
    silent = ("family", "dtype", "remat", "logprob_chunk", "attention", "init_std", "qk_bias_std")
    meaning = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name not in silent and value != field.default:
            meaning.append((field.name, value))
    text = repr(sorted(meaning))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
