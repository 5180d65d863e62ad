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
    cfg = stage.settings
    net = stage.network
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
    cfg = stage.settings
    net = stage.network
    samples = _samples(stage, stage.task.demonstrations)
    rows = packing.pack(samples, cfg.length, pad=net.pad)
    mixed = mixed_rows(cfg)
    source = batches.token_batches(rows, batch=cfg.batch - mixed, seed=stage.seed)
    batch_at = networks.batches_on_mesh(net, source, cfg.batch)
    if mixed:
        batch_at = _mixed_batches(stage, source, mixed)
    per_epoch = source.steps_per_epoch
    steps = cfg.epochs * per_epoch
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
    params = train(ready, stage.folder).params
    output = ready.facts
    held_out = _samples(stage, stage.task.held_out_demonstrations)
    if held_out:
        cfg = stage.settings
        net = stage.network
        rows = packing.pack(held_out, cfg.length, pad=net.pad)
        whole = merge(parameters.base(stage.run, net), params)
        output["held_out_demonstrations"] = len(held_out)
        output["nll_held_out"] = networks.nll(net, whole, rows, cfg.batch)
    write_spec(stage.run.folder, stage.name, stage.spec, Checkpoint(stage.name))
    return output


def _samples(stage: Stage, demonstrations: list[Record]) -> list[packing.Sample]:
    """Token ids, and which of them are learned."""
    net = stage.network
    samples = encode.encode_demonstrations(net.tokenizer, demonstrations, net.text).items
    if stage.settings.loss_on_prompt:
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

    def batch_at(step: int) -> TokenBatch:
        joined = _joined(source.batch_at(step), text.batch_at(step))
        return networks.put(net, joined)

    return batch_at


def _mixed_texts(stage: Stage) -> list[Record]:
    cfg = stage.settings
    tokens_per_batch = mixed_rows(cfg) * cfg.length
    return texts.learned(stage, 100 * cfg.epochs * tokens_per_batch)


def _joined(*parts: TokenBatch) -> TokenBatch:
    """Batches below each other; every token weighs the same."""

    def all_rows(name: str) -> np.ndarray:
        return np.concatenate([np.asarray(getattr(part, name)) for part in parts])

    counted = (all_rows("weight") > 0).astype(np.float32)
    weight = counted / counted.sum()
    return TokenBatch(all_rows("tokens"), all_rows("segments"), weight)


def check(stage: Stage) -> None:
    cfg = stage.settings
    context = stage.spec.model.context
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
    cfg = stage.settings
    world = stage.run.config.world
    rows = None
    if facts:
        rows = facts.sft_rows.get(stage.name)
    elif world:
        rows = world.demonstrations
    hedge = "" if facts else "at most "
    epochs = plural(cfg.epochs, "epoch")
    batch = f"{cfg.batch} x {cfg.length}"
    if rows is None:
        return Line(epochs, batch)
    rows_per_step = cfg.batch - mixed_rows(cfg)
    steps_per_epoch = -(-rows // rows_per_step)
    steps = cfg.epochs * steps_per_epoch
    tokens = steps * cfg.batch * cfg.length
    return Line(f"{hedge}{steps:,} ({epochs})", batch, f"{hedge}{tokens:,}")


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
