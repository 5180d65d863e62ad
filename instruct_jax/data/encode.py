"""Normalised records to token ids for `packing` and `batches`, with one rule for what is too long."""

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, Literal, TypeVar

from transformers import PreTrainedTokenizerBase

from instruct_jax.data.batches import Ranking
from instruct_jax.data.packing import Sample, chunk_documents
from instruct_jax.data.readers import Records
from instruct_jax.data.schemas import Record
from instruct_jax.data.tokenize import (
    Prompt,
    encode_completion,
    encode_conversation,
    encode_document,
)
from instruct_jax.errors import DataError, shorten

logger = logging.getLogger(__name__)
Item = TypeVar("Item")


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
    # prompt's text (never off the template);
    # a completion always keeps its beginning, and loses its eos; a ranking with such a completion
    # is left out.
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
    items: list[Item]
    kept: list[int]  # items[i] comes from records[kept[i]]
    long_prompts: int  # cut or dropped
    long_completions: int

    @property
    def message(self) -> str:
        return (
            f"{len(self.items)} records; too long: {self.long_prompts} prompts,"
            f" {self.long_completions} completions"
        )


def encode_demonstrations(
    tok: PreTrainedTokenizerBase, records: Sequence[Record], form: TextFormat
) -> Encoded[Sample]:
    """(ids, learn): prompt + completion + eos; the completion, the replies in the prompt's
    messages, and their eos are learned.
    """

    def build(record: Record, prompt: Sample, completions: list[list[int]]) -> Sample:
        (ids, learn), [completion] = prompt, completions
        return [*ids, *completion], [*learn, *[True] * len(completion)]

    return _encode(tok, records, form, lambda r: [(r["completion"], True)], build)


def encode_rankings(
    tok: PreTrainedTokenizerBase, records: Sequence[Record], form: TextFormat
) -> Encoded[Ranking]:
    """(K sequences of prompt + completion + eos, ranks).  One completion that is too long drops the
    whole record, also where on_long cuts prompts: people ranked whole completions, and nobody knows
    how they would have ranked their beginnings.

    Where a record says that a completion had not `ended`, there is no eos: the reward model reads
    it as PPO will show it.
    """

    def completions_of(record: Record) -> list[tuple[str, bool]]:
        texts = record["completions"]
        return list(zip(texts, record.get("ended") or [True] * len(texts), strict=True))

    return _encode(
        tok,
        records,
        form,
        completions_of,
        lambda r, p, cs: ([[*p[0], *c] for c in cs], r["ranks"]),
        whole=True,
    )


def encode_prompts(
    tok: PreTrainedTokenizerBase, records: Sequence[Record], form: TextFormat
) -> Encoded[list[int]]:
    return _encode(tok, records, form, lambda r: [], lambda r, p, cs: list(p[0]))


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
    """Raises what encode_texts would, without tokenizing what is certainly good: texts may be many."""
    for number, record in enumerate(records):
        if any(name in record["text"] for name in tok.all_special_tokens):
            with _located(records, number):
                encode_document(tok, record["text"])


def _encode(
    tok: PreTrainedTokenizerBase,
    records: Sequence[Record],
    form: TextFormat,
    completions_of: Callable[[Record], list[tuple[str, bool]]],  # (text, has it ended?)
    build: Callable[[Record, Sample, list[list[int]]], Item],  # (record, prompt, completions)
    *,
    whole: bool = False,
) -> Encoded[Item]:
    items, kept, long_prompts, long_completions = [], [], 0, 0
    for number, record in enumerate(records):
        with _located(records, number):
            prompt = _encode_prompt(tok, record["prompt"], form)
            encoded = [
                (encode_completion(tok, text, prefix=form.completion_prefix), ended)
                for text, ended in completions_of(record)
            ]
            completions = [ids if ended else ids[:-1] for ids, ended in encoded]
            long_prompt, longest = (
                len(prompt[0]) > form.max_prompt,
                max(map(len, completions), default=0),
            )
            long_completion = longest > form.max_completion
            long_prompts, long_completions = (
                long_prompts + long_prompt,
                long_completions + long_completion,
            )
            if form.on_long == "error" and (long_prompt or long_completion):
                field, size, limit = (
                    ("prompt", len(prompt[0]), "max_prompt")
                    if long_prompt
                    else ("completion", longest, "max_completion")
                )
                raise DataError(
                    f"prompt={shorten(record['prompt'])}: its {field} has {size} tokens, more than"
                    f" {limit}={getattr(form, limit)}; raise {limit}, or set on_long to drop,"
                    " truncate_left or truncate_right"
                )
            if (form.on_long == "drop" and long_prompt) or (
                (form.on_long == "drop" or whole) and long_completion
            ):
                continue
            if long_prompt:
                prompt = _cut(tok, record["prompt"], form)
        items.append(build(record, prompt, [ids[: form.max_completion] for ids in completions]))
        kept.append(number)
    found = Encoded(items, kept, long_prompts, long_completions)
    if long_prompts or long_completions:
        logger.warning("on_long=%s: %s of %d", form.on_long, found.message, len(records))
    return found


@contextlib.contextmanager
def _located(records: Sequence[Record], number: int) -> Iterator[None]:
    """Errors name the place of the record."""
    try:
        yield
    except DataError as error:
        place = records.places[number] if isinstance(records, Records) else f"record {number + 1}"
        raise DataError(f"{place}: {error}") from error


def _encode_prompt(tok: PreTrainedTokenizerBase, prompt: Prompt, form: TextFormat) -> Sample:
    return encode_conversation(tok, prompt, template=form.template, prefix=form.completion_prefix)


def _cut(tok: PreTrainedTokenizerBase, prompt: Prompt, form: TextFormat) -> Sample:
    """The prompt without the end of its text (of the longest message that is no reply) that is too
    much.

    A conversation whose longest message is shorter than what is too much loses its oldest exchange
    first.
    """
    while (excess := len((sample := _encode_prompt(tok, prompt, form))[0]) - form.max_prompt) > 0:
        if isinstance(prompt, str):
            prompt = _shorter(tok, prompt, excess, form)
            continue
        said = [i for i, message in enumerate(prompt) if message["role"] != "system"]
        later = [i for i in said[1:] if prompt[i]["role"] == "user"]
        sizes = [
            0 if message["role"] == "assistant" else len(message["content"]) for message in prompt
        ]
        longest = sizes.index(max(sizes))
        content = prompt[longest]["content"]
        if later and excess >= len(_ends(tok, content)):
            prompt = prompt[: said[0]] + prompt[later[0] :]
        else:
            prompt = [
                *prompt[:longest],
                {**prompt[longest], "content": _shorter(tok, content, excess, form)},
                *prompt[longest + 1 :],
            ]
    return sample


def _shorter(tok: PreTrainedTokenizerBase, text: str, excess: int, form: TextFormat) -> str:
    """The text without `excess` tokens (at least one character less) at the end that form.on_long
    names.
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
    return [
        end
        for _, end in tok(text, add_special_tokens=False, return_offsets_mapping=True)[
            "offset_mapping"
        ]
    ]
