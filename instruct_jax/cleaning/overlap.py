"""Finds records that hold a piece of an evaluation set, by n-grams of words.

The method is that of Brown et al. 2020, arXiv:2005.14165, appendix C.
"""

import dataclasses
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from instruct_jax.cleaning.filters import Drop, Drops, Item, Items, completions, contents
from instruct_jax.data.schemas import Record, Schema
from instruct_jax.errors import FieldError

PUNCTUATION = re.compile(r"[^\w\s]|_")


@dataclasses.dataclass(frozen=True)
class EvaluationText:
    """The words of evaluation sets."""

    n: int
    grams: dict[str, str]  # n words -> the place where they stand first
    short: dict[str, str]  # a whole text of fewer than n words -> its place


# n-grams of a record -> their places in evaluation sets; the place of its prompt as a whole
Hits = tuple[dict[str, str], str | None]


def words(text: str) -> list[str]:
    """Lowercase words without punctuation, split at white space."""
    return PUNCTUATION.sub("", text.lower()).split()


def evaluation_text(texts: Iterable[tuple[str, str]], n: int) -> EvaluationText:
    """The words of (place, text), where each text is one question, context or turn."""
    grams = {}
    short = {}
    for place, text in texts:
        its_words = words(text)
        if 0 < len(its_words) < n:
            short.setdefault(" ".join(its_words), place)
        for gram in _grams(its_words, n):
            grams.setdefault(gram, place)
    return EvaluationText(n, grams, short)


def field_schema(field: str) -> Schema:
    """Reads records of an evaluation set as {"texts": [...]}.

    The field is text, a list of texts, or messages.
    """

    def schema(raw: Record) -> Record:
        value = raw.get(field)
        texts = []
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, dict) and "content" in part:
                part = part["content"]
            texts.append(part)
        if not texts or not all(isinstance(text, str) for text in texts):
            raise FieldError(
                field,
                value,
                f"is no text; there are {sorted(raw)}",
                "name another field in overlap.files",
            )
        return {"texts": texts}

    return schema


def hits(item: Item, against: EvaluationText) -> Hits:
    """What a record shares with evaluation sets.

    Completions are not compared whole, because many are "yes" or "Paris".
    """
    whole = None
    turns = contents(item.record["prompt"])
    for turn in turns:
        text = " ".join(words(turn))
        if whole is None:
            whole = against.short.get(text)
    grams = {}
    for text in turns + completions(item.record):
        for gram in _grams(words(text), against.n):
            place = against.grams.get(gram)
            if place is not None:
                grams[gram] = place
    return grams, whole


def overlapping(items: Items, found: Sequence[Hits], common: int) -> Drops:
    """Records with an n-gram of an evaluation set, or with a turn that is one of its short texts.

    An n-gram in the records of more than `common` different prompts is a common phrase, and does
    not count.
    """
    holders = defaultdict(set)  # n-gram -> prompts
    for item, (grams, _) in zip(items, found, strict=True):
        for gram in grams:
            holders[gram].add(item.prompt)
    drops = {}
    for i, (grams, whole) in enumerate(found):
        rare = [gram for gram in grams if len(holders[gram]) <= common]
        if rare:
            first = rare[0]
            detail = f"n-grams in common: {len(rare)}, the first: {first}"
            drops[i] = Drop("overlap", detail, grams[first])
        elif whole is not None:
            drops[i] = Drop("overlap", "the whole of a short text", whole)
    return drops


def _grams(its_words: Sequence[str], n: int) -> Iterator[str]:
    for i in range(len(its_words) - n + 1):
        yield " ".join(its_words[i : i + n])
