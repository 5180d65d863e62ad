"""Which records of many are fit to learn from (paper 3.2, A.2, C), as pure steps: items in, the
drops among them out.

Items stand in one canonical order, by a hash of seed and content (`in_order`), and each step keeps
the first of what it compares.  So the order of the files, and of the lines in them, changes
nothing.
"""

import collections
import dataclasses
import hashlib
import json
import unicodedata
from collections.abc import Sequence
from typing import Any

from instruct_jax.cleaning.language import Identify
from instruct_jax.data.schemas import Record
from instruct_jax.data.tokenize import Prompt

KINDS = ("prompts", "demonstrations", "rankings")
SPLITS = ("train", "valid", "test")


@dataclasses.dataclass(frozen=True, slots=True)
class Item:
    """A record, and what the steps compare of it."""

    kind: str  # prompts, demonstrations or rankings
    place: str  # FILE:LINE
    record: Record
    prompt: str  # as text, in normal form
    start: str  # what the conversation began with, in normal form; of one turn, the prompt
    user: str | None  # user_id; None = written by a labeler
    asked: int  # tokens of the prompt
    answered: tuple[int, ...]  # tokens of each completion
    # of the prompt, with its probability; "" = not looked for
    language: tuple[str, float] = ("", 0.0)

    @property
    def source(self) -> str:
        return "labeler" if self.user is None else "user"


@dataclasses.dataclass(frozen=True, slots=True)
class Drop:
    """Why a record is not written."""

    reason: str  # one of a few words that are counted
    detail: str
    of: str = ""  # the place that it duplicates, or overlaps


Drops = dict[int, Drop]  # index of an item -> why it goes
Written = tuple[Item, str]  # with its split
Dropped = tuple[Item, Drop]


@dataclasses.dataclass(frozen=True)
class Cleaned:
    """What becomes of records.  Each that was read is in exactly one of the first three."""

    written: list[Written]
    dropped: list[Dropped]
    bad: list[tuple[str, str]]  # (kind, message) of what is no record
    # kind of personal data -> pieces of it that were found in the training split
    personal: dict[str, int]


def make_item(
    kind: str,
    place: str,
    record: Record,
    asked: int,
    answered: tuple[int, ...],
    identify: Identify | None,
) -> Item:
    """asked, answered: tokens of prompt and completions."""
    user, turns = record.get("user_id"), contents(record["prompt"])
    user, prompt = None if user in (None, "") else str(user), normal("\n\n".join(turns))
    return Item(
        kind,
        place,
        record,
        prompt,
        normal(turns[0]),
        user,
        asked,
        answered,
        identify(prompt) if identify else ("", 0.0),
    )


def contents(prompt: Prompt) -> list[str]:
    """A text, or what the messages say.

    System messages, which many conversations share, count only where there is nothing else.
    """
    if isinstance(prompt, str):
        return [prompt]
    return [turn["content"] for turn in prompt if turn["role"] != "system"] or [
        turn["content"] for turn in prompt
    ]


def completions(record: Record) -> list[str]:
    """What is learned from: the completion of a demonstration, those of a ranking, none of a
    prompt.
    """
    return (
        record["completions"]
        if "completions" in record
        else [record["completion"]]
        if "completion" in record
        else []
    )


def normal(text: str) -> str:
    """Unicode NFC, and one space for each run of white space: what looks the same is the same."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def lot(seed: int, text: str) -> int:
    """A number in [0, 2^64) that depends on seed and text alone."""
    return int.from_bytes(hashlib.blake2b(f"{seed} {text}".encode(), digest_size=8).digest(), "big")


def in_order(items: Sequence[Item], seed: int) -> list[Item]:
    """The canonical order: by the lots of prompts, which are the same for all kinds; of one prompt,
    records of users first.
    """

    def key(item: Item) -> tuple[Any, ...]:
        content = json.dumps(item.record, sort_keys=True, ensure_ascii=False)
        return (
            lot(seed, item.prompt),
            item.prompt,
            item.user is None,
            lot(seed, content),
            content,
            item.kind,
            item.place,
        )

    return sorted(items, key=key)


def without(items: Sequence[Item], drops: Drops) -> list[Item]:
    return [item for i, item in enumerate(items) if i not in drops]


# --- steps on one record ---


def too_long(items: Sequence[Item], max_prompt: int | None, max_completion: int | None) -> Drops:
    """Records whose prompt, or whose longest completion, has more tokens than this; None = any
    number.
    """
    drops: Drops = {}
    for i, item in enumerate(items):
        for what, tokens, most in (
            ("prompt", item.asked, max_prompt),
            ("completion", max(item.answered, default=0), max_completion),
        ):
            if most is not None and tokens > most:
                drops.setdefault(
                    i, Drop("too long", f"its {what} has {tokens} tokens, more than {most}")
                )
    return drops


def other_language(items: Sequence[Item], keep: Sequence[str], sure: float) -> Drops:
    """Prompts that are in none of the languages `keep`.

    Where the probability is less than `sure`, as of short texts, they stay.
    """
    drops: Drops = {}
    for i, item in enumerate(items):
        language, probability = item.language
        if language not in keep and probability >= sure:
            drops[i] = Drop("language", f"{language}, with probability {probability:.2f}")
    return drops


# --- steps that compare records ---


def duplicates(items: Sequence[Item]) -> Drops:
    """Records that say again what one of their kind says; and, as a prompt may stand in one split
    only, prompts of a second user.
    """
    first: dict[tuple, str] = {}  # content -> place
    owners: dict[str, Item] = {}  # prompt -> its first item of a user
    drops: Drops = {}
    for i, item in enumerate(items):
        owner = owners.setdefault(item.prompt, item) if item.user is not None else item
        answers = json.dumps([completions(item.record), item.record.get("ranks")])
        content = (item.kind, item.prompt, answers, item.record.get("labeler_id"))
        if owner.user != item.user:
            drops[i] = Drop("duplicate", "another user has the same prompt", owner.place)
        elif content in first:
            drops[i] = Drop(
                "duplicate",
                "the same prompt" + (" and completions" if answers != "[[], null]" else ""),
                first[content],
            )
        else:
            first[content] = item.place
    return drops


def shared_prefixes(items: Sequence[Item], length: int) -> Drops:
    """Prompts whose first `length` characters are those of another prompt of their kind; all
    records of one of these prompts stay.

    To begin alike is transitive, so one dictionary of beginnings finds what sorting all prompts
    would, in linear time.  The beginning of a shorter prompt is the whole of it, and nobody else's.
    """
    first: dict[tuple[str, str], Item] = {}
    drops: Drops = {}
    for i, item in enumerate(items):
        kept = first.setdefault((item.kind, item.prompt[:length]), item)
        if kept.prompt != item.prompt:
            drops[i] = Drop("shared prefix", f"the same first {length} characters", kept.place)
    return drops


def over_cap(items: Sequence[Item], most: int) -> Drops:
    """Prompts of one kind beyond the first `most` of their user.

    A prompt has all its records or none.
    """
    prompts: dict[tuple[str, str], set[str]] = collections.defaultdict(set)
    drops: Drops = {}
    for i, item in enumerate(items):
        if item.user is None:
            continue
        seen = prompts[item.kind, item.user]
        if item.prompt not in seen and len(seen) == most:
            drops[i] = Drop("over the cap", f"its user has {most} prompts already")
        else:
            seen.add(item.prompt)
    return drops


def split(items: Sequence[Item], seed: int, valid: float, test: float) -> list[str]:
    """train, valid or test of each item; the two shares are of users, all kinds together.

    A record without a user goes where the user of its prompt, or of its conversation, goes, and
    else by how its conversation began.  Where a user goes depends on seed and name alone, so more
    data moves nobody.
    """
    # one for each prompt, be it text or messages
    starts = {item.prompt: item.start for item in reversed(items)}
    users = {item.prompt: item.user for item in reversed(items) if item.user is not None}
    talkers = {starts[prompt]: user for prompt, user in users.items()}
    names = []
    for item in items:
        start = starts[item.prompt]
        user = item.user if item.user is not None else users.get(item.prompt, talkers.get(start))
        names.append(f"prompt {start}" if user is None else f"user {user}")
    draws = {name: lot(seed, name) / 2**64 for name in names}
    return [
        "valid" if draws[name] < valid else "test" if draws[name] < valid + test else "train"
        for name in names
    ]


# --- what is written ---


def distinct_ids(items: Sequence[Item]) -> list[Item]:
    """Files of one kind, written as one, may give an id to several records: the second becomes
    ID#2, as a file has each id once.
    """
    seen: collections.Counter[tuple[str, str]] = collections.Counter()
    found = []
    for item in items:
        name = item.record.get("id")
        key = item.kind, repr((name, item.record.get("labeler_id")))
        seen[key] += name is not None
        renamed = {**item.record, "id": f"{name}#{seen[key]}"} if seen[key] > 1 else item.record
        found.append(dataclasses.replace(item, record=renamed))
    return found
