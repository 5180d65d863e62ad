"""What can be known to be wrong with a run before any device work: every message names the key or
file, the value and the fix.
"""

import dataclasses
import difflib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from instruct_jax import sharding
from instruct_jax.chain import graph
from instruct_jax.chain.context import Run
from instruct_jax.chain.kinds import KINDS
from instruct_jax.chain.rounds import check_rounds, rounds_of
from instruct_jax.chain.run import check_identities, check_needs, check_tokenizers, picked
from instruct_jax.chain.settings import DataConfig, RunConfig
from instruct_jax.chain.spec import run_tokenizer
from instruct_jax.chain.task import KINDS as RECORD_KINDS
from instruct_jax.chain.task import merged_data
from instruct_jax.config import MESH, ModelConfig
from instruct_jax.data import encode, packing, public_sets, readers
from instruct_jax.data.held_out import Split, split
from instruct_jax.data.hub import model_folder
from instruct_jax.data.schemas import Record
from instruct_jax.data.tokenize import check_vocabulary
from instruct_jax.errors import ConfigError, DataError, require
from instruct_jax.runtime.folders import check_run


@dataclasses.dataclass(frozen=True)
class DataFacts:
    """What the data of a run holds, as `check` shows it."""

    vocabulary: int  # ids of the tokenizer
    counts: dict[str, int]  # kind -> records that are used
    rankings: int  # of them that are learned from
    sft_rows: dict[str, int]  # stage -> packed rows of demonstrations
    completions: int  # in all rankings
    most_completions: int  # K of the largest ranking
    dropped: list[str]  # what was left out or cut, and why


def validate(
    config: RunConfig, stages: Sequence[str] | None = None, redo: Sequence[str] = ()
) -> DataFacts | None:
    """Raises ConfigError, DataError or RunError for what cannot run.  Reads and tokenizes the
    files, touches no device, writes nothing.
    """
    check_config(config, stages, redo)
    chosen = picked(config, stages, redo)
    exists = check_run(Path(config.out))
    run = Run(config, Path(config.out))
    check_needs(run, chosen)
    check_stages(run, chosen)
    facts = None
    if config.data is not None:
        facts = read_data(run, config.data, chosen)
    if exists:
        check_identities(run, chosen, redo)
    check_tokenizers(run, chosen)
    return facts


def check_config(config: RunConfig, stages: Sequence[str] | None, redo: Sequence[str] = ()) -> None:
    """What needs neither data, nor devices, nor other runs."""
    for option, names in (("--stages", stages), ("--redo", redo)):
        for name in names or ():
            _check_named(config, option, name)
    graph.order(config)
    graph.check_uses(config)
    _check_divided(config, "model", config.model, _known_sizes(config))
    if config.rounds is not None:
        check_rounds(config)
        rounds_of(config)
    if config.data is not None:
        _check_kinds(config, picked(config, stages, redo))


def _check_named(config: RunConfig, option: str, name: str) -> None:
    all_names = ", ".join(config.stages)
    require(
        bool(name),
        f"{option} has an empty name; write names with one comma between two, of {all_names}",
    )
    near = difflib.get_close_matches(name, config.stages, n=1)
    hint = f"did you mean {near[0]}?" if near else f"use {all_names}"
    if name in KINDS:
        hint = f"add a stage {name} to the config, or use {all_names}"
    require(name in config.stages, f"{option} {name} is no stage of this config; {hint}")


def check_stages(run: Run, chosen: Sequence[str]) -> None:
    """The settings of the stages fit their models, and the mesh divides these."""
    sizes = _known_sizes(run.config)
    for name in chosen:
        stage = run.stage(name)
        if stage.settings.leaves in ("policy", "scalar"):
            spec = stage.spec
            _check_divided(run.config, f"the model of stages.{name}:", spec.model, sizes)
        KINDS[stage.settings.kind].check(stage)


def _check_divided(config: RunConfig, name: str, model: ModelConfig, sizes: dict[str, int]) -> None:
    """The mesh divides the arrays of a model, in both layouts."""
    split_axes = {
        "vocab": ("vocab_size", model.vocab_rows),
        "heads": ("heads", model.heads),
        "kv_heads": ("kv_heads", model.groups),
        "mlp": ("mlp_width", model.mlp_size),
        "embed": ("width", model.width),
    }
    key_prefix = name if name.endswith(":") else f"{name}."
    for rules in (
        sharding.TRAINING | config.mesh.training,
        sharding.SAMPLING | config.mesh.sampling,
    ):
        for logical, (key, size) in split_axes.items():
            axes = rules[logical]
            parts = math.prod(sizes[axis] for axis in axes)
            fix = "change one of them"
            if logical == "vocab":
                fix = f"set model.vocab_multiple={parts}, or change the mesh"
            shown = f"{key_prefix} {key}" if name.endswith(":") else f"{key_prefix}{key}"
            require(
                size % parts == 0,
                f"mesh.{'*'.join(axes)}={parts} does not divide {shown}={size}; {fix}",
            )


def _check_kinds(config: RunConfig, chosen: Sequence[str]) -> None:
    """Each stage finds the files that it learns from."""
    assert config.data is not None
    for name in chosen:
        settings = config.stages[name]
        data = merged_data(config.data, settings.data)
        for kind in KINDS[settings.kind].reads(config, settings):
            require(
                bool(getattr(data, kind)),
                f"data.{kind}=[] but the stage {name}{_why(settings, kind)} needs some; name files,"
                f" or leave {name} out of --stages",
            )


def _why(settings: Any, kind: str) -> str:
    if kind == "texts" and settings.kind == "sft":
        return f" (pretrain_mix={settings.pretrain_mix})"
    if kind == "texts" and settings.kind == "ppo":
        return " (ptx_coef > 0)"
    return ""


def _known_sizes(config: RunConfig) -> dict[str, int]:
    """The sizes of the mesh, where a -1 is 1: whatever it stands for is a multiple of that."""
    return {axis: max(getattr(config.mesh, axis), 1) for axis in MESH}


def check_mesh(config: RunConfig, devices: int | None, stages: Sequence[str] | None = None) -> None:
    """The mesh fits the devices and divides the models, and the rows that the stages (None: all)
    compute at one time divide among the devices; devices None: as far as that can be known without
    them.
    """
    sizes = _known_sizes(config)
    if devices is not None:
        sizes = dict(zip(MESH, config.mesh.shape(devices), strict=True))
    _check_divided(config, "model", config.model, sizes)
    rows: dict[str, float] = {}
    sampled: dict[str, float] = {"sample_batch": config.sample_batch}
    for name in picked(config, stages):
        settings: Any = config.stages[name]
        rows |= KINDS[settings.kind].rows(name, settings)
        if getattr(settings, "model", None) is not None:
            _check_divided(config, f"stages.{name}.model", settings.model, sizes)
        if hasattr(settings, "sampler"):
            sampled[f"{name}.batch"] = settings.batch
    training = sharding.TRAINING | config.mesh.training
    sampling = sharding.SAMPLING | config.mesh.sampling
    checked = (
        (rows, training["batch"]),
        (sampled, sampling["rows"]),
    )
    for asked, axes in checked:
        parts = math.prod(sizes[axis] for axis in axes)
        says = " * ".join(f"{axis} {sizes[axis]}" for axis in axes)
        for key, size in asked.items():
            require(
                size % parts == 0,
                f"{key} = {size:g} must be a multiple of the mesh's {says} = {parts}; change {key}"
                " or the mesh",
            )


def missing_files(config: RunConfig) -> list[str]:
    """The models and data that are neither here nor, as far as it can be reached, on the hub."""
    places = []
    for name in config.stages:
        for place in graph.uses(config, name).values():
            if place.model is not None:
                places.append(place.model)
    data = config.data
    if data is not None and data.tokenizer is not None:
        places.append(data.tokenizer)
    gone = [name for name in places if not _is_model(name)]
    for path in _all_files(config):
        _, file = public_sets.split_path(path)
        if not readers.exists(file):
            gone.append(path)
    return list(dict.fromkeys(gone))


def _all_files(config: RunConfig) -> Iterator[str]:
    sources = [config.data, *(settings.data for settings in config.stages.values())]
    for source in sources:
        for kind in RECORD_KINDS:
            yield from getattr(source, kind, ())


def _is_model(name: str) -> bool:
    try:
        return model_folder(name, weights=False).is_dir()
    except DataError:
        return False


def read_data(run: Run, data: DataConfig, chosen: Sequence[str]) -> DataFacts:
    """Reads, checks and tokenizes all records; texts are only read, as they may be many."""
    config = run.config
    on_own_files = []
    mapped: set[str] = set()
    for name in chosen:
        override = config.stages[name].data
        if override is None:
            on_own_files.append(name)
        else:
            _read(run, merged_data(data, override), [name], mapped)
    facts = _read(run, data, on_own_files, mapped)
    public_sets.check_columns(data.columns, mapped)
    return facts


def _read(run: Run, data: DataConfig, chosen: Sequence[str], mapped: set[str]) -> DataFacts:
    config = run.config
    form = config.text
    dropped: list[str] = []
    tok = run_tokenizer(config, run.folder).load()
    check_vocabulary(tok, config.model.vocab_size, config.model.vocab_rows)
    skip: Any = data.on_bad_record
    found: dict[str, list[readers.Records]] = {}
    for kind in RECORD_KINDS:
        found[kind] = []
        for path in getattr(data, kind):
            records = public_sets.load(kind, path, skip, data.columns)
            dropped += records.dropped
            mapped |= records.mapped
            found[kind].append(records)
    everything: dict[str, list[Record]] = {}
    for kind in RECORD_KINDS:
        everything[kind] = list(itertools.chain(*found[kind]))
    for texts in found["texts"]:
        encode.check_texts(tok, texts)
    usable = {"texts": everything["texts"]}

    def encoded(kind: str, to_ids: Callable[..., encode.Encoded]) -> list[Any]:
        items = []
        usable[kind] = []
        for path, records in zip(getattr(data, kind), found[kind], strict=True):
            part = _encode(tok, path, records, to_ids, form, dropped)
            usable[kind] += [records[i] for i in part.kept]
            items += part.items
        return items

    samples = encoded("demonstrations", encode.encode_demonstrations)
    rankings = encoded("rankings", encode.encode_given_rankings)
    encoded("prompts", encode.encode_prompts)
    _check_weights(config, usable["demonstrations"], chosen)
    parts = split(everything, data.held_out, config.seed)
    _check_split(config, data, parts, usable, chosen)
    own = {id(record) for record in parts.demonstrations}
    learned = []
    for sample, record in zip(samples, usable["demonstrations"], strict=True):
        if id(record) in own:
            learned.append(sample)
    sizes = [len(ranks) for _, ranks in rankings]
    return DataFacts(
        vocabulary=len(tok),
        counts={kind: len(usable[kind]) for kind in RECORD_KINDS},
        rankings=len(parts.rankings),
        sft_rows=_sft_rows(run, chosen, samples, learned),
        completions=sum(sizes),
        most_completions=max(sizes, default=0),
        dropped=dropped,
    )


def _sft_rows(
    run: Run, chosen: Sequence[str], samples: list[Any], learned: list[Any]
) -> dict[str, int]:
    """Rows of what each SFT stage learns from; all samples must fit, those held out too."""
    rows = {}
    for name in chosen:
        settings: Any = run.config.stages[name]
        if settings.kind != "sft":
            continue
        try:
            packing.pack(samples, settings.length, pad=0)
        except DataError as error:
            raise ConfigError(
                f"{name}.length={settings.length} is too short for the demonstrations: {error}"
            ) from error
        packed = packing.pack(learned, settings.length, pad=0)
        rows[name] = len(packed.tokens)
    return rows


def _check_weights(config: RunConfig, records: list[Record], chosen: Sequence[str]) -> None:
    """No stage learns what a demonstration says is only read."""
    only_read = 0
    for record in records:
        prompt = record["prompt"]
        if isinstance(prompt, list):
            only_read += any("weight" in turn for turn in prompt)
    for name in chosen:
        settings: Any = config.stages[name]
        require(
            not (only_read and getattr(settings, "loss_on_prompt", False)),
            f"stages.{name}.loss_on_prompt=true learns all messages, but {only_read}"
            " demonstrations have replies of weight 0; set it to false",
        )


def _check_split(
    config: RunConfig,
    data: DataConfig,
    parts: Split,
    usable: dict[str, list[Record]],
    chosen: Sequence[str],
) -> None:
    """Each part of the records has enough to go on; a batch of PPO holds no prompt twice."""
    short: set[int] = set()
    for records in usable.values():
        short |= {id(record) for record in records}

    def left(records: list[Record]) -> int:
        return sum(id(record) in short for record in records)

    apart = f"data.held_out={data.held_out} sets whole conversations apart"
    for kind in ("demonstrations", "rankings"):
        files = getattr(data, kind)
        require(
            not files or left(getattr(parts, kind)) > 0,
            f"data.{kind}={list(files)}: of {len(usable[kind])} records none is left to learn from,"
            f" {apart}; add some of other prompts",
        )
    require(
        not data.prompts or left(parts.held_out_prompts) > 0,
        f"data.prompts={list(data.prompts)}: of {len(usable['prompts'])} records none is left to"
        f" measure with, {apart}; add prompts",
    )
    for name in chosen:
        settings: Any = config.stages[name]
        if settings.kind != "ppo":
            continue
        batch = settings.batch
        prompts = left(parts.prompts)
        fitting = 1 << (max(prompts, 1).bit_length() - 1)  # a power of two
        require(
            prompts >= batch,
            f"{name}.batch={batch}, but of {len(usable['prompts'])} records in data.prompts"
            f" {prompts} are left to learn from, {apart}; add prompts, or set {name}.batch to"
            f" {fitting} and {name}.minibatch to {min(fitting, settings.minibatch)}",
        )


def _encode(
    tok: PreTrainedTokenizerBase,
    path: str,
    records: readers.Records,
    to_ids: Callable[..., encode.Encoded],
    form: encode.TextFormat,
    dropped: list[str],
) -> encode.Encoded:
    found = to_ids(tok, records, form)
    if not found.items:
        raise DataError(
            f"{path}: all {len(records)} records are longer than text.max_prompt={form.max_prompt}"
            f" or text.max_completion={form.max_completion} and text.on_long={form.on_long} leaves"
            " none; raise them"
        )
    if found.long_prompts or found.long_completions:
        dropped.append(f"{path}: {found.message} (on_long={form.on_long})")
    return found
