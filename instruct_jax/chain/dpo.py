"""Kind dpo: a policy from rankings, without a reward model."""

import dataclasses
from typing import Any, ClassVar

import jax
import numpy as np

from instruct_jax.chain import networks, parameters, programs, rankings, reward, supervised
from instruct_jax.chain.context import Stage
from instruct_jax.chain.kind import Curve, Kind
from instruct_jax.chain.programs import Learns, Program
from instruct_jax.chain.settings import Leaves, RunConfig, StartedSettings
from instruct_jax.chain.spec import Checkpoint, write_spec
from instruct_jax.data import encode
from instruct_jax.errors import require
from instruct_jax.runtime.loop import Training, train
from instruct_jax.stages.dpo import DpoBatch, DpoConfig, make_loss, sequence_logp


@dataclasses.dataclass(frozen=True)
class DpoStage(DpoConfig, StartedSettings):
    """Settings of a stage of kind dpo.  `start` is the reference too."""

    leaves: ClassVar[Leaves] = "policy"

    # stages of kind compare, RUN:STAGE, or data: the rankings of the data
    rankings: str | tuple[str, ...] = "data"

    def uses(self) -> dict[str, str]:
        return {"start": self.start} | rankings.source_uses(self.rankings)


def set_up(stage: Stage, steps: int) -> supervised.Supervised:
    cfg = stage.settings
    net = stage.network
    key = stage.key(f"{stage.name} adapters")
    return supervised.set_up(
        stage,
        net,
        net.boxed_policy,
        parameters.start_params(stage.run, net, stage.used("start"), key),
        make_loss(net.policy, cfg.beta),
        cfg.optimizer,
        steps,
        micro_batches=cfg.micro_batches,
    )


def training(stage: Stage) -> Training:
    cfg = stage.settings
    net = stage.network
    records = rankings.gathered(stage).train
    examples = encode.encode_rankings(net.tokenizer, records, net.text).items
    source = reward.ranking_source(stage, net, examples)
    rankings_at = networks.batches_on_mesh(net, source, cfg.batch)
    reference = _reference_logp(stage, examples, source, rankings_at)

    def batch_at(step: int) -> DpoBatch:
        batch = rankings_at(step)
        k = batch.ranks.shape[1]
        logp = reference[source.records_at(step), :k]
        return DpoBatch(batch, networks.put(net, logp))

    steps = cfg.epochs * source.steps_per_epoch
    return supervised.training(
        set_up(stage, steps),
        batch_at,
        steps,
        examples=(batch_at(i) for i in range(steps)),
        save_every=cfg.save_every,
        show=("dpo/loss", "dpo/accuracy"),
        facts={"rankings": len(examples)},
    )


def abstract_programs(stage: Stage) -> list[Program]:
    ready = set_up(stage, steps=1)
    batch = reward.abstract_rankings(stage)
    rows, k, length = batch.tokens.shape
    reference = programs.scores(ready.net.layout, rows, k)
    positions = rows * k * length
    parts = stage.settings.micro_batches
    learns = Learns(ready.net.policy, rows * k, length, positions, parts)
    return [supervised.program(stage, ready, DpoBatch(batch, reference), learns)]


def _reference_logp(stage: Stage, examples: list[Any], source: Any, rankings_at: Any) -> np.ndarray:
    """log p of every completion under the policy that the stage starts from, [records, K] f32 in
    nats; computed once.
    """
    net = stage.network
    start = parameters.policy(stage.run, stage.used("start"))
    logp = jax.jit(
        lambda params, batch: sequence_logp(start.net.policy, params, batch),
        out_shardings=net.layout.sharding(),
    )
    most = max(len(ranks) for _, ranks in examples)
    reference = np.zeros((len(examples), most), np.float32)
    for step in range(source.steps_per_epoch):  # one epoch holds every record
        batch = rankings_at(step)
        found = np.asarray(logp(start.params, batch))
        reference[source.records_at(step), : found.shape[1]] = found
    return reference


def run(stage: Stage) -> dict[str, Any]:
    """The policy after its last epoch."""
    ready = training(stage)
    train(ready, stage.folder)
    write_spec(stage.run.folder, stage.name, stage.spec, Checkpoint(stage.name))
    return ready.facts


def check(stage: Stage) -> None:
    rankings.check(stage)
    text = stage.run.config.text
    context = stage.spec.model.context
    longest = text.max_prompt + text.max_completion
    require(
        longest <= context,
        f"text.max_prompt + text.max_completion = {longest} exceeds the context {context} of"
        f" stages.{stage.name}; raise it, or lower these",
    )


def reads(config: RunConfig, cfg: Any) -> tuple[str, ...]:
    return ("rankings",) if "data" in rankings.sources(cfg.rankings) else ()


KIND = Kind(
    settings=DpoStage,
    run=run,
    training=training,
    programs=abstract_programs,
    reads=reads,
    records=rankings.content,
    run_keys=("text",),
    check=check,
    rows=lambda name, s: {f"{name}.batch / {name}.micro_batches": s.batch / s.micro_batches},
    line=reward.line,
    curves=(
        Curve("dpo/loss", "DPO loss", "nats per prompt"),
        Curve("dpo/accuracy", "DPO: pairs that the policy orders rightly", "share of pairs"),
    ),
)
