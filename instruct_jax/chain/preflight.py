"""What can be known to be wrong with a run before any device work: every message names the key or
file, the value and the repair.
"""

import dataclasses
import difflib
import itertools
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from instruct_jax import sharding
from instruct_jax.chain.base_model import load_run
from instruct_jax.chain.rounds import rounds_of
from instruct_jax.chain.settings import ON_REQUEST, STAGES, FilesConfig, RunConfig
from instruct_jax.chain.task import Split, files_tokenizer, split, task_tokenizer
from instruct_jax.config import MESH
from instruct_jax.data import encode, packing, readers
from instruct_jax.data import public_sets as adapters
from instruct_jax.data.hub import model_folder
from instruct_jax.data.schemas import Record
from instruct_jax.data.tokenize import check_vocabulary, fingerprint
from instruct_jax.errors import ConfigError, DataError, require
from instruct_jax.runtime.checkpoints import saved_fingerprints
from instruct_jax.runtime.folders import check_run, check_start, read_config

KINDS = tuple(adapters.SCHEMAS)


@dataclasses.dataclass(frozen=True)
class FileFacts:
    """What the files of a run hold, as `check` shows it."""

    vocabulary: int  # ids of the tokenizer
    counts: dict[str, int]  # kind -> records that are used
    sft_rows: dict[str, int]  # stage -> packed rows of demonstrations
    completions: int  # in all rankings
    most_completions: int  # K of the largest ranking
    dropped: list[str]  # what was left out or cut, and why


def validate(config: RunConfig, stages: Sequence[str] | None = None) -> FileFacts | None:
    """Raises ConfigError, DataError or RunError for what cannot run.

    Reads and tokenizes the files, touches no device, writes nothing.
    """
    stages = config.stages if stages is None else stages
    check_config(config, stages)
    check_run(Path(config.out), dataclasses.asdict(config))
    check_other_runs(config)
    facts = None if config.files is None else read_files(config, config.files, stages)
    check_tokenizers(config)
    return facts


def check_other_runs(config: RunConfig) -> None:
    """The runs that this one begins with, or is measured beside, hold what is asked of them."""
    tree, start = dataclasses.asdict(config), config.start
    if start is not None:
        path = Path(start.folder) / "config.yaml"
        imported = (
            start.stages == ("pretrain",) and os.path.isfile(path) and read_config(path).get("base")
        )
        sections = (
            ["model"]
            if imported
            else [
                "model",
                "text",
                "world",
                "files",
                *(stage for stage in start.stages if stage in tree),
            ]
        )
        check_start(Path(start.folder), start.stages, tree, sections)
    for key, place in other_models(config).items():
        folder, _, stage = place.rpartition(":")
        require(
            os.path.isdir(Path(folder) / stage / "checkpoints"),
            f"{key}={place}: {folder} has no checkpoints of a stage {stage}; run that first",
        )
        load_run(Path(folder) / "config.yaml")
    earlier = config.compare.earlier
    require(
        earlier is None or os.path.isfile(Path(earlier) / "compare" / "done.json"),
        f"compare.earlier={earlier} has not finished the stage compare; run it there first",
    )


def other_models(config: RunConfig) -> dict[str, str]:
    """key of the config -> FOLDER:STAGE, of all models of other runs that this one reads."""
    compare, others = config.compare, config.evaluation.others
    judge = {} if compare.judge is None else {"compare.judge": compare.judge}
    return (
        {f"evaluation.others.{name}": place for name, place in others.items()}
        | {f"compare.models.{p}": p for p in compare.models}
        | judge
    )


def check_tokenizers(config: RunConfig) -> None:
    """Models that are there already (this run's, those that it begins with or is measured beside)
    were made with its tokenizer: the ids of another one mean other words to them."""
    start, others = config.start, other_models(config)
    places = {Path(config.out) / stage: "out" for stage in config.stages}
    places |= (
        {Path(start.folder) / stage: "start.folder" for stage in start.stages} if start else {}
    )
    places |= {Path(*place.rpartition(":")[::2]): key for key, place in others.items()}
    made = {place: saved_fingerprints(place / "checkpoints").get("tokenizer") for place in places}
    if not any(made.values()):
        return
    now = fingerprint(task_tokenizer(config, Path(config.out) / "tokenizer"))
    for place, then in made.items():
        require(
            then in (None, now),
            f"{places[place]}: the model {place} was made with the tokenizer {then}, and the one of"
            f" this run is {now}"
            f" ({config.files.tokenizer if config.files else f'the world, seed={config.seed}'});"
            " use the same tokenizer in both",
        )


def check_config(config: RunConfig, stages: Sequence[str]) -> None:
    """What needs neither data nor devices."""
    for stage in stages:
        near = difflib.get_close_matches(stage, STAGES, n=1)
        require(
            bool(stage),
            "--stages has an empty name; write names with one comma between two, of"
            f" {', '.join(STAGES)}",
        )
        require(
            stage in STAGES,
            f"--stages {stage} is unknown; "
            + (f"did you mean {near[0]}?" if near else f"use {', '.join(STAGES)}"),
        )
        require(
            stage in (*config.stages, *ON_REQUEST),
            f"--stages {stage} needs a section {stage}; add it",
        )
    _check_models(config)
    _check_divided(config, _known_sizes(config))
    for name, sft in config.sfts.items():
        mixed = round(sft.batch * sft.pretrain_mix)
        require(
            mixed < sft.batch and (mixed > 0) == (sft.pretrain_mix > 0),
            f"{name}.pretrain_mix={sft.pretrain_mix} makes {mixed} of the {sft.batch} rows of a"
            f" batch pretraining rows; raise {name}.batch",
        )
    for name, ppo in config.rl.items():
        require(
            ppo.ptx_batch == 0 or ppo.ptx_length <= config.model.context,
            f"{name}.ptx_length={ppo.ptx_length} exceeds model.context={config.model.context};"
            " lower it or raise model.context",
        )
        require(
            ppo.value_init != "policy" or config.reward_model in (None, config.model),
            f"{name}.value_init=policy needs a value function of the policy's shape; remove"
            " reward_model, or use value_init reward",
        )
    if config.files is not None:
        _check_kinds(config, config.files, stages)


def _check_models(config: RunConfig) -> None:
    """The reward model reads what the policy writes; a mesh divides the arrays of both."""
    judge, ppo = config.reward_model or config.model, config.rl.values()
    longest = config.text.max_prompt + max(
        [config.text.max_completion, *(p.sampler.max_tokens for p in ppo)]
    )
    require(
        longest <= judge.context,
        f"text.max_prompt + text.max_completion or sampler.max_tokens = {longest} exceeds"
        f" reward_model.context={judge.context}; raise it",
    )
    require(
        not (config.lora or config.frozen_layers) or judge == config.model,
        "reward_model is another model, and with lora or frozen_layers all share one base; remove"
        " reward_model, or these",
    )
    require(
        judge.vocab_size == config.model.vocab_size,
        f"reward_model.vocab_size={judge.vocab_size} is not"
        f" model.vocab_size={config.model.vocab_size}; make them equal",
    )


def _check_divided(config: RunConfig, sizes: dict[str, int]) -> None:
    """The mesh divides the arrays of both models, in both layouts."""
    for name, model in (
        ("model", config.model),
        ("reward_model", config.reward_model or config.model),
    ):
        split = {
            "vocab": ("vocab_size", model.vocab_rows),
            "heads": ("heads", model.heads),
            "kv_heads": ("kv_heads", model.groups),
            "mlp": ("mlp_width", model.mlp_size),
            "embed": ("width", model.width),
        }
        for rules in (
            sharding.TRAINING | config.mesh.training,
            sharding.SAMPLING | config.mesh.sampling,
        ):
            for logical, (key, size) in split.items():
                axes = rules[logical]
                parts = math.prod(sizes[axis] for axis in axes)
                repair = (
                    f"set {name}.vocab_multiple={parts}, or change the mesh"
                    if logical == "vocab"
                    else "change one of them"
                )
                require(
                    size % parts == 0,
                    f"mesh.{'*'.join(axes)}={parts} does not divide {name}.{key}={size}; {repair}",
                )


def _check_kinds(config: RunConfig, files: FilesConfig, stages: Sequence[str]) -> None:
    """Each stage finds the files that it learns from."""
    require(
        all(following.samples_ranked for following in rounds_of(config)[1:]),
        f"rounds.count={config.rounds and config.rounds.count}, but nobody ranks the samples of"
        " later rounds, files.rankings are those of the first; set rounds.people or rounds.judge",
    )
    needs = {
        "pretrain": () if config.base else ("texts",),
        **{
            name: ("demonstrations", "texts") if sft.pretrain_mix else ("demonstrations",)
            for name, sft in config.sfts.items()
        },
        "compare": ("prompts",) if config.samples_ranked else ("rankings",),
        "reward": ("demonstrations",) if config.samples_ranked else ("rankings", "demonstrations"),
        "select": ("prompts",),
        **{
            name: ("prompts", "texts") if ppo.ptx_batch else ("prompts",)
            for name, ppo in config.rl.items()
        },
        "evaluate": ("prompts",),
    }
    for stage in stages:
        for kind in needs.get(stage, ()):
            mixes = {
                "pretrain": "",
                **{
                    name: f" ({name}.pretrain_mix={sft.pretrain_mix})"
                    for name, sft in config.sfts.items()
                },
            }
            why = mixes.get(stage, " (ptx_coef > 0)") if kind == "texts" else ""
            require(
                bool(getattr(files, kind)),
                f"files.{kind}=[] but stage {stage}{why} needs some; name files, or leave {stage}"
                " out of --stages",
            )


def _known_sizes(config: RunConfig) -> dict[str, int]:
    """The sizes of the mesh, where a -1 is 1: whatever it stands for is a multiple of that."""
    return {axis: max(getattr(config.mesh, axis), 1) for axis in MESH}


def check_mesh(config: RunConfig, devices: int | None, stages: Sequence[str] | None = None) -> None:
    """The mesh fits the devices and divides the models, and the rows that the stages (None: all)
    compute at one time divide among the devices; devices None: as far as that can be known without
    them."""
    sizes: dict[str, int] = (
        _known_sizes(config)
        if devices is None
        else dict(zip(MESH, config.mesh.shape(devices), strict=True))
    )
    _check_divided(config, sizes)
    asked_for = config.stages if stages is None else stages
    in_parts = {"pretrain": config.pretrain, **config.sfts, "reward": config.reward}
    rows = {
        f"{name}.batch / {name}.micro_batches": stage.batch / stage.micro_batches
        for name, stage in in_parts.items()
        if name in asked_for
    }
    sampled = {"sample_batch": config.sample_batch}
    for name, ppo in config.rl.items():
        if name in asked_for:
            rows |= {
                f"{name}.{key} / {name}.micro_batches": getattr(ppo, key) / ppo.micro_batches
                for key in ("minibatch", "ptx_batch")
            }
            sampled[f"{name}.batch"] = ppo.batch
    training, sampling = (
        sharding.TRAINING | config.mesh.training,
        sharding.SAMPLING | config.mesh.sampling,
    )
    for asked, axes in ((rows, training["batch"]), (sampled, sampling["rows"])):
        parts, says = (
            math.prod(sizes[axis] for axis in axes),
            " * ".join(f"{axis} {sizes[axis]}" for axis in axes),
        )
        for key, size in asked.items():
            require(
                size % parts == 0,
                f"{key} = {size:g} must be a multiple of the mesh's {says} = {parts}; change {key}"
                " or the mesh",
            )


def missing_files(config: RunConfig) -> list[str]:
    """The models and data that are neither here nor, as far as it can be reached, on the hub."""
    files, imports = config.files, config.start is None or "pretrain" not in config.start.stages
    models = [config.base if imports else None, files.tokenizer if files else None]
    data = [path for kind in KINDS for path in getattr(files, kind, ())]
    gone = [name for name in models if name is not None and not _is_model(name)]
    return list(
        dict.fromkeys(
            [*gone, *(path for path in data if not readers.exists(adapters.split_path(path)[1]))]
        )
    )


def _is_model(name: str) -> bool:
    try:
        return model_folder(name, weights=False).is_dir()
    except DataError:
        return False


def read_files(config: RunConfig, files: FilesConfig, stages: Sequence[str]) -> FileFacts:
    """Reads, checks and tokenizes all records; texts are only read, as they may be many."""
    form = config.text
    dropped: list[str] = []
    tok = files_tokenizer(files)
    check_vocabulary(tok, config.model.vocab_size, config.model.vocab_rows)
    skip: Any = files.on_bad_record
    found: dict[str, list[readers.Records]] = {
        kind: [_noting(dropped, adapters.load(kind, path, skip)) for path in getattr(files, kind)]
        for kind in KINDS
    }
    for texts in found["texts"]:
        encode.check_texts(tok, texts)
    usable: dict[str, list[Record]] = {"texts": list(itertools.chain(*found["texts"]))}

    def encoded(kind: str, to_ids: Callable[..., encode.Encoded]) -> list[Any]:
        parts = [
            _encode(tok, path, records, to_ids, form, dropped)
            for path, records in zip(getattr(files, kind), found[kind], strict=True)
        ]
        usable[kind] = [
            records[i] for part, records in zip(parts, found[kind], strict=True) for i in part.kept
        ]
        return [item for part in parts for item in part.items]

    samples = encoded("demonstrations", encode.encode_demonstrations)
    rankings = encoded("rankings", encode.encode_rankings)
    encoded("prompts", encode.encode_prompts)
    _check_split(
        config,
        files,
        split(
            {kind: list(itertools.chain(*found[kind])) for kind in KINDS},
            files.held_out,
            config.seed,
        ),
        usable,
        stages,
    )
    rows = {}
    for name, sft in config.sfts.items():
        try:
            rows[name] = len(packing.pack(samples, sft.length, pad=0).tokens)
        except DataError as error:
            raise ConfigError(
                f"{name}.length={sft.length} is too short for the demonstrations: {error}"
            ) from error
    sizes = [len(ranks) for _, ranks in rankings]
    return FileFacts(
        len(tok),
        {kind: len(usable[kind]) for kind in KINDS},
        rows,
        sum(sizes),
        max(sizes, default=0),
        dropped,
    )


def _check_split(
    config: RunConfig,
    files: FilesConfig,
    parts: Split,
    usable: dict[str, list[Record]],
    stages: Sequence[str],
) -> None:
    """Each part of the records has enough to go on; a batch of PPO holds no prompt twice."""
    short = {id(record) for records in usable.values() for record in records}

    def left(records: list[Record]) -> int:
        return sum(id(record) in short for record in records)

    apart = f"files.held_out={files.held_out} sets whole conversations apart"
    for kind in ("demonstrations", "rankings"):
        require(
            not getattr(files, kind) or left(getattr(parts, kind)) > 0,
            f"files.{kind}={list(getattr(files, kind))}: of {len(usable[kind])} records none is"
            f" left to learn from, {apart}; add some of other prompts",
        )
    require(
        not files.prompts or left(parts.held_out_prompts) > 0,
        f"files.prompts={list(files.prompts)}: of {len(usable['prompts'])} records none is left to"
        f" measure with, {apart}; add prompts",
    )
    for name in config.rl:
        batch, prompts = config.rl[name].batch, left(parts.prompts)
        require(
            name not in stages or prompts >= batch,
            f"{name}.batch={batch}, but of {len(usable['prompts'])} records in files.prompts"
            f" {prompts} are left to learn from, {apart}; add prompts, or lower {name}.batch",
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
        raise DataError(f"{path}: all {len(records)} records are longer than text.max_prompt={form.max_prompt} or text.max_completion="
                        f"{form.max_completion} and text.on_long={form.on_long} leaves none; raise them")  # fmt: skip
    if found.long_prompts or found.long_completions:
        dropped.append(f"{path}: {found.message} (on_long={form.on_long})")
    return found


def _noting(dropped: list[str], records: readers.Records) -> readers.Records:
    dropped += records.dropped
    return records
