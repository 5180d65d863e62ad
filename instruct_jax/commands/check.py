"""What a config would run, in words and numbers: models, stages, batches, memory, data.

Nothing runs, and no device is touched.
"""

import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from instruct_jax.chain.context import Run
from instruct_jax.chain.kinds import KINDS
from instruct_jax.chain.preflight import (
    DataFacts,
    check_config,
    check_mesh,
    check_stages,
    missing_files,
    read_data,
)
from instruct_jax.chain.rounds import rounds_of
from instruct_jax.chain.run import check_identities, check_needs, check_tokenizers, picked
from instruct_jax.chain.settings import RunConfig
from instruct_jax.chain.spec import ModelSpec
from instruct_jax.config import MESH, ModelConfig
from instruct_jax.errors import DataError
from instruct_jax.models.heads import ScalarModel
from instruct_jax.models.lm import LanguageModel, parameter_count
from instruct_jax.models.lora import split_adapters, split_lower_layers
from instruct_jax.runtime.folders import check_run
from instruct_jax.text import in_bytes, plural, table

F32 = 4  # bytes
TRAINED = 4 * F32  # bytes per parameter: weight, gradient, two moments of Adam


class Sizes(NamedTuple):
    """Parameters of a model."""

    frozen: int  # what no stage trains
    policy: int  # of the policy, trained
    scalar: int  # of the same backbone with a scalar head, trained

    @property
    def whole(self) -> int:
        return self.frozen + self.policy


def check(config: RunConfig, stages: Sequence[str] | None = None, redo: Sequence[str] = ()) -> str:
    """The text; ConfigError, DataError or RunError where `run` could not begin.

    Models and files that are not here are only reported.
    """
    check_config(config, stages, redo)
    check_mesh(config, None, stages)
    chosen = picked(config, stages, redo)
    exists = check_run(Path(config.out))
    run = Run(config, Path(config.out))
    check_needs(run, chosen)
    missing = missing_files(config)
    shapes_known = _are_shapes_known(run, chosen)
    if shapes_known:
        check_stages(run, chosen)
    facts = None
    if not missing:
        if config.data is not None:
            facts = read_data(run, config.data, chosen)
        if exists:
            check_identities(run, chosen, redo)
        check_tokenizers(run, chosen)
    lines = [
        f"run folder     {config.out} ({'exists, the run resumes' if exists else 'new'})",
        f"seed           {config.seed}",
    ]
    if config.rounds:
        folders = ", ".join(each.out for each in rounds_of(config))
        lines.append(f"rounds         {config.rounds.count}, each as below: {folders}")
    lines.append(f"mesh           {_mesh(config)}")
    if shapes_known:
        lines += ["", *_models(run, chosen)]
    lines += ["", *_stages(run, chosen, facts)]
    if shapes_known:
        lines += ["", *_memory(run, chosen)]
    lines += ["", *_data(config, facts, missing)]
    return "\n".join(lines)


def _are_shapes_known(run: Run, chosen: Sequence[str]) -> bool:
    """False where a stage uses a model that is not here and whose shape the config does
    not give.
    """
    try:
        for name in chosen:
            stage = run.stage(name)
            if stage.settings.leaves in ("policy", "scalar"):
                _ = stage.spec
            for place in stage.uses.values():
                if place.model is not None:
                    run.spec(place)
    except DataError:
        return False
    return True


@functools.cache
def sizes(spec: ModelSpec) -> Sizes:
    """Counted on shapes; no array is made."""
    lm = LanguageModel(spec.model, None, spec.lora, spec.frozen_layers)
    key = jax.eval_shape(lambda: jax.random.key(0))  # no device is started for it
    counts = []
    for init in (lm.init, ScalarModel(lm).init):
        whole = jax.eval_shape(init, key)
        split = split_adapters if spec.lora else split_lower_layers
        frozen, trained = ({}, whole) if spec.whole else split(whole)
        counts.append((parameter_count(frozen), parameter_count(trained)))
    (frozen, policy), (_, scalar) = counts
    return Sizes(frozen, policy, scalar)


def _models(run: Run, chosen: Sequence[str]) -> list[str]:
    """The models of the stages that train one, those of one shape in one line."""
    shapes: dict[ModelSpec, list[str]] = {}
    for name in chosen:
        stage = run.stage(name)
        if stage.settings.leaves in ("policy", "scalar"):
            shapes.setdefault(stage.spec, []).append(name)
    rows = []
    for spec, names in shapes.items():
        size = sizes(spec)
        rows.append(
            (
                ", ".join(names),
                f"{size.whole:,}",
                f"{size.policy:,}" if size.frozen else "all",
                shape_text(spec.model),
            )
        )
    return table(("model of", "parameters", "trained", "shape"), rows)


def shape_text(model: ModelConfig) -> str:
    """A model in a line."""
    heads = f"{model.heads} heads of {model.head_size}"
    if model.groups != model.heads:
        heads += f" ({model.groups} for keys and values)"
    return (
        f"{plural(model.layers, 'layer')}, width {model.width}, {heads}, context {model.context},"
        f" vocabulary {model.vocab_size}, {model.dtype}"
    )


def _mesh(config: RunConfig) -> str:
    axes = {axis: getattr(config.mesh, axis) for axis in MESH}
    known = abs(math.prod(axes.values()))
    if -1 not in axes.values():
        devices = plural(known, "device")
    elif known > 1:
        devices = f"a multiple of {known} devices"
    else:
        devices = "any number of devices"
    parts = []
    for name, size in axes.items():
        shown = "(all the rest)" if size == -1 else size
        parts.append(f"{name} {shown}")
    return f"{' x '.join(parts)}: needs {devices}"


def _stages(run: Run, chosen: Sequence[str], facts: DataFacts | None) -> list[str]:
    rows = []
    for name in chosen:
        stage = run.stage(name)
        uses = ", ".join(f"{key} {place}" for key, place in stage.uses.items())
        line = KINDS[stage.settings.kind].line(stage, facts)
        rows.append((name, stage.settings.kind, *line, uses or "-"))
    return table(("stage", "kind", "steps", "batch", "tokens", "uses"), rows)


def _memory(run: Run, chosen: Sequence[str]) -> list[str]:
    """What is certain: states and caches.  Activations and the compiler's scratch space come on
    top.
    """
    config = run.config
    mesh = config.mesh
    shards = max(mesh.fsdp, 1) * max(mesh.tensor, 1)
    divided = f"/ {shards} (fsdp * tensor)"
    if mesh.fsdp == -1:
        divided = f"/ {shards} (tensor), and further by fsdp"
    rows = []
    notes = []
    for name in chosen:
        stage = run.stage(name)
        kind = KINDS[stage.settings.kind]
        if kind.training is None:
            continue
        size, what = _state(stage)
        rows.append((name, in_bytes(size), in_bytes(size / shards), what))
        if hasattr(stage.settings, "sampler"):
            notes.append(
                f"KV cache of one rollout of {name} {in_bytes(_cache(stage))} over all devices"
            )
    logits = config.model.logprob_chunk * config.model.vocab_size * F32
    notes.append(
        f"logits of one chunk of {config.model.logprob_chunk} positions {in_bytes(logits)}"
    )
    head = ("memory", "in all", "per device", f"states {divided}; activations come on top")
    return [*table(head, rows), *notes]


def _state(stage: Any) -> tuple[float, str]:
    """(bytes, what they are) of the state of a training stage and what lies beside it."""
    settings = stage.settings
    own = sizes(stage.spec)
    frozen = own.frozen * _bytes(stage.spec.model)
    on_base = "frozen base; of what is trained on it " if frozen else ""
    if not hasattr(settings, "sampler"):
        trained = own.scalar if settings.leaves == "scalar" else own.policy
        return frozen + TRAINED * trained, f"{on_base}weights, gradient, Adam"
    reward = sizes(stage.run.spec(stage.used("reward")))
    value = reward if settings.value_init == "reward" else own
    size = frozen + F32 * reward.scalar
    size += (TRAINED + 2 * F32) * own.policy  # trained, averaged, and the reference
    size += TRAINED * value.scalar
    what = (
        f"{on_base}policy and value function: weights, gradient, Adam; average of the policy;"
        " reference; reward model"
    )
    return size, what


def _cache(stage: Any) -> float:
    """Bytes of keys and values of all tokens of a batch of replies with their prompts."""
    model = stage.spec.model
    settings = stage.settings
    length = stage.run.config.text.max_prompt + settings.sampler.max_tokens
    tokens = settings.batch * length
    by_layer = 2 * model.groups * model.head_size
    return tokens * model.layers * by_layer * _bytes(model)


def _bytes(model: ModelConfig) -> int:
    """Of a number as the forward pass reads it."""
    return 2 if model.dtype == "bfloat16" else F32


def _data(config: RunConfig, facts: DataFacts | None, missing: list[str]) -> list[str]:
    if config.world is not None:
        count = config.world.demonstrations
        return [f"data           the embedded world: {count} demonstrations, made by the run"]
    if facts is None:
        return [
            "data           not found, so the data part is skipped (`run` would stop here):",
            *(f"  {path}" for path in missing),
        ]
    counts = facts.counts
    held_out = config.data.held_out if config.data else 0.0
    packed = [f", {rows:,} rows in {name}" for name, rows in facts.sft_rows.items()]
    return [
        f"tokenizer      {facts.vocabulary:,} ids of {config.model.vocab_rows:,} in the model",
        f"data           {counts['texts']:,} texts, {counts['prompts']:,} prompts;"
        f" {held_out:.0%} of all records are held out",
        f"               {counts['demonstrations']:,} demonstrations" + "".join(packed),
        f"               {counts['rankings']:,} rankings of {facts.completions:,} completions",
        f"dropped or cut {len(facts.dropped)}",
        *(f"  {line}" for line in facts.dropped[:10]),
    ]
