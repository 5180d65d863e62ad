"""What a config would run, in words and numbers: models, stages, batches, memory, data.

Nothing runs, and no device is touched.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax

from instruct_jax.chain.preflight import (
    FileFacts,
    check_config,
    check_mesh,
    check_other_runs,
    check_tokenizers,
    missing_files,
    read_files,
)
from instruct_jax.chain.rounds import rounds_of
from instruct_jax.chain.settings import CompareConfig, RunConfig
from instruct_jax.chain.steps import parted
from instruct_jax.config import MESH, ModelConfig
from instruct_jax.models.heads import ScalarModel
from instruct_jax.models.lm import LanguageModel, parameter_count
from instruct_jax.runtime.folders import check_run
from instruct_jax.text import in_bytes, plural, table

F32 = 4  # bytes
TRAINED = 4 * F32  # bytes per parameter: weight, gradient, two moments of Adam


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Parameters of the two models, and of what is trained of them."""

    policy: int
    scalar: int  # reward model, and value function
    trained: tuple[int, int]  # of policy and scalar model, after pretraining
    frozen: int  # the base that they share


def check(config: RunConfig, stages: Sequence[str] | None = None) -> str:
    """The text; ConfigError, DataError or RunError where `run` could not begin.

    Models and files that are not here are only reported.
    """
    stages = config.stages if stages is None else stages
    check_config(config, stages)
    check_mesh(config, None, stages)
    goes_on = check_run(Path(config.out), dataclasses.asdict(config))
    check_other_runs(config)
    missing = missing_files(config)
    facts = (
        read_files(config, config.files, stages)
        if config.files is not None and not missing
        else None
    )
    if not missing:
        check_tokenizers(config)
    sizes = _sizes(config)
    judge = (
        _shape(config.reward_model) if config.reward_model else "as the policy, with a scalar head"
    )
    starts = ", ".join(dict.fromkeys(ppo.value_init for ppo in config.rl.values()))
    lines = [
        f"run folder     {config.out} ({'exists, the run goes on' if goes_on else 'new'})",
        f"seed           {config.seed}",
        *(
            [
                f"rounds         {config.rounds.count}, each as below:"
                f" {', '.join(r.out for r in rounds_of(config))}"
            ]
            if config.rounds
            else []
        ),
        f"policy         {sizes.policy:,} parameters: {_shape(config.model)}",
        f"reward model   {sizes.scalar:,} parameters: {judge}",
        f"value function {sizes.scalar:,} parameters, starts from: {starts}",
        *(
            [
                f"trained        {sizes.trained[0]:,} parameters of the policy, on a frozen base of"
                f" {sizes.frozen:,}"
            ]
            if sizes.frozen
            else []
        ),
        f"mesh           {_mesh(config)}",
        "",
        *table(
            ("stage", "steps", "batch", "tokens"),
            [row for row in _stages(config, facts) if row[0] in stages],
        ),
        "",
        *_memory(config, sizes),
        "",
        *(_world(config) if config.files is None else _files(config, facts, missing)),
    ]
    return "\n".join(lines)


def _sizes(config: RunConfig) -> Sizes:
    policy, judge = (
        LanguageModel(m, None, config.lora, config.frozen_layers)
        for m in (config.model, config.reward_model or config.model)
    )
    whole, scalar = (
        jax.eval_shape(lambda init=m.init: init(jax.random.key(0)))
        for m in (policy, ScalarModel(judge))
    )
    frozen, own = parted(whole, config)
    trained = parameter_count(own), parameter_count(parted(scalar, config)[1])
    return Sizes(parameter_count(whole), parameter_count(scalar), trained, parameter_count(frozen))


def _shape(m: ModelConfig) -> str:
    heads = f"{m.heads} heads of {m.head_size}" + (
        f" ({m.groups} for keys and values)" if m.groups != m.heads else ""
    )
    return (
        f"{plural(m.layers, 'layer')}, width {m.width}, {heads}, context {m.context}, vocabulary"
        f" {m.vocab_size}, {m.dtype}"
    )


def _mesh(config: RunConfig) -> str:
    axes = {axis: getattr(config.mesh, axis) for axis in MESH}
    known = abs(math.prod(axes.values()))
    devices = (
        plural(known, "device")
        if -1 not in axes.values()
        else f"a multiple of {known} devices"
        if known > 1
        else "any number of devices"
    )
    sizes = " x ".join(
        f"{name} {'(all the rest)' if size == -1 else size}" for name, size in axes.items()
    )
    return f"{sizes}: needs {devices}"


def _stages(config: RunConfig, facts: FileFacts | None) -> Iterator[tuple[str, str, str, str]]:
    """(stage, steps, batch, tokens) in the order in which they run."""
    pre, reward, form = config.pretrain, config.reward, config.text
    if config.base is not None:
        yield "pretrain", "-", f"the weights of {config.base}", "-"
    else:
        yield (
            "pretrain",
            f"{pre.steps:,}",
            f"{pre.batch} x {pre.length}",
            f"{pre.steps * pre.batch * pre.length:,}",
        )
    yield _fine_tuning(config, facts, "sft")
    compare, response = config.compare, config.ppo.sampler.max_tokens
    if config.samples_ranked:
        asked = compare.prompts + compare.held_out_prompts
        yield (
            "compare",
            "-",
            f"{asked:,} prompts x {compare.max_completions}",
            (
                f"at most {asked * compare.max_completions * response:,} sampled; ranked by"
                f" {_who_ranks(compare)}"
            ),
        )
    rankings = (
        _kept(facts.counts["rankings"], config)
        if facts
        else compare.prompts
        if config.world
        else None
    )
    steps = None if rankings is None else reward.epochs * -(-rankings // reward.batch)
    k = facts.most_completions if facts else compare.max_completions
    batch = f"{reward.batch} prompts x {k} x {form.max_prompt + form.max_completion}"
    yield "reward", _epochs(reward.epochs, steps, "about "), batch, "-"
    yield (
        "select",
        "-",
        f"{plural(config.sft.epochs if config.sft.select else 1, 'epoch')} x 256 prompts",
        "-",
    )
    if config.ppo_start is not None:
        yield _fine_tuning(config, facts, "ppo_start")
    for name, ppo in config.rl.items():
        episodes = ppo.iterations * ppo.batch
        ptx = (
            f" + {ppo.updates} x {ppo.ptx_batch} x {ppo.ptx_length} of text"
            if ppo.ptx_batch
            else ""
        )
        batch = (
            f"{ppo.batch} x ({form.max_prompt} + {ppo.sampler.max_tokens}), {ppo.updates} updates"
            f" of {ppo.minibatch}{ptx}"
        )
        yield (
            name,
            f"{ppo.iterations:,}",
            batch,
            f"{episodes:,} episodes, at most {episodes * ppo.sampler.max_tokens:,} sampled",
        )
    yield "evaluate", "-", f"{config.evaluation.prompts} prompts", "-"
    yield "report", "-", "-", "-"


def _who_ranks(cfg: CompareConfig) -> str:
    return f"people ({cfg.people.store})" if cfg.people else cfg.judge or "simulated labelers"


def _fine_tuning(
    config: RunConfig, facts: FileFacts | None, name: str
) -> tuple[str, str, str, str]:
    sft = config.sfts[name]
    demonstrations = config.world.demonstrations if config.world else None
    rows = facts.sft_rows[name] if facts else demonstrations
    own, most = sft.batch - round(sft.batch * sft.pretrain_mix), "" if facts else "at most "
    steps = None if rows is None else sft.epochs * -(-rows // own)
    return (
        name,
        _epochs(sft.epochs, steps, most),
        f"{sft.batch} x {sft.length}",
        _count(steps, sft.batch * sft.length, most),
    )


def _epochs(epochs: int, steps: int | None, hedge: str) -> str:
    return (
        plural(epochs, "epoch")
        if steps is None
        else f"{hedge}{steps:,} ({plural(epochs, 'epoch')})"
    )


def _count(steps: int | None, tokens: int, hedge: str) -> str:
    return "-" if steps is None else f"{hedge}{steps * tokens:,}"


def _kept(records: int, config: RunConfig) -> int:
    """Records that are left to train on."""
    held_out = config.files.held_out if config.files else 0.0
    return records - (max(int(records * held_out), 1) if records > 1 else 0)


def _memory(config: RunConfig, sizes: Sizes) -> list[str]:
    """What is certain: states and caches.

    Activations and the compiler's scratch space come on top.
    """
    mesh, ppo = config.mesh, config.ppo
    shards = max(mesh.fsdp, 1) * max(mesh.tensor, 1)
    divided = (
        f"/ {shards} (fsdp * tensor)"
        if mesh.fsdp != -1
        else f"/ {shards} (tensor), and further by fsdp"
    )
    base, policy, scalar = (
        sizes.frozen * (2 if config.model.dtype == "bfloat16" else F32),
        *sizes.trained,
    )
    on_base = "frozen base; of what is trained on it " if base else ""
    states = {
        "sft" if base else "pretrain, sft": (
            base + TRAINED * policy,
            f"{on_base}policy: weights, gradient, Adam",
        ),
        "reward": (base + TRAINED * scalar, f"{on_base}reward model: weights, gradient, Adam"),
        "ppo": (
            base + (TRAINED + 2 * F32) * policy + (TRAINED + F32) * scalar,
            (
                f"{on_base}policy and value function: weights, gradient, Adam; average of the"
                " policy; reference; reward model"
            ),
        ),
    }
    rows = [
        (name, in_bytes(size), in_bytes(size / shards), what)
        for name, (size, what) in states.items()
    ]
    model, width = config.model, 2 if config.model.dtype == "bfloat16" else 4
    length = config.text.max_prompt + ppo.sampler.max_tokens
    cache = 2 * model.layers * ppo.batch * length * model.groups * model.head_size * width
    logits = model.logprob_chunk * model.vocab_size * F32
    return [
        *table(
            ("memory", "in all", "per device", f"states {divided}; activations come on top"), rows
        ),
        f"KV cache of one PPO rollout {in_bytes(cache)} over all devices",
        f"logits of one chunk of {model.logprob_chunk} positions {in_bytes(logits)}",
    ]


def _world(config: RunConfig) -> list[str]:
    return (
        [
            f"data           the embedded world: {config.world.demonstrations} demonstrations, made"
            " by the run"
        ]
        if config.world
        else []
    )


def _files(config: RunConfig, facts: FileFacts | None, missing: list[str]) -> list[str]:
    if facts is None:
        return [
            "data           not found, so the data part is skipped (`run` would stop here):",
            *(f"  {path}" for path in missing),
        ]
    c, out = facts.counts, config.files.held_out if config.files else 0.0
    return [
        f"tokenizer      {facts.vocabulary:,} ids of {config.model.vocab_rows:,} in the model",
        (
            f"data           {c['texts']:,} texts, {c['prompts']:,} prompts; {out:.0%} of texts,"
            " rankings and prompts are held out"
        ),
        f"               {c['demonstrations']:,} demonstrations in {facts.sft_rows['sft']:,} rows",
        f"               {c['rankings']:,} rankings of {facts.completions:,} completions",
        f"dropped or cut {len(facts.dropped)}",
        *(f"  {line}" for line in facts.dropped[:10]),
    ]
