"""Records in normal form as token ids for `packing` and `batches`, with one rule for long ones."""

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, Literal, TypeVar

from transformers import PreTrainedTokenizerBase

from instruct_jax.data.batches import Ranking
from instruct_jax.data.packing import Sample, chunk_documents
from instruct_jax.data.readers import Records
from instruct_jax.data.schemas import Messages, Prompt, Record
from instruct_jax.data.tokenize import (
    encode_completion,
    encode_conversation,
    encode_document,
)
from instruct_jax.errors import DataError, shorten

logger = logging.getLogger(__name__)
Item = TypeVar("Item")
Completion = tuple[str, bool]  # text, and whether it ended


@dataclasses.dataclass(frozen=True)
class TextFormat:
    """How records become tokens; the same for every stage of a run."""

    template: str = "{prompt}"  # of a plain text prompt, such as "task : {prompt} reply :"
    # stands once before every completion; " " suits a BPE after a template that ends without a
    # space
    completion_prefix: str = ""
    max_prompt: int = 1024  # P, tokens, bos included
    max_completion: int = 1024  # T, tokens, eos included
    # error: stop.  drop: leave the record out.  truncate_left, truncate_right: cut that end off the
    # prompt's text (never off the template).  A completion always keeps its beginning, and loses
    # its eos.  A ranking with such a completion is left out.
    on_long: Literal["error", "drop", "truncate_left", "truncate_right"] = "error"

    def __post_init__(self):
        if self.template.count("{prompt}") != 1:
            raise ValueError(
                f"template={self.template!r} must hold {{prompt}} exactly once; add it"
            )
        if self.max_prompt < 1 or self.max_completion < 2:
            raise ValueError(
                f"max_prompt={self.max_prompt}, max_completion={self.max_completion} must be at"
                " least 1 and 2"
            )
        if self.on_long not in ("error", "drop", "truncate_left", "truncate_right"):
            raise ValueError(
                f"on_long={self.on_long!r} is unknown; use error, drop, truncate_left or"
                " truncate_right"
            )


@dataclasses.dataclass(frozen=True)
class Encoded(Generic[Item]):
    """The records that are used, as tokens, and how many were too long."""

    items: list[Item]
    kept: list[int]  # items[i] comes from records[kept[i]]
    long_prompts: int  # cut or dropped
    long_completions: int

    @property
    def message(self) -> str:
        """The counts in words."""
        return (
            f"{len(self.items)} records; too long: {self.long_prompts} prompts,"
            f" {self.long_completions} completions"
        )


def encode_demonstrations(
    tok: PreTrainedTokenizerBase, records: Sequence[Record], form: TextFormat
) -> Encoded[Sample]:
    """(ids, learn) of prompt + completion + eos.

    Learned are the completion, the replies in the prompt's messages but those of weight 0, and
    their eos.
    """

    def completions_of(record: Record) -> list[Completion]:
        return [(record["completion"], True)]

    def build(record: Record, prompt: Sample, completions: list[list[int]]) -> Sample:
        ids, learn = prompt
        [completion] = completions
        learn_completion = [True] * len(completion)
        return [*ids, *completion], [*learn, *learn_completion]

    return _encode(tok, records, form, completions_of, build)


def encode_rankings(
    tok: PreTrainedTokenizerBase, records: Sequence[Record], form: TextFormat
) -> Encoded[Ranking]:
    """(K sequences of prompt + completion + eos, ranks).

    One completion that is too long drops the whole record, also where on_long cuts prompts: people
    ranked whole completions, and nobody knows how they would have ranked their beginnings.  Where a
    record says that a completion had not `ended`, there is no eos: the reward model reads it as PPO
    will show it.
    """

    def completions_of(record: Record) -> list[Completion]:
        texts = record["completions"]
        ended = record.get("ended") or [True] * len(texts)
        return list(zip(texts, ended, strict=True))

    def build(record: Record, prompt: Sample, completions: list[list[int]]) -> Ranking:
        ids, _ = prompt
        return [[*ids, *completion] for completion in completions], record["ranks"]

    return _encode(tok, records, form, completions_of, build, whole=True)


def encode_given_rankings(
    tok: PreTrainedTokenizerBase, records: Sequence[Record], form: TextFormat
) -> Encoded[Ranking]:
    """encode_rankings of a user's records; DataError where the same tokens have two ranks.

    Rankings that a run makes itself may be such: its labelers are noisy, and a sampler may say the
    same twice.
    """
    encoded = encode_rankings(tok, records, form)
    for number, (sequences, ranks) in zip(encoded.kept, encoded.items, strict=True):
        with _located(records, number):
            _check_ranks(records[number], sequences, ranks)
    return encoded


def _check_ranks(record: Record, sequences: Sequence[Sequence[int]], ranks: Sequence[int]) -> None:
    first: dict[tuple[int, ...], int] = {}
    for i, (ids, rank) in enumerate(zip(sequences, ranks, strict=True)):
        same = first.setdefault(tuple(ids), i)
        if ranks[same] != rank:
            raise DataError(
                f"completions[{i}]={shorten(record['completions'][i])} has the tokens of"
                f" completions[{same}], but the ranks are {rank} and {ranks[same]}; give them one"
                " rank, or leave one of them out"
            )


def encode_prompts(
    tok: PreTrainedTokenizerBase, records: Sequence[Record], form: TextFormat
) -> Encoded[list[int]]:
    """The ids of prompts, up to where a reply begins."""

    def build(record: Record, prompt: Sample, completions: list[list[int]]) -> list[int]:
        ids, _ = prompt
        return list(ids)

    return _encode(tok, records, form, lambda record: [], build)


def encode_texts(
    tok: PreTrainedTokenizerBase, records: Sequence[Record], length: int
) -> list[Sample]:
    """Documents as bos + text + eos, split where longer than a row; every token is learned."""
    documents = []
    for number, record in enumerate(records):
        with _located(records, number):
            documents.append(encode_document(tok, record["text"]))
    return chunk_documents(documents, length)


def check_texts(tok: PreTrainedTokenizerBase, records: Sequence[Record]) -> None:
    """Raises what encode_texts would raise.

    As there may be many texts, those that are certainly good are not tokenized.
    """
    special = tok.all_special_tokens
    for number, record in enumerate(records):
        if any(token in record["text"] for token in special):
            with _located(records, number):
                encode_document(tok, record["text"])


def _encode(
    tok: PreTrainedTokenizerBase,
    records: Sequence[Record],
    form: TextFormat,
    completions_of: Callable[[Record], list[Completion]],
    build: Callable[[Record, Sample, list[list[int]]], Item],  # (record, prompt, completions)
    *,
    whole: bool = False,
) -> Encoded[Item]:
    """The items that `build` makes; `whole`: completions are never cut."""
    items, kept = [], []
    long_prompts = long_completions = 0
    for number, record in enumerate(records):
        with _located(records, number):
            prompt = _encode_prompt(tok, record["prompt"], form)
            completions = []
            for text, ended in completions_of(record):
                ids = encode_completion(tok, text, prefix=form.completion_prefix)
                completions.append(ids if ended else ids[:-1])
            prompt_size = len(prompt[0])
            longest = max((len(ids) for ids in completions), default=0)
            long_prompt = prompt_size > form.max_prompt
            long_completion = longest > form.max_completion
            long_prompts += long_prompt
            long_completions += long_completion
            if form.on_long == "error":
                _check_size(record, "prompt", prompt_size, "max_prompt", form.max_prompt)
                _check_size(record, "completion", longest, "max_completion", form.max_completion)
            drop = form.on_long == "drop"
            if (drop and long_prompt) or ((drop or whole) and long_completion):
                continue
            if long_prompt:
                prompt = _cut(tok, record["prompt"], form)
        completions = [ids[: form.max_completion] for ids in completions]
        items.append(build(record, prompt, completions))
        kept.append(number)
    encoded = Encoded(items, kept, long_prompts, long_completions)
    if long_prompts or long_completions:
        logger.warning("on_long=%s: %s of %d", form.on_long, encoded.message, len(records))
    return encoded


def _check_size(record: Record, field: str, size: int, key: str, limit: int) -> None:
    if size > limit:
        raise DataError(
            f"prompt={shorten(record['prompt'])}: its {field} has {size} tokens, more than"
            f" {key}={limit}; raise {key}, or set on_long to drop, truncate_left or truncate_right"
        )


@contextlib.contextmanager
def _located(records: Sequence[Record], number: int) -> Iterator[None]:
    """Puts the place of the record into errors."""
    try:
        yield
    except DataError as error:
        place = f"record {number + 1}"
        if isinstance(records, Records):
            place = records.places[number]
        raise DataError(f"{place}: {error}") from error


def _encode_prompt(tok: PreTrainedTokenizerBase, prompt: Prompt, form: TextFormat) -> Sample:
    return encode_conversation(tok, prompt, template=form.template, prefix=form.completion_prefix)


def _cut(tok: PreTrainedTokenizerBase, prompt: Prompt, form: TextFormat) -> Sample:
    """A prompt that is too long, cut until it fits."""
    while True:
        sample = _encode_prompt(tok, prompt, form)
        excess = len(sample[0]) - form.max_prompt
        if excess <= 0:
            return sample
        if isinstance(prompt, str):
            prompt = _shorter(tok, prompt, excess, form)
        else:
            prompt = _shorter_messages(tok, prompt, excess, form)


def _shorter_messages(
    tok: PreTrainedTokenizerBase, messages: Messages, excess: int, form: TextFormat
) -> Messages:
    """The messages, of which the longest one that is no reply is cut.

    Where it has no more than `excess` tokens, the oldest exchange is left out instead, if a later
    one remains.
    """
    spoken, sizes = [], []
    for i, message in enumerate(messages):
        if message["role"] != "system":
            spoken.append(i)
        is_reply = message["role"] == "assistant"
        sizes.append(0 if is_reply else len(message["content"]))
    later = [i for i in spoken[1:] if messages[i]["role"] == "user"]
    longest = sizes.index(max(sizes))
    content = messages[longest]["content"]
    if later and excess >= len(_ends(tok, content)):
        return messages[: spoken[0]] + messages[later[0] :]
    cut = {**messages[longest], "content": _shorter(tok, content, excess, form)}
    return [*messages[:longest], cut, *messages[longest + 1 :]]


def _shorter(tok: PreTrainedTokenizerBase, text: str, excess: int, form: TextFormat) -> str:
    """The text without `excess` tokens at the end that form.on_long names.

    It loses at least one character.
    """
    ends = _ends(tok, text)
    if excess >= len(ends):
        raise DataError(
            f"prompt={shorten(text)}: max_prompt={form.max_prompt} leaves no room beside the"
            " template; raise max_prompt"
        )
    if form.on_long == "truncate_left":
        return text[max(ends[excess - 1], 1) :]
    return text[: min(ends[-excess - 1], len(text) - 1)]


def _ends(tok: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Where each token of the text ends, in characters."""
    encoding = tok(text, add_special_tokens=False, return_offsets_mapping=True)
    return [end for _, end in encoding["offset_mapping"]]
