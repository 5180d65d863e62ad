"""The training stages: records to batches, parameters to a state, both into the loop."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from instruct_jax import optim, sharding
from instruct_jax.chain import measure, steps
from instruct_jax.chain.steps import compile_supervised, parted
from instruct_jax.chain.workspace import Workspace
from instruct_jax.config import OptimizerConfig
from instruct_jax.data import batches, encode, packing
from instruct_jax.data.schemas import Record
from instruct_jax.errors import ConfigError
from instruct_jax.models.heads import recentred
from instruct_jax.models.lora import backbone_of, join, scalar_base
from instruct_jax.records import Metrics, Params, PromptBatch, TokenBatch, TrainState
from instruct_jax.runtime.checkpoints import Checkpoints
from instruct_jax.runtime.folders import append_row
from instruct_jax.runtime.hosts import is_main
from instruct_jax.runtime.loop import train
from instruct_jax.runtime.metrics import cut_after
from instruct_jax.stages import ppo as ppo_stage
from instruct_jax.stages import pretrain as pretrain_stage
from instruct_jax.stages import reward_model as reward_stage
from instruct_jax.stages.gradient import LossFn
from instruct_jax.stages.rollout import SamplerConfig


@dataclasses.dataclass(frozen=True)
class Training:
    """A training stage before its first step: all that the loop wants to know, and what a replay
    takes one step of.
    """

    step: Callable[[TrainState, Any], tuple[TrainState, Metrics]]
    state: TrainState
    batch_at: Callable[[int], Any]
    total_steps: int
    fingerprints: dict[str, str]
    save_every: int
    keep_every: int | None = None
    stop_when: Callable[[dict[str, float]], str | None] | None = None
    show: tuple[str, ...] = ()
    # what the data alone says, for done.json
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)

    def run(self, folder: Path) -> TrainState:
        """Trains to the end; leaves checkpoints and metrics in the folder.  Uses up the state."""
        with Checkpoints(
            folder / "checkpoints", fingerprints=self.fingerprints, keep_every=self.keep_every
        ) as checkpoints:
            return train(
                self.step,
                self.state,
                self.batch_at,
                total_steps=self.total_steps,
                folder=folder,
                checkpoints=checkpoints,
                save_every=self.save_every,
                stop_when=self.stop_when,
                show=self.show,
            )


def supervised(
    ws: Workspace,
    name: str,
    boxed: Params,
    params: Params,
    loss_fn: LossFn,
    optimizer: OptimizerConfig,
    batch_at: Callable[[int], Any],
    steps: int,
    *,
    micro_batches: int,
    several_shapes: bool = False,
    **options: Any,
) -> Training:
    """The training of `params` (abstract twin: boxed) with one loss, as far as the run trains
    them.  `options` are the further fields of Training."""
    tx = optim.make_optimizer(optimizer, steps)
    part = (lambda tree: ({}, tree)) if name == "pretrain" else lambda tree: parted(tree, ws.config)
    (base, own), (_, boxed) = part(params), part(boxed)
    state = sharding.create_state(ws.layout, boxed, own, tx.init, ws.key(name))
    step = compile_supervised(ws.models, loss_fn, tx, state, base, micro_batches)
    step = sharding.ahead_of_time(
        step, state, base, (batch_at(i) for i in range(steps if several_shapes else 1))
    )
    return Training(step, state, batch_at, steps, ws.fingerprints(name), **options)


def training_of(ws: Workspace, stage: str) -> Training:
    """The training of a stage by its name, as the stage itself does it."""
    if stage in ws.config.sfts:
        return sft_training(ws, stage)
    if stage in ws.config.rl:
        return ppo_training(ws, stage)
    return {"pretrain": pretraining, "reward": reward_training}[stage](ws)


def text_rows(ws: Workspace, records: list, length: int) -> packing.Rows:
    return packing.pack(encode.encode_texts(ws.task.tokenizer, records, length), length, pad=ws.pad)


def held_out_rows(ws: Workspace) -> packing.Rows | None:
    """Rows of held-out text; of more than files.held_out_tokens, rows evenly spaced over all.

    None where no text is held out.
    """
    if not ws.task.held_out_texts:
        return None
    length, files = ws.config.pretrain.length, ws.config.files
    rows = text_rows(ws, ws.task.held_out_texts, length)
    count = len(rows.tokens)
    chosen = np.linspace(
        0, count - 1, count if files is None else min(count, -(-files.held_out_tokens // length))
    ).astype(int)
    return packing.Rows(*(x[chosen] for x in rows))


def pretraining(ws: Workspace) -> Training:
    """Of the base model, from random weights."""
    cfg = ws.config.pretrain
    texts, held_out = text_rows(ws, ws.task.texts, cfg.length), held_out_rows(ws)
    rows = batches.token_batches(texts, batch=cfg.batch, seed=ws.config.seed)
    unigram = (
        {"nll_unigram": measure.nll_unigram(texts, held_out, ws.config.model.vocab_size)}
        if held_out
        else {}
    )
    return supervised(
        ws,
        "pretrain",
        ws.boxed_pretrained,
        sharding.create_sharded(
            ws.policy._replace(lora=None).init, ws.layout, ws.key("policy weights")
        ),
        pretrain_stage.make_loss(ws.policy, "pretrain", dropout=cfg.dropout),
        cfg.optimizer,
        ws.batch_at(rows, cfg.batch),
        cfg.steps,
        micro_batches=cfg.micro_batches,
        save_every=cfg.save_every,
        show=("pretrain/nll",),
        facts={"tokens": cfg.steps * cfg.batch * cfg.length} | unigram,
    )


def pretrain(ws: Workspace) -> dict[str, Any]:
    """The base model; where the task has probes, copying must have emerged."""
    training = pretraining(ws)
    params, output = (
        join(training.run(ws.folder / "pretrain").params, ws.adapters("none")),
        training.facts,
    )
    if held_out := held_out_rows(ws):
        output["nll"] = ws.nll(params, held_out)
    if ws.task.probes:
        output["copy_probes"] = measure.copy_probes(ws, params)
        worst, least = (
            min(output["copy_probes"].values()),
            ws.config.world.copy_probe if ws.config.world else 0.0,
        )
        if worst < least:
            raise ConfigError(
                f"the base model has not learned to copy: probes {output['copy_probes']}, at least"
                f" world.copy_probe={least} is needed; raise pretrain.steps, or try another seed"
            )
    return output


def sft_training(ws: Workspace, name: str) -> Training:
    """On demonstrations, with a share of pretraining rows where pretrain_mix asks for it; one
    checkpoint per epoch.
    """
    cfg, task = ws.config.sfts[name], ws.task
    samples = encode.encode_demonstrations(
        task.tokenizer, task.demonstrations, ws.config.text
    ).items
    if cfg.loss_on_prompt:
        samples = [(ids, [True] * len(ids)) for ids, _ in samples]
    rows = packing.pack(samples, cfg.length, pad=ws.pad)
    mixed = round(cfg.batch * cfg.pretrain_mix)
    source = batches.token_batches(rows, batch=cfg.batch - mixed, seed=ws.config.seed)
    batch_at = ws.batch_at(source, cfg.batch)
    if mixed:
        texts = batches.token_batches(
            text_rows(ws, task.texts, cfg.length), batch=mixed, seed=ws.config.seed
        )
        batch_at = lambda step: ws.put(_joined(source.batch_at(step), texts.batch_at(step)))  # noqa: E731
    return supervised(
        ws,
        name,
        ws.boxed_policy,
        join(ws.policy_of("pretrain"), ws.adapters(f"{name} adapters")),
        pretrain_stage.make_loss(ws.policy, "sft", dropout=cfg.dropout),
        cfg.optimizer,
        batch_at,
        cfg.epochs * source.steps_per_epoch,
        micro_batches=cfg.micro_batches,
        save_every=source.steps_per_epoch,
        keep_every=source.steps_per_epoch,
        show=("sft/nll",),
        facts={
            "steps_per_epoch": source.steps_per_epoch,
            "demonstrations": len(samples),
            "rows": len(rows.tokens),
        },
    )


def sft(ws: Workspace, name: str = "sft") -> dict[str, Any]:
    """The policy after each epoch of demonstrations."""
    training = sft_training(ws, name)
    training.run(ws.folder / name)
    return training.facts


def _joined(*parts: TokenBatch) -> TokenBatch:
    """Batches below each other; every token weighs the same."""
    tokens, segments, counted = (
        np.concatenate([np.asarray(getattr(p, name)) for p in parts])
        for name in ("tokens", "segments", "weight")
    )
    counted = (counted > 0).astype(np.float32)
    return TokenBatch(tokens, segments, counted / counted.sum())  # type: ignore[arg-type]


def reward_training(
    ws: Workspace, name: str = "reward", rankings: list[Record] | None = None
) -> Training:
    """Of a reward model, from the SFT model, on rankings (None: all that are to be learned from)."""
    cfg = ws.config.reward
    records = (
        measure.read_compared(ws.folder / "compare", "train") if rankings is None else rankings
    )
    examples = encode.encode_rankings(ws.task.tokenizer, records, ws.config.text).items
    if cfg.pairs_shuffled:
        examples = [pair for example in examples for pair in _pairs(*example)]
    longest = max(len(ids) for completions, _ in examples for ids in completions)
    sizes = sorted({min(-(-longest * part // 32) * 8, longest) for part in (2, 3, 4)})
    counts = sorted({2, max(len(ranks) for _, ranks in examples)})  # pairs are not padded to K = 9
    source = batches.ranking_batches(
        examples, batch=cfg.batch, seed=ws.config.seed, pad=ws.pad, sizes=sizes, counts=counts
    )
    same = ws.config.reward_model in (None, ws.config.model)
    backbone = (
        ws.policy_of("sft")
        if same
        else sharding.create_sharded(ws.scalar.lm.init, ws.layout, ws.key(f"{name} weights"))
    )
    head = sharding.create_sharded(ws.scalar.init_head, ws.layout, ws.key(f"{name} head"))
    return supervised(
        ws,
        name,
        ws.boxed_scalar,
        {"backbone": backbone_of(backbone), "head": head},
        reward_stage.make_loss(ws.scalar),
        cfg.optimizer,
        ws.batch_at(source, cfg.batch),
        cfg.epochs * source.steps_per_epoch,
        micro_batches=cfg.micro_batches,
        save_every=cfg.save_every,
        show=("reward/accuracy", "reward/loss"),
        several_shapes=True,
        facts={"rankings": len(examples)},
    )


def reward(ws: Workspace) -> dict[str, Any]:
    """The reward model; recentred after its training, and measured on held-out rankings."""
    training = reward_training(ws)
    params = join(scalar_base(ws.base), training.run(ws.folder / "reward").params)
    shift = normalisation(ws, params)
    params = recentred(params, shift["mean"], shift["scale"])
    groups = {name: measure.read_compared(ws.folder / "compare", name) for name in measure.GROUPS}
    return {"normalisation": shift} | training.facts | measure.reward_model(ws, params, groups)


def _pairs(completions, ranks) -> Iterator[batches.Ranking]:
    """Every pair of a ranking as a ranking of its own."""
    for i, better in enumerate(ranks):
        for j, worse in enumerate(ranks):
            if better < worse:
                yield [completions[i], completions[j]], [1, 2]


def normalisation(ws: Workspace, params: Params) -> dict[str, float]:
    """What to subtract so that demonstrations score 0 on average (paper C.2), and the spread of SFT
    samples where asked for.
    """
    demonstrations = encode.encode_demonstrations(
        ws.task.tokenizer, ws.task.demonstrations, ws.config.text
    ).items
    mean = float(ws.rewards(params, [ids for ids, _ in demonstrations]).mean())
    if ws.config.reward.normalize == "mean":
        return {"mean": mean, "scale": 1.0}
    _, prompts = ws.encode(ws.task.prompts["normalisation"])
    sampler = SamplerConfig(max_tokens=ws.config.ppo.sampler.max_tokens)
    drawn = ws.generate(ws.policy_of("sft"), prompts, sampler, ws.key("normalisation"))
    return {
        "mean": mean,
        "scale": float(
            ws.rewards(params, [[*p, *c[0].ids] for p, c in zip(prompts, drawn, strict=True)]).std()
        ),
    }


def ppo_training(ws: Workspace, name: str, phases: Path | None = None) -> Training:
    """PPO, or PPO-ptx where the config has a ptx_coef: rollout, experience, update.

    How long these took is written to `phases`.
    """
    cfg = ws.config.rl[name]
    start, judge = ws.trained(ws.policy_of([*ws.config.sfts][-1])), ws.trained(ws.reward_params())
    critic = {
        "reward": lambda: judge,
        "policy": lambda: {
            "backbone": backbone_of(start),
            "head": sharding.create_sharded(ws.scalar.init_head, ws.layout, ws.key("value head")),
        },
        "fresh": lambda: sharding.create_sharded(
            lambda key: ws.trained(ws.scalar.init(key)), ws.layout, ws.key("value weights")
        ),
    }[cfg.value_init]()
    optimizers = steps.ppo_optimizers(cfg)
    state = sharding.create_state(
        ws.layout,
        {"policy": ws.trained(ws.boxed_policy), "value": ws.trained(ws.boxed_scalar)},
        {"policy": start, "value": critic},
        key=ws.key(name),
        **steps.ppo_state(cfg, optimizers),
    )
    prompts = batches.prompt_batches(
        ws.encode(ws.task.prompts["ppo"])[1], batch=cfg.batch, seed=ws.config.seed, pad=ws.pad
    )
    texts = text_rows(ws, ws.task.texts, cfg.ptx_length) if cfg.ptx_batch else None
    ptx = batches.token_batches(texts, batch=cfg.ptx_batch, seed=ws.config.seed) if texts else None

    prompts_at, wide = ws.batch_at(prompts, cfg.batch), ws.layout.sharding(None, "batch")

    def batch_at(step: int) -> tuple[PromptBatch, TokenBatch | None]:
        if ptx is None:
            return prompts_at(step), None
        rows = sharding.rows_here(wide, cfg.ptx_batch, axis=1)
        parts = [ptx.batch_at(step * cfg.updates + i, rows) for i in range(cfg.updates)]
        return prompts_at(step), sharding.put(
            jax.tree.map(lambda *x: np.stack(x), *parts), wide, cfg.ptx_batch, axis=1
        )

    return Training(
        _iteration(
            ws,
            cfg,
            state,
            {"base": ws.base, "reference": start, "reward": judge},
            optimizers,
            phases,
        ),
        state,
        batch_at,
        cfg.iterations,
        ws.fingerprints(name),
        save_every=cfg.save_every,
        keep_every=cfg.keep_every,
        stop_when=_budget(cfg.kl_budget),
        show=("ppo/score", "ppo/kl", "rollout/length"),
    )


def ppo(ws: Workspace, name: str) -> dict[str, Any]:
    """The policy and the value function after PPO or PPO-ptx."""
    state = ppo_training(ws, name, ws.folder / name / "phases.jsonl").run(ws.folder / name)
    return {"iterations": int(state.step), "episodes": int(state.step) * ws.config.rl[name].batch}


def _budget(nats: float | None) -> Callable[[dict[str, float]], str | None]:
    """Also without a budget each iteration is looked at before the next one begins, which costs no
    waiting: its phases are timed.
    """
    return lambda row: (
        None
        if nats is None or row["ppo/kl"] <= nats
        else f"KL {row['ppo/kl']:.2f} exceeds kl_budget={nats}"
    )


def _iteration(
    ws: Workspace,
    cfg: ppo_stage.PpoConfig,
    state: TrainState,
    frozen: Params,
    optimizers: steps.Optimizers,
    phases: Path | None,
) -> Callable[[TrainState, tuple[PromptBatch, TokenBatch | None]], tuple[TrainState, Metrics]]:
    """(state, (prompts, ptx rows)) -> (state, metrics): three jitted functions and the way to the
    sampler's layout before them, timed one by one."""
    rollout = ws.rollout(cfg.sampler)
    experience = steps.compile_experience(ws.models, cfg)
    update = steps.compile_update(ws.models, cfg, optimizers, state, ws.base)

    def iterate(
        state: TrainState, batch: tuple[PromptBatch, TokenBatch | None]
    ) -> tuple[TrainState, Metrics]:
        prompts, ptx = batch
        seconds: dict[str, float] = {}
        number, key = int(state.step) + 1, ppo_stage.iteration_keys(state)["rollout"]
        with _phase(seconds, "reshard"):
            weights = jax.block_until_ready(ws.for_sampling(join(ws.base, state.params["policy"])))
        with _phase(seconds, "rollout"):
            drawn = jax.block_until_ready(rollout(weights, prompts, key))
        del weights
        with _phase(seconds, "experience"):
            made, seen = jax.block_until_ready(
                experience(state.params, frozen, drawn, state.kl_coef)
            )
        with _phase(seconds, "update"):
            state, metrics = jax.block_until_ready(update(state, ws.base, made, ptx, seen))
        tokens = int(drawn.mask.sum())
        if phases and is_main():
            _write_phases(phases, number, seconds, tokens)
        return state, metrics

    return iterate


def _write_phases(path: Path, step: int, seconds: dict[str, float], tokens: int) -> None:
    """One row for each iteration; tokens: sampled."""
    cut_after(path, step - 1)  # rows of a session that was killed before it saved
    row = {**seconds, "tokens": tokens, "tokens_per_second": tokens / sum(seconds.values())}
    append_row(path, {"step": step, **{k: round(v, 4) for k, v in row.items()}})


@contextlib.contextmanager
def _phase(seconds: dict[str, float], name: str) -> Iterator[None]:
    started = time.monotonic()
    yield
    seconds[name] = time.monotonic() - started
