"""Kind sft: a policy from demonstrations, one checkpoint for each epoch."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from instruct_jax.chain import networks, parameters, supervised, texts
from instruct_jax.chain.context import Stage
from instruct_jax.chain.kind import Curve, Kind, Line
from instruct_jax.chain.settings import Leaves, RunConfig, StartedSettings
from instruct_jax.chain.spec import Checkpoint, write_spec
from instruct_jax.data import batches, encode, packing
from instruct_jax.data.schemas import Record
from instruct_jax.errors import require
from instruct_jax.models.lora import merge
from instruct_jax.records import TokenBatch
from instruct_jax.runtime.loop import Training, train
from instruct_jax.stages.pretrain import make_loss
from instruct_jax.stages.sft import SftConfig
from instruct_jax.text import plural


@dataclasses.dataclass(frozen=True)
class SftStage(SftConfig, StartedSettings):
    """Settings of a stage of kind sft."""

    leaves: ClassVar[Leaves] = "policy"


def set_up(stage: Stage, steps: int) -> supervised.Supervised:
    cfg, net = stage.settings, stage.network
    key = stage.key(f"{stage.name} adapters")
    return supervised.set_up(
        stage,
        net,
        net.boxed_policy,
        parameters.start_params(stage.run, net, stage.used("start"), key),
        make_loss(net.policy, "sft", dropout=cfg.dropout),
        cfg.optimizer,
        steps,
        micro_batches=cfg.micro_batches,
    )


def training(stage: Stage) -> Training:
    """On demonstrations, with a share of pretraining rows where pretrain_mix asks for it."""
    cfg, net = stage.settings, stage.network
    samples = _samples(stage, stage.task.demonstrations)
    rows = packing.pack(samples, cfg.length, pad=net.pad)
    mixed = mixed_rows(cfg)
    source = batches.token_batches(rows, batch=cfg.batch - mixed, seed=stage.seed)
    batch_at = networks.batches_on_mesh(net, source, cfg.batch)
    if mixed:
        batch_at = _mixed_batches(stage, source, mixed)
    steps, per_epoch = cfg.epochs * source.steps_per_epoch, source.steps_per_epoch
    return supervised.training(
        set_up(stage, steps),
        batch_at,
        steps,
        save_every=per_epoch,
        keep_every=per_epoch,
        show=("sft/nll",),
        facts={
            "steps_per_epoch": per_epoch,
            "demonstrations": len(samples),
            "rows": len(rows.tokens),
        },
    )


def run(stage: Stage) -> dict[str, Any]:
    """The policy after each epoch of demonstrations; the last one is what the stage leaves."""
    ready = training(stage)
    params, output = train(ready, stage.folder).params, ready.facts
    held_out = _samples(stage, stage.task.held_out_demonstrations)
    if held_out:
        cfg, net = stage.settings, stage.network
        rows = packing.pack(held_out, cfg.length, pad=net.pad)
        whole = merge(parameters.base(stage.run, net), params)
        output["held_out_demonstrations"] = len(held_out)
        output["nll_held_out"] = networks.nll(net, whole, rows, cfg.batch)
    write_spec(stage.run.folder, stage.name, stage.spec, Checkpoint(stage.name))
    return output


def _samples(stage: Stage, demonstrations: list[Record]) -> list[packing.Sample]:
    """Token ids, and which of them are learned."""
    cfg, net = stage.settings, stage.network
    samples = encode.encode_demonstrations(net.tokenizer, demonstrations, net.text).items
    if cfg.loss_on_prompt:
        return [(ids, [True] * len(ids)) for ids, _ in samples]
    return samples


def mixed_rows(cfg: SftConfig) -> int:
    """Rows of a batch that are pretraining text."""
    return round(cfg.batch * cfg.pretrain_mix)


def _mixed_batches(
    stage: Stage, source: batches.Batches[TokenBatch], rows: int
) -> Callable[[int], TokenBatch]:
    """step -> a batch of demonstrations with so many rows of pretraining text below them."""
    net = stage.network
    text_rows = texts.rows_of(net, _mixed_texts(stage), stage.settings.length)
    text = batches.token_batches(text_rows, batch=rows, seed=stage.seed)
    return lambda step: networks.put(net, _joined(source.batch_at(step), text.batch_at(step)))


def _mixed_texts(stage: Stage) -> list[Record]:
    cfg = stage.settings
    return texts.learned(stage, 100 * cfg.epochs * mixed_rows(cfg) * cfg.length)


def _joined(*parts: TokenBatch) -> TokenBatch:
    """Batches below each other; every token weighs the same."""

    def all_rows(name: str) -> np.ndarray:
        return np.concatenate([np.asarray(getattr(part, name)) for part in parts])

    counted = (all_rows("weight") > 0).astype(np.float32)
    return TokenBatch(all_rows("tokens"), all_rows("segments"), counted / counted.sum())  # type: ignore[arg-type]


def check(stage: Stage) -> None:
    cfg, context = stage.settings, stage.spec.model.context
    place = f"stages.{stage.name}"
    require(
        cfg.length <= context,
        f"{place}.length={cfg.length} exceeds model.context={context}; lower it or raise"
        " model.context",
    )
    mixed = mixed_rows(cfg)
    require(
        mixed < cfg.batch and (mixed > 0) == (cfg.pretrain_mix > 0),
        f"{place}.pretrain_mix={cfg.pretrain_mix} makes {mixed} of the {cfg.batch} rows of a batch"
        f" pretraining rows; raise {place}.batch",
    )


def reads(config: RunConfig, cfg: Any) -> tuple[str, ...]:
    return ("demonstrations", "texts") if cfg.pretrain_mix else ("demonstrations",)


def records(stage: Stage) -> dict[str, Any]:
    task = stage.task
    found: dict[str, Any] = {"demonstrations": task.demonstrations}
    if task.held_out_demonstrations:
        found["held_out_demonstrations"] = task.held_out_demonstrations
    if stage.settings.pretrain_mix:
        found["texts"] = _mixed_texts(stage)
    return found


def line(stage: Stage, facts: Any) -> Line:
    cfg, world = stage.settings, stage.run.config.world
    rows = facts.sft_rows.get(stage.name) if facts else world.demonstrations if world else None
    hedge = "" if facts else "at most "
    if rows is None:
        return Line(plural(cfg.epochs, "epoch"), f"{cfg.batch} x {cfg.length}")
    steps = cfg.epochs * -(-rows // (cfg.batch - mixed_rows(cfg)))
    return Line(
        f"{hedge}{steps:,} ({plural(cfg.epochs, 'epoch')})",
        f"{cfg.batch} x {cfg.length}",
        f"{hedge}{steps * cfg.batch * cfg.length:,}",
    )


KIND = Kind(
    settings=SftStage,
    run=run,
    training=training,
    # the number of steps only changes the learning rate
    programs=lambda stage: [supervised.program_on_texts(stage, set_up(stage, steps=1))],
    reads=reads,
    records=records,
    run_keys=("text",),
    check=check,
    rows=lambda name, s: {f"{name}.batch / {name}.micro_batches": s.batch / s.micro_batches},
    line=line,
    curves=(Curve("sft/nll", "SFT loss", "nats per token"),),
)
