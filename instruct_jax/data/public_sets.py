"""Public data sets, as they are published, as records in normal form.

They lie side by side in one folder ("root") of the user's choice:

    oasst_en100/en_100_tree.jsonl.gz
        Open Assistant's trees: demonstrations, K-way rankings, prompts
    hh_rlhf_harmless_test/test.jsonl.gz
        Anthropic's helpful and harmless pairs: rankings, demonstrations, prompts
    self_instruct_seed/seed_tasks.jsonl.gz
        demonstrations
    self_instruct_seed/user_oriented_instructions.jsonl.gz
        prompts, by user
    gutenberg/*.txt.gz, wikitext2/*.txt.gz
        texts

A path of a config names an adapter by a prefix: "oasst:../data" is what ADAPTERS["oasst"] makes of
the folder ../data.  The pairs may also be those of the hub: "hh:hub:Anthropic/hh-rlhf:train".
"""

import difflib
import re
from collections.abc import Callable, Iterator, Set
from pathlib import Path
from typing import Any

from instruct_jax.data import schemas
from instruct_jax.data.readers import (
    HUB,
    Columns,
    OnBad,
    Records,
    check_id,
    folder_and_split,
    read,
    read_texts,
)
from instruct_jax.data.schemas import Messages, Record
from instruct_jax.errors import DataError, FieldError, shorten

SCHEMAS = {
    "texts": schemas.text,
    "demonstrations": schemas.demonstration,
    "rankings": schemas.ranking,
    "prompts": schemas.prompt,
}
ROLES = {"prompter": "user", "assistant": "assistant"}  # of Open Assistant
SPEAKERS = {"Human": "user", "Assistant": "assistant"}  # of HH
TREES = "use the files named *_tree*.jsonl of Open Assistant"
TURN = re.compile(r"\n\n(Human|Assistant):")  # begins a turn of an HH transcript
TITLE = re.compile(r"^(?= = [^=\n]+ = $)", re.MULTILINE)  # of a wikitext article


def oasst_demonstrations(root: str | Path) -> Records:
    """The best reply to every prompter message that has one: rank 0, or the only reply."""
    raw = []
    for node, prompt in _oasst(root):
        replies = _ranked(node)
        if not replies and len(node["replies"]) == 1:
            replies = node["replies"]
        if replies:
            best = min(replies, key=lambda reply: reply.get("rank") or 0)
            record = {
                "prompt": prompt,
                "completion": best["text"],
                "id": best["message_id"],
                "source": "oasst",
            }
            raw.append(record)
    return _records(schemas.demonstration, raw, root)


def oasst_rankings(root: str | Path) -> Records:
    """Every prompter message with two or more ranked replies; ranks from 1."""
    raw = []
    for node, prompt in _oasst(root):
        replies = _ranked(node)
        if len(replies) > 1:
            record = {
                "prompt": prompt,
                "completions": [reply["text"] for reply in replies],
                "ranks": [reply["rank"] + 1 for reply in replies],
                "id": node["message_id"],
                "source": "oasst",
            }
            raw.append(record)
    return _records(schemas.ranking, raw, root)


def oasst_prompts(root: str | Path) -> Records:
    """Every prompter message, with the conversation before it."""
    raw = []
    for node, prompt in _oasst(root):
        raw.append({"prompt": prompt, "id": node["message_id"], "source": "oasst"})
    return _records(schemas.prompt, raw, root)


def hh_rankings(root: str | Path) -> Records:
    """Pairs, K = 2; the transcript before them as messages.

    The few with an empty reply are in `dropped`.
    """

    def schema(raw: Record) -> Record:
        pair = schemas.ranking({key: raw.get(key) for key in ("chosen", "rejected")})
        return schemas.ranking({**pair, "prompt": _turns(pair["prompt"]), "source": "hh"})

    return _hh(root, schema)


def hh_demonstrations(root: str | Path) -> Records:
    """The chosen transcripts, each with its last reply as the completion."""

    def schema(raw: Record) -> Record:
        return schemas.demonstration({"messages": _turns(raw.get("chosen")), "source": "hh"})

    return _hh(root, schema)


def hh_prompts(root: str | Path) -> Records:
    """The chosen transcripts up to their last reply."""

    def schema(raw: Record) -> Record:
        return schemas.prompt({"messages": _turns(raw.get("chosen")), "source": "hh"})

    return _hh(root, schema)


def _hh(root: str | Path, schema: schemas.Schema) -> Records:
    path = root
    if not str(root).startswith(HUB):
        path = _file(root, "hh_rlhf_harmless_test", "test.jsonl*")
    return read(schema, path, on_bad_record="skip")


def seed_demonstrations(root: str | Path) -> Records:
    """The seed tasks of self-instruct."""

    def schema(raw: Record) -> Record:
        instance = _instance(raw)
        fields = {
            "instruction": raw.get("instruction"),
            "input": instance.get("input"),
            "output": instance.get("output"),
        }
        return schemas.demonstration({**fields, "id": raw.get("id"), "source": "self_instruct"})

    return read(schema, _file(root, "self_instruct_seed", "seed_tasks.jsonl*"))


def user_prompts(root: str | Path) -> Records:
    """The user-oriented instructions of self-instruct.

    user_id is the application that they were written for.
    """

    def schema(raw: Record) -> Record:
        task = {"instruction": raw.get("instruction"), "input": _instance(raw).get("input")}
        return {
            "prompt": schemas.instruction(task),
            "id": raw.get("id"),
            "user_id": raw.get("motivation_app"),
            "source": "self_instruct_user",
        }

    return read(schema, _file(root, "self_instruct_seed", "user_oriented_instructions.jsonl*"))


def novels(root: str | Path) -> Records:
    """One document for each novel."""
    files = sorted(_folder(root, "gutenberg").glob("*.txt*"))
    files = [path for path in files if not path.name.startswith("SOURCE")]
    if not files:
        raise DataError(
            f"{Path(root) / 'gutenberg'}: no *.txt or *.txt.gz in it; download the data set there"
        )
    records = Records()
    for path in files:
        [novel] = read_texts(path)
        records.append({**novel, "id": path.name.split(".")[0], "source": "gutenberg"})
    records.places = [str(path) for path in files]
    return records


def wikitext(root: str | Path, part: str = "valid") -> Records:
    """One document for each article; `part` is valid or test."""
    path = _file(root, "wikitext2", f"{part}.txt*")
    [whole] = read_texts(path)
    records, places = Records(), []
    for article in TITLE.split(whole["text"]):
        if article.strip():
            records.append({"text": article.strip(), "source": f"wikitext2/{part}"})
            places.append(f"{path}: article {len(records)}")
    records.places = places
    return records


# prefix -> kind of records -> function of the folder
ADAPTERS: dict[str, dict[str, Callable[[str], Records]]] = {
    "oasst": {
        "demonstrations": oasst_demonstrations,
        "rankings": oasst_rankings,
        "prompts": oasst_prompts,
    },
    "hh": {"demonstrations": hh_demonstrations, "rankings": hh_rankings, "prompts": hh_prompts},
    "self_instruct": {"demonstrations": seed_demonstrations, "prompts": user_prompts},
    "novels": {"texts": novels},
    "wikitext": {"texts": wikitext},
}


def load(
    kind: str, path: str, on_bad_record: OnBad = "error", columns: Columns | None = None
) -> Records:
    """The records of one path of a config; `kind` is a key of SCHEMAS.

    Adapters need neither `on_bad_record` nor `columns`: each knows its data set.
    """
    name, folder = split_path(path)
    if name is None:
        return read(SCHEMAS[kind], path, on_bad_record=on_bad_record, columns=columns)
    if kind not in ADAPTERS[name]:
        raise DataError(
            f"{path}: {name} has no {kind}, only {', '.join(ADAPTERS[name])}; name it there, or"
            " another data set here"
        )
    return ADAPTERS[name][kind](folder)


def check_columns(columns: Columns, mapped: Set[str]) -> None:
    """DataError for an entry that changed no record (Records.mapped) of all that were read."""
    for ours, theirs in columns.items():
        if ours not in mapped:
            raise DataError(
                f"data.columns={{{ours}: {shorten(theirs)}}}: no record has the column"
                f" {theirs or ours}; correct the name, or remove the entry"
            )


def split_path(path: str) -> tuple[str | None, str]:
    """(adapter, folder) of "adapter:folder"; (None, path) of any other path."""
    name, colon, folder = path.partition(":")
    if not colon or name == "hub" or Path(path).exists():
        return None, path
    if name not in ADAPTERS and folder_and_split(path)[1] is not None:
        return None, path
    if name not in ADAPTERS:
        near = difflib.get_close_matches(name, ADAPTERS, n=1)
        fix = f"use one of {', '.join(ADAPTERS)}, hub, or the path of a file"
        if near:
            fix = f"did you mean {near[0]}?"
        raise DataError(f"{path}: {name} is no known data set; {fix}")
    return name, folder


def _records(schema: schemas.Schema, raw: list[Record], root: str | Path) -> Records:
    """Messages of trees in the schema's normal form."""
    folder = _folder(root, "oasst_en100")
    records, places, seen = Records(), [], {}
    for record in raw:
        place = f"{folder}: message {record['id']}"
        try:
            check_id(record, place, seen)
            records.append(schema(record))
        except FieldError as error:
            raise DataError(f"{place}: {error}") from error
        places.append(place)
    records.places = places
    return records


def _turns(transcript: Any) -> Messages:
    r"""Messages of "\\n\\nHuman: ...\\n\\nAssistant: ...\\n\\nAssistant:".

    Turns without text, such as the last one here, are left out.
    """
    if not isinstance(transcript, str):
        raise FieldError(
            "chosen", transcript, "is no transcript", "use the files of hh-rlhf as published"
        )
    _, *parts = TURN.split(transcript)
    turns = []
    for speaker, text in zip(parts[::2], parts[1::2], strict=True):
        if text.strip():
            turns.append({"role": SPEAKERS[speaker], "content": text.strip()})
    return turns


def _oasst(root: str | Path) -> Iterator[tuple[Record, Messages]]:
    """(prompter message, conversation up to and with it) of every tree."""

    def walk(node: Record, before: Messages) -> Iterator[tuple[Record, Messages]]:
        conversation = [*before, {"role": ROLES[node["role"]], "content": node["text"]}]
        if node["role"] == "prompter":
            yield node, conversation
        for reply in node["replies"]:
            yield from walk(reply, conversation)

    for tree in read(_tree, _file(root, "oasst_en100", "*tree*.jsonl*")):
        yield from walk(tree["prompt"], [])


def _tree(raw: Record) -> Record:
    """A conversation tree; every node is checked."""
    nodes = [raw.get("prompt")]
    while nodes:
        match nodes.pop():
            case {
                "role": "prompter" | "assistant",
                "text": str(),
                "replies": list(replies),
                "message_id": str(),
                **rest,
            }:
                rank = rest.get("rank")
                if not isinstance(rank, int | None) or isinstance(rank, bool):
                    raise FieldError("rank", rank, "is no rank", TREES)
                nodes += replies
            case node:
                raise FieldError("prompt", node, "is no message of a conversation tree", TREES)
    return raw


def _ranked(node: Record) -> list[Record]:
    """The replies that have a rank."""
    return [reply for reply in node["replies"] if reply.get("rank") is not None]


def _instance(raw: Record) -> Record:
    """The first instance of a task of self-instruct."""
    match raw.get("instances"):
        case [dict() as instance, *_]:
            return instance
        case value:
            raise FieldError(
                "instances",
                value,
                "holds no instance",
                "use the files of self-instruct as published",
            )


def _folder(root: str | Path, name: str) -> Path:
    folder = Path(root) / name
    if not folder.is_dir():
        raise DataError(
            f"{folder}: no such folder; download the data set there, or correct the root folder"
            f" {str(root)!r}"
        )
    return folder


def _file(root: str | Path, name: str, pattern: str) -> Path:
    files = sorted(_folder(root, name).glob(pattern))
    if not files:
        raise DataError(
            f"{Path(root) / name}: no file {pattern} in it; download the data set there"
        )
    return files[0]
