"""Which records a run learns from and which it holds out for measuring, decided by hash."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping

from instruct_jax.data.schemas import Record

Divided = tuple[list[Record], list[Record]]  # training, held out
LONG = 100_000  # characters: a longer text is not held out whole, but its end is


@dataclasses.dataclass(frozen=True)
class Split:
    """The records of files, as a run divides them."""

    texts: list[Record]
    held_out_texts: list[Record]
    demonstrations: list[Record]
    held_out_demonstrations: list[Record]
    rankings: list[Record]
    held_out_rankings: list[Record]
    prompts: list[Record]
    held_out_prompts: list[Record]


def split(records: Mapping[str, list[Record]], share: float, seed: int) -> Split:
    """Divides the records of all files, by their kind.  Nothing that is measured on is learned from
    as a demonstration.
    """
    texts, held_out_texts = hold_out_texts(records["texts"], share, seed)
    rankings, held_out_rankings = hold_out(records["rankings"], share, seed)
    prompts, held_out_prompts = hold_out(records["prompts"], share, seed)
    demonstrations, held_out_demonstrations = hold_out(records["demonstrations"], share, seed)
    # by their hash no demonstration is of these, but where a kind had too few conversations
    measured = {_beginning(record) for record in held_out_rankings + held_out_prompts}
    return Split(
        texts=texts,
        held_out_texts=held_out_texts,
        demonstrations=[r for r in demonstrations if _beginning(r) not in measured],
        held_out_demonstrations=held_out_demonstrations,
        rankings=rankings,
        held_out_rankings=held_out_rankings,
        prompts=prompts,
        held_out_prompts=held_out_prompts,
    )


def hold_out(records: list[Record], share: float, seed: int) -> Divided:
    """Divides the records of one kind.

    A conversation whose hash, as a number in [0, 1), is below the share is held out.  So this does
    not depend on the order of the records nor on which others there are; it is the same for all
    kinds of records, and the turns of a conversation stay together.  Only where this would hold
    out nothing, or all, it holds out the least of the hashes, or all but the largest.

    A record that occurs twice, as where a config names a file twice to let it weigh twice, is
    trained on twice and measured once.
    """
    hashes = [_fraction(f"{seed} {_beginning(record)}") for record in records]
    least, largest = min(hashes, default=0.0), max(hashes, default=0.0)
    training, held_out = [], {}
    for record, number in zip(records, hashes, strict=True):
        if number != largest and (number < share or number == least):
            held_out[json.dumps(record, sort_keys=True)] = record
        else:
            training.append(record)
    return training, list(held_out.values())


def _fraction(text: str) -> float:
    """A hash of the text in [0, 1)."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6]) / 2**48


def hold_out_texts(records: list[Record], share: float, seed: int) -> Divided:
    """Holds out the end of every long text, and some short texts whole."""
    short = [record for record in records if len(record["text"]) <= LONG]
    train, held_out = hold_out(short, share, seed)
    for record in records:
        text = record["text"]
        if len(text) <= LONG:
            continue
        at = int(len(text) * (1 - share))
        at = text.find("\n", at) + 1 or at  # between two lines where there are some
        train.append({**record, "text": text[:at]})
        if text[at:].strip():
            held_out.append({**record, "text": text[at:]})
    return train, held_out


def _beginning(record: Record) -> str:
    """The first message of a conversation, but for system messages, which many share; or the whole
    of a text.
    """
    prompt = record.get("prompt", record.get("text"))
    if not isinstance(prompt, list):
        return str(prompt)
    said = [turn["content"] for turn in prompt if turn["role"] != "system"]
    return said[0] if said else prompt[0]["content"]
