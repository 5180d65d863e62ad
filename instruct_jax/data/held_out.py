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
    demonstrations: list[Record]  # without those of held-out prompts
    rankings: list[Record]
    held_out_rankings: list[Record]
    prompts: list[Record]
    held_out_prompts: list[Record]


def split(records: Mapping[str, list[Record]], share: float, seed: int) -> Split:
    """Divides the records of all files, by their kind."""
    texts, held_out_texts = hold_out_texts(records["texts"], share, seed)
    rankings, held_out_rankings = hold_out(records["rankings"], share, seed)
    prompts, held_out_prompts = hold_out(records["prompts"], share, seed)
    measured = {_beginning(record) for record in held_out_rankings + held_out_prompts}
    demonstrations = []
    for record in records["demonstrations"]:
        if _beginning(record) not in measured:
            demonstrations.append(record)
    return Split(
        texts=texts,
        held_out_texts=held_out_texts,
        demonstrations=demonstrations,
        rankings=rankings,
        held_out_rankings=held_out_rankings,
        prompts=prompts,
        held_out_prompts=held_out_prompts,
    )


def hold_out(records: list[Record], share: float, seed: int) -> Divided:
    """Divides the records of one kind.

    The order of conversations is the same for all kinds of records.  So a conversation that is held
    out of one kind is held out of the others (except for the last ones of the share), and its turns
    stay together.  A record that occurs twice, as where a config names a file twice to let it weigh
    twice, is trained on twice and measured once.
    """
    hashes = []
    for record in records:
        text = f"{seed} {_beginning(record)}"
        hashes.append(hashlib.sha256(text.encode()).digest())
    count = len(records)
    order = sorted(range(count), key=lambda i: (hashes[i], i))
    cut = max(int(count * share), 1) if count > 1 else 0
    while 0 < cut < count - 1:
        last, following = order[cut - 1], order[cut]
        if hashes[last] != hashes[following]:
            break
        cut += 1  # to the end of the conversation
    held_out = {}
    for i in order[:cut]:
        content = json.dumps(records[i], sort_keys=True)
        held_out[content] = records[i]
    training = [records[i] for i in order[cut:]]
    return training, list(held_out.values())


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
    """The first message of a conversation, or the whole of a text."""
    prompt = record.get("prompt", record.get("text"))
    if isinstance(prompt, list):
        return prompt[0]["content"]
    return str(prompt)
