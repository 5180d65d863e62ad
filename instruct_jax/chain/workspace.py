"""What the stages of one run share: mesh, models, tokenizer, and the compiled functions, each
compiled once.
"""

import dataclasses
import functools
import hashlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from instruct_jax import sharding
from instruct_jax.chain.settings import RunConfig
from instruct_jax.chain.steps import build_models, compile_rollout, parted
from instruct_jax.chain.task import Task
from instruct_jax.config import ModelConfig
from instruct_jax.data.batches import Batches
from instruct_jax.data.encode import encode_prompts
from instruct_jax.data.packing import Ids, Rows, pad_prompts, pad_rows
from instruct_jax.data.schemas import Record
from instruct_jax.data.tokenize import check_vocabulary, decode_completion, fingerprint
from instruct_jax.errors import require
from instruct_jax.models.lora import join, scalar_base, split
from instruct_jax.records import Params, PromptBatch, Rollout, TokenBatch
from instruct_jax.runtime.checkpoints import restore_params
from instruct_jax.runtime.folders import begin_stage, file_hash, finish_stage, read_note, stage_done
from instruct_jax.runtime.hosts import barrier
from instruct_jax.stages import pretrain
from instruct_jax.stages.experience import response_logprobs
from instruct_jax.stages.rollout import SamplerConfig


@dataclasses.dataclass(frozen=True)
class Completion:
    """One sampled response."""

    text: str
    ids: list[int]  # eos included
    ended: bool
    logp: float  # nats, of the whole response under the distribution that it was sampled from


class Workspace:
    """config, folder and task of a run, with all that is built from them."""

    def __init__(self, config: RunConfig, folder: Path, task: Task):
        check_vocabulary(task.tokenizer, config.model.vocab_size, config.model.vocab_rows)
        shots, form = (
            len(task.tokenizer.encode(task.shots, add_special_tokens=False)) if task.shots else 0,
            config.text,
        )
        require(
            (longest := shots + form.max_prompt + config.ppo.sampler.max_tokens)
            <= config.model.context,
            f"evaluation.shots={config.evaluation.shots}: with its {shots} tokens of examples a"
            f" prompt and its reply take up to {longest}, more than"
            f" model.context={config.model.context}; lower evaluation.shots or raise model.context",
        )
        self.config, self.folder, self.task = config, folder, task
        self.models = models = build_models(config)
        self.layout, self.sampling, self.policy, self.scalar = (
            models.training,
            models.sampling,
            models.policy,
            models.scalar,
        )
        self.eos, self.pad = int(task.tokenizer.eos_token_id), int(task.tokenizer.pad_token_id)  # type: ignore[arg-type]

    def key(self, purpose: str) -> jax.Array:
        """The root key of one purpose; a name gives one key in a run, so no two purposes share
        theirs.
        """
        purpose = purpose if self.config.round == 1 else f"round {self.config.round} {purpose}"
        number = int.from_bytes(hashlib.sha256(purpose.encode()).digest()[:4], "big")
        return jax.random.fold_in(jax.random.key(self.config.seed), number)

    # --- parameters ---

    @functools.cached_property
    def boxed_policy(self) -> Params:
        """Abstract policy parameters with their logical axis names."""
        return jax.eval_shape(self.policy.init, jax.random.key(0))

    @functools.cached_property
    def boxed_scalar(self) -> Params:
        return jax.eval_shape(self.scalar.init, jax.random.key(0))

    def trained(self, params: Params) -> Params:
        """The part of the parameters (abstract ones too) that stages after pretraining train and
        keep.
        """
        return parted(params, self.config)[1]

    @functools.cached_property
    def base(self) -> Params:
        """What no stage after pretraining trains, in config.dtype, once for policy, value function,
        reference and reward model.
        """
        if self.config.lora:
            return self.policy.cast(self.load("pretrain", self.boxed_pretrained))
        return (
            self.policy.cast(parted(self.load("pretrain", self.boxed_policy), self.config)[0])
            if self.config.frozen_layers
            else {}
        )

    @property
    def boxed_pretrained(self) -> Params:
        """Abstract parameters without adapters."""
        return split(self.boxed_policy)[0] if self.config.lora else self.boxed_policy

    def adapters(self, purpose: str) -> Params:
        """New ones, which change nothing yet; {} where all weights are trained."""
        if self.config.lora is None:
            return {}
        return sharding.create_sharded(
            lambda key: split(self.policy.init(key))[1], self.layout, self.key(purpose)
        )

    def load(
        self, stage: str, boxed: Params, *, part: str = "params", step: int | None = None
    ) -> Params:
        """The parameters that a stage left behind, born in the layout of the mesh."""
        shapes = sharding.abstract(boxed, self.layout)
        return restore_params(
            self.folder / stage / "checkpoints",
            shapes,
            part=part,
            step=step,
            fingerprints=self.fingerprints(stage),
        )

    def for_sampling(self, params: Params) -> Params:
        """The policy's parameters as the sampler wants them: in config.dtype, in the sampling
        layout.
        """
        return sharding.reshard(self.policy.cast(params), self.boxed_policy, self.sampling)

    def policy_of(self, stage: str, step: int | None = None) -> Params:
        """The policy after a stage, or at one of its steps that was kept.

        The SFT model is the epoch that `select` chose, once it has.
        """
        if stage == "pretrain" and self.config.lora:
            # they change nothing: one program reads all policies
            return join(self.base, self.adapters("none"))
        if stage == "pretrain":
            return join(self.load(stage, self.boxed_policy), self.base)
        boxed = self.trained(self.boxed_policy)
        if stage in ("ppo", "ppo_ptx"):
            part = "ema" if self.config.evaluation.averaged else "params/policy"
            return join(self.base, self.load(stage, boxed, part=part, step=step))
        chosen = self.folder / "select" / "done.json"
        if stage == "sft" and step is None and chosen.exists():
            step = self.output("select")["step"]
        return join(self.base, self.load(stage, boxed, step=step))

    def reward_params(self) -> Params:
        """The reward model, recentred."""
        from instruct_jax.models.heads import recentred

        shift = self.output("reward")["normalisation"]
        params = join(scalar_base(self.base), self.load("reward", self.trained(self.boxed_scalar)))
        return recentred(params, shift["mean"], shift["scale"])

    def fingerprints(self, stage: str) -> dict[str, str]:
        """What must be the same when a checkpoint of a stage is read: the tokenizer, the model, and
        the adapters where there are some.
        """
        scalar = stage.partition("/")[0] in ("reward", "cross_validation")
        config = self.scalar.lm.config if scalar else self.config.model
        found = {"tokenizer": fingerprint(self.task.tokenizer), "model": model_fingerprint(config)}
        if self.config.frozen_layers:
            found |= {"frozen_layers": str(self.config.frozen_layers)}
        lora = None if stage == "pretrain" else self.config.lora
        return (
            found
            if lora is None
            else found
            | {"lora": f"rank {lora.rank}, alpha {lora.alpha}, {', '.join(lora.targets)}"}
        )

    # --- stages ---

    def output(self, stage: str) -> dict[str, Any]:
        """What a finished stage found."""
        return read_note(self.folder / stage / "done.json")["output"]

    def stage(
        self, name: str, needs: Sequence[str], work: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        """Runs `work` unless folder/name/done.json says that it was done from the same inputs;
        returns its output.  A need is a stage of this run, or FOLDER:STAGE."""
        folder = self.folder / name
        inputs = {need: file_hash(stage_folder(self.folder, need) / "done.json") for need in needs}
        if done := stage_done(folder, inputs):
            return done["output"]
        barrier(f"{name} begins")  # all have seen that it is not done before one of them does it
        begin_stage(folder, inputs)
        started = time.monotonic()
        output = work()
        finish_stage(folder, inputs, output=output, seconds=time.monotonic() - started)
        barrier(name)  # the next stage reads what this one wrote
        return output

    # --- compiled functions ---

    @functools.cache  # noqa: B019  one workspace per process
    def rollout(
        self, sampler: SamplerConfig, samples: int = 1
    ) -> Callable[[Params, PromptBatch, jax.Array], Rollout]:
        """The compiled sampler; its parameters are those of for_sampling."""
        return compile_rollout(self.models, sampler, eos=self.eos, pad=self.pad, samples=samples)

    @functools.cached_property
    def score(self) -> Callable[[Params, jax.Array, jax.Array], jax.Array]:
        return jax.jit(self.scalar.score, out_shardings=self.layout.sharding())

    @functools.cached_property
    def lm_loss(self) -> Callable:
        return jax.jit(
            pretrain.make_loss(self.policy, "eval"), out_shardings=self.layout.sharding()
        )

    @functools.cached_property
    def sequence_logp(self) -> Callable[[Params, PromptBatch, jax.Array, jax.Array], jax.Array]:
        """log p(response | prompt) in nats, [B], of prompts and responses (tokens [B, T], mask [B,
        T]).
        """

        def run(
            params: Params, prompts: PromptBatch, tokens: jax.Array, mask: jax.Array
        ) -> jax.Array:
            blank = jax.numpy.zeros(tokens.shape, jax.numpy.float32)
            rollout = Rollout(prompts.tokens, prompts.mask, tokens, mask, blank, mask.any(axis=1))
            logp, _ = response_logprobs(self.policy, params, rollout, 1.0)
            return (logp * mask).sum(axis=1)

        return jax.jit(run, out_shardings=self.layout.sharding())

    # --- host loops over them ---

    def batch_at(self, source: Batches, size: int) -> Callable[[int], Any]:
        """step -> the batch of `size` rows on the mesh; each host makes only the rows that its
        devices hold.
        """
        split = self.layout.sharding("batch")
        rows = sharding.rows_here(split, size)
        return lambda step: sharding.put(source.batch_at(step, rows), split, size)

    def put(self, batch: Any) -> Any:
        """A batch that every host has, on the mesh, split along its first axis."""
        split, size = self.layout.sharding("batch"), len(jax.tree.leaves(batch)[0])
        rows = sharding.rows_here(split, size)
        return sharding.put(jax.tree.map(lambda x: x[rows], batch), split, size)

    def encode(self, records: Sequence[Record]) -> tuple[list[Record], list[list[int]]]:
        """The prompts that are short enough (text.on_long), and their ids."""
        encoded = encode_prompts(self.task.tokenizer, records, self.config.text)
        return [records[i] for i in encoded.kept], encoded.items

    def generate(
        self,
        params: Params,
        prompts: Sequence[Ids],
        sampler: SamplerConfig,
        key: jax.Array,
        *,
        samples: int = 1,
        width: int = 0,
    ) -> list[list[Completion]]:
        """`samples` completions of each prompt; prompts are padded to text.max_prompt, to `width`,
        or to the longest of them.
        """
        rollouts = list(self.rollouts(params, prompts, sampler, key, samples=samples, width=width))
        found: list[list[Completion]] = []
        for rollout in sharding.fetch(rollouts):
            lengths, logp = rollout.mask.sum(axis=1), rollout.logp.sum(axis=1)
            rows = [ids[:n].tolist() for ids, n in zip(rollout.tokens, lengths, strict=True)]
            texts = [
                decode_completion(
                    self.task.tokenizer, ids, prefix=self.config.text.completion_prefix
                )
                for ids in rows
            ]
            made = [
                Completion(t, i, bool(e), float(p))
                for t, i, e, p in zip(texts, rows, rollout.ended, logp, strict=True)
            ]
            found += [made[start : start + samples] for start in range(0, len(made), samples)]
        return found[: len(prompts)]

    def rollouts(
        self,
        params: Params,
        prompts: Sequence[Ids],
        sampler: SamplerConfig,
        key: jax.Array,
        *,
        samples: int = 1,
        width: int = 0,
    ):
        """Rollouts of `sample_batch` prompts at a time; the last batch is filled up with the first
        prompts.
        """
        size, width = (
            self.config.sample_batch,
            max(self.config.text.max_prompt, width, *map(len, prompts)),
        )
        run, params = self.rollout(sampler, samples), self.for_sampling(params)
        for number, start in enumerate(range(0, len(prompts), size)):
            rows = [prompts[i % len(prompts)] for i in range(start, start + size)]
            batch = PromptBatch(*pad_prompts(rows, width, pad=self.pad))  # type: ignore[arg-type]
            yield run(params, self.put(batch), jax.random.fold_in(key, number))

    def rewards(self, params: Params, sequences: Sequence[Ids]) -> np.ndarray:
        """Scores [n] f32 of prompt + completion, in the order given; shorter sequences are scored
        together.
        """
        size, out = self.config.sample_batch, np.zeros(len(sequences), np.float32)
        order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
        for start in range(0, len(order), size):
            part = order[start : start + size]
            rows = [sequences[i] for i in part] + [sequences[part[0]]] * (size - len(part))
            width = -(-max(map(len, rows)) // 16) * 16
            out[part] = np.asarray(
                self.score(params, *self.put(pad_rows(rows, width, pad=self.pad)))
            )[: len(part)]
        return out

    def response_logp(
        self, params: Params, prompts: Sequence[Ids], responses: Sequence[Ids]
    ) -> np.ndarray:
        """log p(response | prompt) in nats, [n]."""
        size, form, found = self.config.sample_batch, self.config.text, []
        for start in range(0, len(prompts), size):
            rows = [i % len(prompts) for i in range(start, start + size)]
            asked = PromptBatch(
                *pad_prompts([prompts[i] for i in rows], form.max_prompt, pad=self.pad)
            )  # type: ignore[arg-type]
            longest = self.config.ppo.sampler.max_tokens
            answered = pad_rows([responses[i] for i in rows], longest, pad=self.pad)
            found.append(self.sequence_logp(params, self.put(asked), *self.put(answered)))
        return np.concatenate(jax.device_get(found))[: len(prompts)]

    def nll(self, params: Params, rows: Rows) -> float:
        """Mean negative log-likelihood per token of packed rows, in nats."""
        size, total, count = self.config.pretrain.batch, 0.0, 0
        for start in range(0, len(rows.tokens), size):
            part = [i if i < len(rows.tokens) else -1 for i in range(start, start + size)]
            weight = rows.mask[part].astype(np.float32)
            weight[[i for i, row in enumerate(part) if row < 0]] = 0.0
            batch = TokenBatch(rows.tokens[part], rows.segments[part], weight)  # type: ignore[arg-type]
            total += float(self.lm_loss(params, self.put(batch), jax.random.key(0))[0])
            count += int(weight.sum())
        return total / count


def stage_folder(run: Path, stage: str) -> Path:
    """Of a stage of the run, or of FOLDER:STAGE."""
    other, colon, name = stage.rpartition(":")
    return Path(other) / name if colon else run / stage


def model_fingerprint(config: ModelConfig) -> str:
    """Changes with every key that changes what the parameters mean; a key that has its default is
    as if it were not there.
    """
    silent = ("family", "dtype", "remat", "logprob_chunk", "attention", "init_std", "qk_bias_std")
    meaning = {
        field.name: value
        for field in dataclasses.fields(config)
        if field.name not in silent and (value := getattr(config, field.name)) != field.default
    }
    return hashlib.sha256(repr(sorted(meaning.items())).encode()).hexdigest()[:16]
