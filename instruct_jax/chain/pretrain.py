"""Kind pretrain: a base model from random weights, on plain text."""

import dataclasses
from typing import Any, ClassVar

import numpy as np

from instruct_jax.chain import networks, supervised, texts
from instruct_jax.chain.context import Stage
from instruct_jax.chain.kind import Curve, Kind, Line
from instruct_jax.chain.networks import Network
from instruct_jax.chain.settings import Leaves, StageSettings, WorldConfig
from instruct_jax.chain.spec import Checkpoint, write_spec
from instruct_jax.config import ModelConfig
from instruct_jax.data import batches
from instruct_jax.data.packing import Rows
from instruct_jax.data.tokenize import bos_ids
from instruct_jax.errors import ConfigError, require
from instruct_jax.records import Params
from instruct_jax.runtime.loop import Training, train
from instruct_jax.stages.pretrain import PretrainConfig, make_loss
from instruct_jax.stages.rollout import SamplerConfig


@dataclasses.dataclass(frozen=True)
class PretrainStage(PretrainConfig, StageSettings):
    """Settings of a stage of kind pretrain."""

    leaves: ClassVar[Leaves] = "policy"
    whole: ClassVar[bool] = True

    model: ModelConfig | None = None  # null = the run's


def set_up(stage: Stage) -> supervised.Supervised:
    cfg = stage.settings
    net = stage.network
    key = stage.key("policy weights")
    return supervised.set_up(
        stage,
        net,
        net.boxed_policy,
        stage.run.born(net.policy.init, net.layout, key),
        make_loss(net.policy, "pretrain", dropout=cfg.dropout),
        cfg.optimizer,
        cfg.steps,
        micro_batches=cfg.micro_batches,
    )


def training(stage: Stage) -> Training:
    cfg = stage.settings
    net = stage.network
    rows = texts.rows_of(net, _texts(stage), cfg.length)
    held_out = texts.held_out(stage, net)
    facts: dict[str, Any] = {"tokens": cfg.steps * cfg.batch * cfg.length}
    if held_out:
        facts["nll_unigram"] = nll_unigram(rows, held_out, net.spec.model.vocab_size)
    source = batches.token_batches(rows, batch=cfg.batch, seed=stage.seed)
    return supervised.training(
        set_up(stage),
        networks.batches_on_mesh(net, source, cfg.batch),
        cfg.steps,
        save_every=cfg.save_every,
        show=("pretrain/nll",),
        facts=facts,
    )


def run(stage: Stage) -> dict[str, Any]:
    """The base model; where the task has probes, copying must have emerged."""
    net = stage.network
    ready = training(stage)
    params = train(ready, stage.folder).params
    output = ready.facts
    held_out = texts.held_out(stage, net)
    if held_out:
        _, batch = texts.row_shape(stage, net)
        output["nll"] = networks.nll(net, params, held_out, batch)
    if stage.task.probes:
        output["copy_probes"] = copy_probes(stage, net, params)
        _require_copying(output["copy_probes"], stage.run.config.world)
    write_spec(stage.run.folder, stage.name, stage.spec, Checkpoint(stage.name))
    return output


def _texts(stage: Stage) -> list:
    cfg = stage.settings
    return texts.learned(stage, cfg.steps * cfg.batch * cfg.length)


def _require_copying(probes: dict[str, float], world: WorldConfig | None) -> None:
    least = world.copy_probe if world else 0.0
    if min(probes.values()) < least:
        raise ConfigError(
            f"the base model has not learned to copy: probes {probes}, at least"
            f" world.copy_probe={least} is needed; raise pretrain.steps, or try another seed"
        )


def copy_probes(stage: Stage, net: Network, params: Params) -> dict[str, float]:
    """Share of probes of each kind that greedy decoding answers, word for word."""
    tok = net.tokenizer
    probes = stage.task.probes
    prompts = []
    for probe in probes:
        ids = tok.encode(probe["prompt"], add_special_tokens=False)
        prompts.append(bos_ids(tok) + ids)
    greedy = SamplerConfig(max_tokens=12, temperature=0.0)
    replies = networks.generate(net, params, prompts, greedy, stage.key("copy probes"))
    right: dict[str, list[bool]] = {}
    for probe, completions in zip(probes, replies, strict=True):
        answer = probe["answer"].split()
        words = completions[0].text.split()[: len(answer)]
        right.setdefault(probe["kind"], []).append(words == answer)
    return {kind: float(np.mean(hits)) for kind, hits in right.items()}


def nll_unigram(train: Rows, held_out: Rows, vocabulary: int) -> float:
    """The trivial baseline of a language model: NLL per token, in nats, of held-out rows under the
    frequencies (plus one) of tokens in the training rows.
    """
    counts = np.bincount(train.tokens[train.mask], minlength=vocabulary) + 1
    logp = np.log(counts / counts.sum())
    measured = held_out.tokens[held_out.mask]
    return float(-logp[measured].mean())


def check(stage: Stage) -> None:
    length = stage.settings.length
    context = stage.spec.model.context
    require(
        length <= context,
        f"stages.{stage.name}.length={length} exceeds model.context={context}; lower it or raise"
        " model.context",
    )


def line(stage: Stage, facts: Any) -> Line:
    cfg = stage.settings
    tokens = cfg.steps * cfg.batch * cfg.length
    return Line(f"{cfg.steps:,}", f"{cfg.batch} x {cfg.length}", f"{tokens:,}")


KIND = Kind(
    settings=PretrainStage,
    run=run,
    training=training,
    programs=lambda stage: [supervised.program_on_texts(stage, set_up(stage))],
    reads=lambda config, settings: ("texts",),
    records=lambda stage: {"texts": _texts(stage)},
    check=check,
    rows=lambda name, s: {f"{name}.batch / {name}.micro_batches": s.batch / s.micro_batches},
    line=line,
    curves=(Curve("pretrain/nll", "Pretraining loss", "nats per token"),),
)
