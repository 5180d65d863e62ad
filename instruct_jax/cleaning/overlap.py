"""Records that hold a piece of an evaluation set, found by n-grams of words (Brown et al.

2020, appendix C).
"""

import collections
import dataclasses
import re
from collections.abc import Iterable, Sequence

from instruct_jax.cleaning.filters import Drop, Drops, Item, completions, contents
from instruct_jax.data.schemas import Record, Schema
from instruct_jax.errors import FieldError

PUNCTUATION = re.compile(r"[^\w\s]|_")


@dataclasses.dataclass(frozen=True)
class Measured:
    """What evaluation sets say, as words: where each n-gram stands first, and each text that is
    shorter than n.
    """

    n: int
    grams: dict[str, str]  # n words -> place
    short: dict[str, str]  # fewer than n words -> place


# n-grams of a record -> their places in evaluation sets; the place of its prompt as a whole
Hits = tuple[dict[str, str], str | None]


def words(text: str) -> list[str]:
    """Lowercase, without punctuation, parted at white space."""
    return PUNCTUATION.sub("", text.lower()).split()


def measured(texts: Iterable[tuple[str, str]], n: int) -> Measured:
    """Of (place, text), each one question, context or turn."""
    found = Measured(n, {}, {})
    for place, text in texts:
        said = words(text)
        if 0 < len(said) < n:
            found.short.setdefault(" ".join(said), place)
        for gram in _grams(said, n):
            found.grams.setdefault(gram, place)
    return found


def field_schema(field: str) -> Schema:
    """Reads records of an evaluation set as {"texts": [...]}; the field is text, a list of texts,
    or messages.
    """

    def schema(raw: Record) -> Record:
        value = raw.get(field)
        parts = value if isinstance(value, list) else [value]
        texts = [
            part["content"] if isinstance(part, dict) and "content" in part else part
            for part in parts
        ]
        if not texts or not all(isinstance(text, str) for text in texts):
            raise FieldError(
                field,
                value,
                f"is no text; there are {sorted(raw)}",
                "name another field in overlap.files",
            )
        return {"texts": texts}

    return schema


def hits(item: Item, against: Measured) -> Hits:
    """What a record shares with evaluation sets.

    Completions are not compared whole: many are "yes" or "Paris".
    """
    asked = contents(item.record["prompt"])
    texts = [words(text) for text in (*asked, *completions(item.record))]
    grams = {
        gram: against.grams[gram]
        for said in texts
        for gram in _grams(said, against.n)
        if gram in against.grams
    }
    whole = next(
        (
            against.short[text]
            for said in texts[: len(asked)]
            if (text := " ".join(said)) in against.short
        ),
        None,
    )
    return grams, whole


def overlapping(items: Sequence[Item], found: Sequence[Hits], common: int) -> Drops:
    """Records with an n-gram of an evaluation set, or a turn that is one of its short texts.

    An n-gram that more than `common` different prompts hold is a common phrase, and no sign of
    anything.
    """
    holders: dict[str, set[str]] = collections.defaultdict(set)
    for item, (grams, _) in zip(items, found, strict=True):
        for gram in grams:
            holders[gram].add(item.prompt)
    drops: Drops = {}
    for i, (grams, whole) in enumerate(found):
        telling = [gram for gram in grams if len(holders[gram]) <= common]
        if telling:
            drops[i] = Drop(
                "overlap",
                f"n-grams in common: {len(telling)}, the first: {telling[0]}",
                grams[telling[0]],
            )
        elif whole is not None:
            drops[i] = Drop("overlap", "the whole of a short text", whole)
    return drops


def _grams(said: Sequence[str], n: int) -> Iterable[str]:
    return (" ".join(said[i : i + n]) for i in range(len(said) - n + 1))
