"""The steps that choose which records are fit to learn from (paper 3.2, A.2, C).

Each is a pure function from items to the drops among them.  Items stand in one canonical order, by
a hash of seed and content (`in_order`), and each step keeps the first of what it compares.  So the
order of the files, and of the lines in them, changes nothing.
"""

import dataclasses
import hashlib
import json
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from instruct_jax.cleaning.language import Identify
from instruct_jax.data.schemas import Prompt, Record

KINDS = ("prompts", "demonstrations", "rankings")
SPLITS = ("train", "valid", "test")


@dataclasses.dataclass(frozen=True, slots=True)
class Item:
    """A record, and what the steps compare of it."""

    kind: str  # prompts, demonstrations or rankings
    place: str  # FILE:LINE
    record: Record
    prompt: str  # as text, in normal form
    start: str  # the first turn of the conversation, in normal form; of one turn, the prompt
    user: str | None  # user_id; None = written by a labeler
    prompt_tokens: int
    completion_tokens: tuple[int, ...]  # of each completion
    # of the prompt, with its probability; "" = not identified
    language: tuple[str, float] = ("", 0.0)

    @property
    def source(self) -> str:
        """Whether a user or a labeler wrote the prompt."""
        return "labeler" if self.user is None else "user"


@dataclasses.dataclass(frozen=True, slots=True)
class Drop:
    """Why a record is not written."""

    reason: str  # one of a few words that are counted
    detail: str
    of: str = ""  # the place of the record that it duplicates, or of the text that it overlaps


Items = Sequence[Item]
Drops = dict[int, Drop]  # index of an item -> why it goes
Written = tuple[Item, str]  # with its split
Dropped = tuple[Item, Drop]
Bad = tuple[str, str]  # kind and message of a line that is no record


@dataclasses.dataclass(frozen=True)
class Cleaned:
    """What becomes of records.  Each that was read is in exactly one of the first three."""

    written: list[Written]
    dropped: list[Dropped]
    bad: list[Bad]
    personal: dict[str, int]  # kind of personal data -> pieces found in the training split


def make_item(
    kind: str,
    place: str,
    record: Record,
    prompt_tokens: int,
    completion_tokens: tuple[int, ...],
    identify: Identify | None,
) -> Item:
    """The item of a record; without `identify`, its language is not identified."""
    turns = contents(record["prompt"])
    prompt = normal("\n\n".join(turns))
    user = record.get("user_id")
    return Item(
        kind=kind,
        place=place,
        record=record,
        prompt=prompt,
        start=normal(turns[0]),
        user=None if user in (None, "") else str(user),
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        language=identify(prompt) if identify else ("", 0.0),
    )


def contents(prompt: Prompt) -> list[str]:
    """The text of a prompt, or the contents of its messages.

    System messages, which many conversations share, count only where there is nothing else.
    """
    if isinstance(prompt, str):
        return [prompt]
    texts = []
    system = []
    for turn in prompt:
        part = system if turn["role"] == "system" else texts
        part.append(turn["content"])
    return texts or system


def completions(record: Record) -> list[str]:
    """The completion of a demonstration, those of a ranking, none of a prompt."""
    if "completions" in record:
        return record["completions"]
    if "completion" in record:
        return [record["completion"]]
    return []


def normal(text: str) -> str:
    """The text in Unicode NFC, with one space for each run of white space.

    Texts that look the same become the same.
    """
    return " ".join(unicodedata.normalize("NFC", text).split())


def hash_number(seed: int, text: str) -> int:
    """A number in [0, 2^64) that depends on seed and text alone."""
    seeded = f"{seed} {text}"
    digest = hashlib.blake2b(seeded.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def in_order(items: Items, seed: int) -> list[Item]:
    """The canonical order: by the hashes of prompts, which are the same for all kinds.

    Of the records of one prompt, those of users are first.
    """

    def key(item: Item) -> tuple[Any, ...]:
        content = json.dumps(item.record, sort_keys=True, ensure_ascii=False)
        return (
            hash_number(seed, item.prompt),
            item.prompt,
            item.user is None,
            hash_number(seed, content),
            content,
            item.kind,
            item.place,
        )

    return sorted(items, key=key)


def without(items: Items, drops: Drops) -> list[Item]:
    """The items that are not dropped."""
    return [item for i, item in enumerate(items) if i not in drops]


# --- steps on one record ---


def too_long(items: Items, max_prompt: int | None, max_completion: int | None) -> Drops:
    """Records whose prompt, or whose longest completion, has more tokens than this.

    None: any number of tokens is fine.
    """
    drops = {}
    for i, item in enumerate(items):
        longest = max(item.completion_tokens, default=0)
        if max_prompt is not None and item.prompt_tokens > max_prompt:
            what = "prompt"
            tokens = item.prompt_tokens
            most = max_prompt
        elif max_completion is not None and longest > max_completion:
            what = "completion"
            tokens = longest
            most = max_completion
        else:
            continue
        drops[i] = Drop("too long", f"its {what} has {tokens} tokens, more than {most}")
    return drops


def other_language(items: Items, keep: Sequence[str], min_confidence: float) -> Drops:
    """Prompts that are in none of the languages `keep`.

    They stay where the probability of the other language is less than `min_confidence`, as it is
    for short texts.
    """
    drops = {}
    for i, item in enumerate(items):
        language, probability = item.language
        if language not in keep and probability >= min_confidence:
            drops[i] = Drop("language", f"{language}, with probability {probability:.2f}")
    return drops


# --- steps that compare records ---


def duplicates(items: Items) -> Drops:
    """Records equal to another one of their kind, and prompts that another user has too.

    The second rule is needed because a prompt may stand in one split only.
    """
    places = {}  # content -> place of its first record
    owners = {}  # prompt -> its first item that has a user
    drops = {}
    for i, item in enumerate(items):
        if item.user is not None:
            owner = owners.setdefault(item.prompt, item)
            if owner.user != item.user:
                drops[i] = Drop("duplicate", "another user has the same prompt", owner.place)
                continue
        record = item.record
        answers = json.dumps([completions(record), record.get("ranks")])
        content = (item.kind, item.prompt, answers, record.get("labeler_id"))
        if content not in places:
            places[content] = item.place
            continue
        what = "the same prompt"
        if answers != "[[], null]":
            what += " and completions"
        drops[i] = Drop("duplicate", what, places[content])
    return drops


def shared_prefixes(items: Items, length: int) -> Drops:
    """Prompts whose first `length` characters are those of another prompt of their kind.

    All records of one of these prompts stay.  Having the same prefix is transitive, so one
    dictionary of prefixes finds in linear time what sorting all prompts would find.  The prefix of
    a shorter prompt is the whole prompt, and no other prompt has it.
    """
    first = {}
    drops = {}
    for i, item in enumerate(items):
        prefix = item.prompt[:length]
        kept = first.setdefault((item.kind, prefix), item)
        if kept.prompt != item.prompt:
            drops[i] = Drop("shared prefix", f"the same first {length} characters", kept.place)
    return drops


def over_cap(items: Items, most: int) -> Drops:
    """Prompts of one kind beyond the first `most` of their user.

    A prompt has all its records or none.
    """
    prompts = defaultdict(set)  # (kind, user) -> the prompts that stay
    drops = {}
    for i, item in enumerate(items):
        if item.user is None:
            continue
        kept = prompts[item.kind, item.user]
        if item.prompt not in kept and len(kept) == most:
            drops[i] = Drop("over the cap", f"its user has {most} prompts already")
        else:
            kept.add(item.prompt)
    return drops


def split(items: Items, seed: int, valid: float, test: float) -> list[str]:
    """train, valid or test for each item; the two shares are of users, all kinds together.

    A record without a user goes where the user of its prompt, or of its conversation, goes, and
    else by how its conversation began.  Where a user goes depends on seed and name alone, so more
    data moves nobody.
    """
    starts = {}  # one for each prompt, be it text or messages
    prompt_users = {}
    for item in reversed(items):  # so that the first item of a prompt counts
        starts[item.prompt] = item.start
        if item.user is not None:
            prompt_users[item.prompt] = item.user
    start_users = {}
    for prompt, user in prompt_users.items():
        start_users[starts[prompt]] = user
    parts = []
    for item in items:
        start = starts[item.prompt]
        user = item.user
        if user is None:
            user = prompt_users.get(item.prompt, start_users.get(start))
        name = f"prompt {start}" if user is None else f"user {user}"
        position = hash_number(seed, name) / 2**64
        if position < valid:
            parts.append("valid")
        elif position < valid + test:
            parts.append("test")
        else:
            parts.append("train")
    return parts


# --- what is written ---


def distinct_ids(items: Items) -> list[Item]:
    """The items, with the id of the second record that has the same one changed to ID#2.

    Several files of one kind are written as one, and a file has each id once.
    """
    seen = Counter()
    renamed = []
    for item in items:
        record = item.record
        name = record.get("id")
        if name is not None:
            key = item.kind, repr((name, record.get("labeler_id")))
            seen[key] += 1
            if seen[key] > 1:
                record = {**record, "id": f"{name}#{seen[key]}"}
        renamed.append(dataclasses.replace(item, record=record))
    return renamed
