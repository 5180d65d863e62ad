"""A model on the mesh: its tokenizer, its compiled functions, and the host loops over them."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from transformers import PreTrainedTokenizerBase

from instruct_jax import sharding
from instruct_jax.chain.spec import ModelSpec, model_fingerprint
from instruct_jax.config import MeshConfig
from instruct_jax.data.batches import Batches
from instruct_jax.data.encode import TextFormat, encode_prompts
from instruct_jax.data.packing import Ids, Rows, pad_prompts, pad_rows
from instruct_jax.data.schemas import Record
from instruct_jax.data.tokenize import (
    check_vocabulary,
    decode_completion,
    encode_completion,
    fingerprint,
)
from instruct_jax.errors import DataError
from instruct_jax.models.heads import ScalarModel
from instruct_jax.models.lm import LanguageModel
from instruct_jax.models.lora import split_adapters, split_lower_layers
from instruct_jax.records import Params, PromptBatch, Rollout, TokenBatch
from instruct_jax.sharding import Layout
from instruct_jax.stages import pretrain
from instruct_jax.stages.experience import response_logprobs
from instruct_jax.stages.rollout import SamplerConfig, make_rollout


@dataclasses.dataclass(frozen=True)
class Completion:
    """One sampled response."""

    text: str
    ids: list[int]  # eos included
    ended: bool
    logp: float  # nats, of the whole response under the distribution that it was sampled from


class Models(NamedTuple):
    """A model and where its arrays lie."""

    training: Layout
    sampling: Layout
    policy: LanguageModel
    sampler: LanguageModel  # the policy in the sampling layout
    scalar: ScalarModel  # the same backbone with a scalar head


def build_models(
    spec: ModelSpec,
    mesh: MeshConfig,
    devices: Sequence[Any] | None = None,
    never: tuple[int, ...] = (),
) -> Models:
    """On the mesh of the config over these devices (all that are here); `never` are ids that are
    never drawn.
    """
    training, sampling = sharding.layouts(mesh, sharding.make_mesh(mesh, devices))
    policy = LanguageModel(spec.model, training, spec.lora, spec.frozen_layers, never)
    sampler = policy._replace(layout=sampling)
    return Models(training, sampling, policy, sampler, ScalarModel(policy))


def unknown_ids(tok: PreTrainedTokenizerBase, vocab_size: int) -> tuple[int, ...]:
    """The ids of a model that its tokenizer does not have."""
    known = set(tok.get_vocab().values())
    return tuple(i for i in range(vocab_size) if i not in known)


class Network:
    """A model shape on the mesh with its tokenizer, and the functions that are compiled for it.

    It holds no parameters: chain/parameters.py reads them.  An abstract one takes shapes of
    parameters, and reads no tokenizer.
    """

    def __init__(
        self,
        spec: ModelSpec,
        mesh: MeshConfig,
        sample_batch: int,
        devices: Sequence[Any] | None = None,
        *,
        abstract: bool = False,
    ):
        self.spec = spec
        self.sample_batch = sample_batch
        self.abstract = abstract
        self.text = spec.text
        self.in_messages = False  # is a text prompt one user message?
        if spec.of_others and not abstract and self.tokenizer.chat_template is not None:
            self.text = dataclasses.replace(spec.text, template=TextFormat.template)
            self.in_messages = True
        never = () if abstract else unknown_ids(self.tokenizer, spec.model.vocab_size)
        self.models = build_models(spec, mesh, devices, never)
        self.layout = self.models.training
        self.policy = self.models.policy
        self.scalar = self.models.scalar

    @functools.cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        found = self.spec.tokenizer.load()
        model = self.spec.model
        check_vocabulary(found, model.vocab_size, model.vocab_rows)
        return found

    @functools.cached_property
    def ends(self) -> tuple[int, ...]:
        """The ids that end a reply: the tokenizer's EOS, and what its model lists beside it."""
        if self.abstract:
            return (0,)  # which id it is changes no shape
        eos = int(self.tokenizer.eos_token_id)  # type: ignore[arg-type]
        listed = self.spec.tokenizer.listed_ends()
        return listed if eos in listed else (eos, *listed)

    @property
    def pad(self) -> int:
        if self.abstract:
            return 1
        return int(self.tokenizer.pad_token_id)  # type: ignore[arg-type]

    def decode(self, reply: Iterable[int]) -> str:
        """The text of a reply, without what ends it."""
        words = itertools.takewhile(lambda token: token not in self.ends, reply)
        return decode_completion(self.tokenizer, words, prefix=self.text.completion_prefix)

    # --- parameters, abstract ---

    @functools.cached_property
    def boxed_policy(self) -> Params:
        """Abstract policy parameters with their logical axis names."""
        return jax.eval_shape(self.policy.init, jax.random.key(0))

    @functools.cached_property
    def boxed_scalar(self) -> Params:
        return jax.eval_shape(self.scalar.init, jax.random.key(0))

    @property
    def boxed_whole(self) -> Params:
        """Abstract policy parameters without adapters."""
        if self.spec.lora is None:
            return self.boxed_policy
        whole, _ = split_adapters(self.boxed_policy)
        return whole

    def split_frozen(self, params: Params) -> tuple[Params, Params]:
        """(frozen, trained) parts of parameters, of abstract ones too; frozen is {} where all are
        trained.
        """
        if self.spec.whole:
            return {}, params
        if self.spec.lora is None:
            return split_lower_layers(params)
        return split_adapters(params)

    def trained(self, params: Params) -> Params:
        """What stages train and keep."""
        _, trained = self.split_frozen(params)
        return trained

    def cast(self, params: Params) -> Params:
        """The parameters in the dtype in which the forward pass reads them."""
        if not self.abstract:
            return self.policy.cast(params)
        cast = jax.eval_shape(self.policy.cast, params)
        return jax.tree.map(lambda x, new: x.update(dtype=new.dtype), params, cast)

    def for_sampling(self, params: Params) -> Params:
        """The policy's parameters as the sampler wants them: in the dtype of the model, in the
        sampling layout.
        """
        cast = self.cast(params)
        layout = self.models.sampling
        if not self.abstract:
            return sharding.reshard(cast, self.boxed_policy, layout)
        places = sharding.shardings_of(self.boxed_policy, layout)
        return jax.tree.map(lambda x, place: x.update(sharding=place), cast, places)

    @functools.cached_property
    def fingerprints(self) -> dict[str, str]:
        """What must be the same when a checkpoint is read: tokenizer, model, and the adapters."""
        spec = self.spec
        found = {
            "tokenizer": str(spec.tokenizer) if self.abstract else fingerprint(self.tokenizer),
            "model": model_fingerprint(spec.model),
        }
        if spec.frozen_layers:
            found["frozen_layers"] = str(spec.frozen_layers)
        if spec.lora is not None:
            targets = ", ".join(spec.lora.targets)
            found["lora"] = f"rank {spec.lora.rank}, alpha {spec.lora.alpha}, {targets}"
        return found

    # --- compiled functions ---

    @functools.cache  # noqa: B019  a run makes few of them, and each lives as long as it
    def rollout(
        self, sampler: SamplerConfig, samples: int = 1
    ) -> Callable[[Params, PromptBatch, jax.Array], Rollout]:
        """The compiled sampler; its parameters are those of for_sampling."""
        return compile_rollout(self.models, sampler, self.ends, self.pad, samples)

    @functools.cached_property
    def score(self) -> Callable[[Params, jax.Array, jax.Array], jax.Array]:
        return jax.jit(self.scalar.score, out_shardings=self.layout.sharding())

    @functools.cached_property
    def lm_loss(self) -> Callable:
        loss = pretrain.make_loss(self.policy, "eval")
        return jax.jit(loss, out_shardings=self.layout.sharding())

    @functools.cached_property
    def sequence_logp(self) -> Callable[[Params, PromptBatch, jax.Array, jax.Array], jax.Array]:
        """log p(response | prompt) in nats, [B], of prompts and responses (tokens [B, T], mask
        [B, T]).
        """

        def run(
            params: Params, prompts: PromptBatch, tokens: jax.Array, mask: jax.Array
        ) -> jax.Array:
            blank = jax.numpy.zeros(tokens.shape, jax.numpy.float32)
            rollout = Rollout(prompts.tokens, prompts.mask, tokens, mask, blank, mask.any(axis=1))
            logp, _ = response_logprobs(self.policy, params, rollout, 1.0)
            return (logp * mask).sum(axis=1)

        return jax.jit(run, out_shardings=self.layout.sharding())


def compile_rollout(
    models: Models, sampler: SamplerConfig, eos: Sequence[int], pad: int, samples: int = 1
) -> Callable:
    """rollout.make_rollout, jitted."""
    run = make_rollout(models.sampler, sampler, eos=eos, pad=pad, samples=samples)
    return jax.jit(run, out_shardings=models.sampling.sharding("batch"))


# --- host loops ---


def put(net: Network, batch: Any) -> Any:
    """A batch that every host has, on the mesh, split along its first axis."""
    where = net.layout.sharding("batch")
    size = len(jax.tree.leaves(batch)[0])
    rows = sharding.rows_here(where, size)
    here = jax.tree.map(lambda x: x[rows], batch)
    return sharding.put(here, where, size)


def batches_on_mesh(net: Network, source: Batches, size: int) -> Callable[[int], Any]:
    """step -> the batch of `size` rows on the mesh; each host makes only the rows that its devices
    hold.
    """
    where = net.layout.sharding("batch")
    rows = sharding.rows_here(where, size)
    return lambda step: sharding.put(source.batch_at(step, rows), where, size)


def rows_at_a_time(net: Network, count: int) -> int:
    """`sample_batch`, or where there are fewer rows, the power of two for each device that holds
    them: few programs are compiled, and no device works on many copies for nothing.
    """
    parts = net.models.sampling.parts("rows")
    each = max(-(-count // parts), 1)
    power_of_two = 2 ** (each - 1).bit_length()
    return min(net.sample_batch, power_of_two * parts)


def asked(net: Network, records: Sequence[Record]) -> Sequence[Record]:
    """The prompts as the model is asked: of others' models with a chat template, a text is one user
    message.
    """
    if not net.in_messages:
        return records
    found = []
    for record in records:
        prompt = record["prompt"]
        if isinstance(prompt, str):
            prompt = [{"role": "user", "content": prompt}]
        found.append({**record, "prompt": prompt})
    return found


def encode(net: Network, records: Sequence[Record]) -> tuple[list[Record], list[list[int]]]:
    """The prompts that are short enough (text.on_long), and their ids."""
    encoded = encode_prompts(net.tokenizer, asked(net, records), net.text)
    return [records[i] for i in encoded.kept], encoded.items


def same_ids(a: Network, b: Network) -> bool:
    """Do both read the same token ids, made of text in the same way?"""
    if a is b:
        return True
    if (a.in_messages, a.text.template) != (b.in_messages, b.text.template):
        return False
    if a.text.completion_prefix != b.text.completion_prefix:
        return False
    return a.fingerprints["tokenizer"] == b.fingerprints["tokenizer"]


def ids_for(
    net: Network,
    other: Network,
    prompts: Sequence[Record],
    ids: Sequence[Ids],
    longest: int | None = None,
) -> Sequence[Ids]:
    """The prompts as `net` reads them, where `ids` are those of the network `other`.

    longest: tokens of a prompt, at most; None = text.max_prompt.
    """
    if same_ids(net, other):
        return ids
    text = net.text
    if longest is not None:
        text = dataclasses.replace(text, max_prompt=longest)
    encoded = encode_prompts(net.tokenizer, asked(net, prompts), text)
    too_long = len(prompts) - len(encoded.items)
    if too_long > 0:
        raise DataError(
            f"{too_long} of {len(prompts)} prompts are too long for"
            f" {net.spec.tokenizer.place} (text.max_prompt={text.max_prompt} tokens); raise"
            " text.max_prompt, or set text.on_long to truncate_left"
        )
    return encoded.items


def whole_ids(
    net: Network,
    other: Network,
    prompts: Sequence[Record],
    ids: Sequence[Ids],
    completions: Sequence[Completion],
) -> list[list[int]]:
    """Prompt + completion as `net` reads them.

    ids, and the ids of the completions, are those of the network `other`; where its tokenizer is
    another one, the text is encoded again.  It may then have more tokens, as many as `net` can
    read; DataError where it has more than that.
    """
    rows = []
    if same_ids(net, other):
        for prompt, completion in zip(ids, completions, strict=True):
            rows.append([*prompt, *completion.ids])
        return rows
    context = net.spec.model.context
    prefix = net.text.completion_prefix
    own = ids_for(net, other, prompts, ids, longest=context)
    for prompt, completion in zip(own, completions, strict=True):
        reply = encode_completion(net.tokenizer, completion.text, prefix=prefix)
        if not completion.ended:
            reply = reply[:-1]  # without eos
        rows.append([*prompt, *reply])
    longest = max(map(len, rows), default=0)
    if longest > context:
        raise DataError(
            f"{net.spec.tokenizer.place} makes {longest} tokens of a prompt with its reply, and"
            f" the model reads {context}; lower text.max_prompt or max_tokens, or drop the prompt"
        )
    return rows


def generate(
    net: Network,
    params: Params,
    prompts: Sequence[Ids],
    sampler: SamplerConfig,
    key: jax.Array,
    *,
    samples: int = 1,
    width: int = 0,
) -> list[list[Completion]]:
    """`samples` completions of each prompt.

    Prompts are padded to text.max_prompt, to `width`, or to the longest of them.
    """
    rollouts = list(draw_rollouts(net, params, prompts, sampler, key, samples=samples, width=width))
    flat: list[Completion] = []
    for rollout in sharding.fetch(rollouts):
        lengths = rollout.mask.sum(axis=1)
        logp = rollout.logp.sum(axis=1)
        for row, length in enumerate(lengths):
            ids = rollout.tokens[row][:length].tolist()
            ended = bool(rollout.ended[row])
            flat.append(Completion(net.decode(ids), ids, ended, float(logp[row])))
    starts = range(0, len(prompts) * samples, samples)
    return [flat[start : start + samples] for start in starts]


def draw_rollouts(
    net: Network,
    params: Params,
    prompts: Sequence[Ids],
    sampler: SamplerConfig,
    key: jax.Array,
    *,
    samples: int = 1,
    width: int = 0,
) -> Iterator[Rollout]:
    """Rollouts of up to `sample_batch` prompts at a time; the last batch is filled up with the
    first prompts.
    """
    count = len(prompts)
    size = rows_at_a_time(net, count)
    width = max(net.text.max_prompt, width, *map(len, prompts))
    run = net.rollout(sampler, samples)
    weights = net.for_sampling(params)
    for number, start in enumerate(range(0, count, size)):
        rows = [prompts[i % count] for i in range(start, start + size)]
        batch = PromptBatch(*pad_prompts(rows, width, pad=net.pad))
        batch_key = jax.random.fold_in(key, number)
        yield run(weights, put(net, batch), batch_key)


def rewards(net: Network, params: Params, sequences: Sequence[Ids]) -> np.ndarray:
    """Scores [n] f32 of prompt + completion, in the order given; shorter sequences are scored
    together.
    """
    size = rows_at_a_time(net, len(sequences))
    scores = np.zeros(len(sequences), np.float32)
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
    for start in range(0, len(order), size):
        part = order[start : start + size]
        rows = [sequences[i] for i in part]
        rows += [rows[0]] * (size - len(part))
        longest = max(map(len, rows))
        width = -(-longest // 16) * 16
        batch = put(net, pad_rows(rows, width, pad=net.pad))
        found = np.asarray(net.score(params, *batch))
        scores[part] = found[: len(part)]
    return scores


def response_logp(
    net: Network,
    params: Params,
    prompts: Sequence[Ids],
    responses: Sequence[Ids],
    longest: int,
) -> np.ndarray:
    """log p(response | prompt) in nats, [n]; no response has more than `longest` tokens."""
    count = len(prompts)
    size = rows_at_a_time(net, count)
    found = []
    for start in range(0, count, size):
        rows = [i % count for i in range(start, start + size)]
        batch = pad_prompts([prompts[i] for i in rows], net.text.max_prompt, pad=net.pad)
        answered = pad_rows([responses[i] for i in rows], longest, pad=net.pad)
        logp = net.sequence_logp(params, put(net, PromptBatch(*batch)), *put(net, answered))
        found.append(logp)
    logp = np.concatenate(jax.device_get(found))
    return logp[:count]


def nll(net: Network, params: Params, rows: Rows, batch: int) -> float:
    """Mean negative log-likelihood per token of packed rows, in nats, `batch` rows at a time."""
    total = 0.0
    count = 0
    for start in range(0, len(rows.tokens), batch):
        part = np.arange(start, start + batch)
        beyond = part >= len(rows.tokens)
        part[beyond] = -1  # any row, without weight
        weight = rows.mask[part].astype(np.float32)
        weight[beyond] = 0.0
        tokens = TokenBatch(rows.tokens[part], rows.segments[part], weight)
        loss, _ = net.lm_loss(params, put(net, tokens), jax.random.key(0))
        total += float(loss)
        count += int(weight.sum())
    return total / count
