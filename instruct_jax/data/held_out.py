"""What is learned from and what is held out for measuring, decided by hash."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping

from instruct_jax.data.schemas import Record

LONG = 100_000  # characters: a longer text is not held out whole, but its end is


@dataclasses.dataclass(frozen=True)
class Split:
    """The records of files, as a run divides them."""

    texts: list[Record]
    held_out_texts: list[Record]
    demonstrations: list[Record]  # but for those of held-out prompts
    rankings: list[Record]
    held_out_rankings: list[Record]
    prompts: list[Record]
    held_out_prompts: list[Record]


def split(records: Mapping[str, list[Record]], share: float, seed: int) -> Split:
    """All records of files, by their kind, into what is learned from and what is held out."""
    texts, held_out_texts = hold_out_texts(records["texts"], share, seed)
    rankings, held_out_rankings = hold_out(records["rankings"], share, seed)
    prompts, held_out_prompts = hold_out(records["prompts"], share, seed)
    measured = {_beginning(record) for record in held_out_rankings + held_out_prompts}
    demonstrations = [
        record for record in records["demonstrations"] if _beginning(record) not in measured
    ]
    return Split(
        texts,
        held_out_texts,
        demonstrations,
        rankings,
        held_out_rankings,
        prompts,
        held_out_prompts,
    )


def hold_out(records: list[Record], share: float, seed: int) -> tuple[list[Record], list[Record]]:
    """(training, held out): one order of conversations for all kinds of records, so that what is
    held out of one is (but for the last conversations of the share) held out of the others; the
    turns of a conversation stay together.  A record that occurs twice, as where a config names a
    file twice to let it weigh twice, is trained on twice and measured once.
    """
    hashes = [
        hashlib.sha256(f"{seed} {_beginning(record)}".encode()).digest() for record in records
    ]
    order = sorted(range(len(records)), key=lambda i: (hashes[i], i))
    cut = max(int(len(records) * share), 1) if len(records) > 1 else 0
    while 0 < cut < len(records) - 1 and hashes[order[cut]] == hashes[order[cut - 1]]:
        cut += 1  # to the end of the conversation
    held_out = {json.dumps(records[i], sort_keys=True): records[i] for i in order[:cut]}
    return [records[i] for i in order[cut:]], list(held_out.values())


def hold_out_texts(
    records: list[Record], share: float, seed: int
) -> tuple[list[Record], list[Record]]:
    """(training, held out): the end of every long text, and some short texts whole."""
    train, held_out = hold_out(
        [record for record in records if len(record["text"]) <= LONG], share, seed
    )
    for record in records:
        text = record["text"]
        if len(text) > LONG:
            at = int(len(text) * (1 - share))
            at = text.find("\n", at) + 1 or at  # between two lines where there are some
            train.append({**record, "text": text[:at]})
            held_out += [{**record, "text": text[at:]}] if text[at:].strip() else []
    return train, held_out


def _beginning(record: Record) -> str:
    """What a conversation began with; a text is its own beginning."""
    prompt = record.get("prompt", record.get("text"))
    return prompt[0]["content"] if isinstance(prompt, list) else str(prompt)
