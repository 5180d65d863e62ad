"""What a record is: each function takes an object as found in a file and returns the normal form of records on disk, or raises FieldError.

    prompts         prompt (text or messages)
    demonstrations  prompt, completion         read also: messages; instruction/input/output
    rankings        prompt, completions, ranks  read also: prompt/chosen/rejected; chosen/rejected transcripts (HH) or messages
    texts           text
    samples         prompt, completions

Fields not named here are kept as they are.
"""

import os.path
from collections.abc import Callable
from typing import Any

from instruct_jax.data.errors import FieldError

Record = dict[str, Any]
Schema = Callable[[Record], Record]

MAX_K = 9  # of the paper
ASSISTANT = "\n\nAssistant:"  # begins a reply in HH transcripts


def prompt(raw: Record) -> Record:
    return {**raw, "prompt": _prompt(raw)}


def demonstration(raw: Record) -> Record:
    rest = dict(raw)
    if "messages" in raw and "completion" not in raw:
        turns = _messages(rest.pop("messages"), "messages")
        if len(turns) < 2 or turns[-1]["role"] != "assistant":
            raise FieldError("messages", turns, "does not end with a reply", "end it with a message of role assistant, after a user's")
        return {**rest, "prompt": turns[:-1], "completion": turns[-1]["content"]}
    if "instruction" in raw and "prompt" not in raw:
        task, given = _text(rest.pop("instruction"), "instruction"), rest.pop("input", None) or ""
        output = _text(rest.pop("output", raw.get("completion")), "output")
        given = _text(given, "input") if given else ""
        return {**rest, "prompt": f"{task}\n\n{given}" if given else task, "completion": output}
    return {**raw, "prompt": _prompt(raw), "completion": _text(_field(raw, "completion"), "completion")}


def ranking(raw: Record) -> Record:
    if "completions" not in raw and ("chosen" in raw or "rejected" in raw):
        return _pair(raw)
    completions, ranks = _completions(raw), _list(_field(raw, "ranks"), "ranks")
    k = len(completions)
    if k == 1:
        raise FieldError(
            "completions", completions, "has K = 1, nothing to compare", "give 2 to 9 completions, or use it as a demonstration"
        )
    if k > MAX_K:
        raise FieldError("completions", completions, f"has K = {k}", f"keep at most {MAX_K} completions, or split the record")
    if len(ranks) != k:
        raise FieldError("ranks", ranks, f"has {len(ranks)} ranks for {k} completions", "give one rank for each completion")
    if any(isinstance(r, bool) or not isinstance(r, int) or r < 1 for r in ranks):
        raise FieldError("ranks", ranks, "must be integers from 1", "write 1 for the best, 2 for the next, equal for a tie")
    if len(set(ranks)) == 1:
        raise FieldError("ranks", ranks, "is one tie, so no pair is left", "drop the record (on_bad_record=skip)")
    for key in ("likert", "flags"):
        if raw.get(key) is not None and len(_list(raw[key], key)) != k:
            raise FieldError(key, raw[key], f"has {len(raw[key])} entries for {k} completions", "give one entry for each completion")
    return {**raw, "prompt": _prompt(raw), "completions": completions, "ranks": ranks}


def text(raw: Record) -> Record:
    return {**raw, "text": _text(_field(raw, "text"), "text")}


def sample(raw: Record) -> Record:
    """An untrained policy may well have said nothing: completions can be empty here."""
    return {**raw, "prompt": _prompt(raw), "completions": _completions(raw, empty_ok=True)}


def _pair(raw: Record) -> Record:
    rest = {key: value for key, value in raw.items() if key not in ("chosen", "rejected")}
    chosen, rejected = _field(raw, "chosen"), _field(raw, "rejected")
    if chosen == rejected:
        raise FieldError("rejected", rejected, "equals chosen, so no pair is left", "drop the record (on_bad_record=skip)")
    if isinstance(chosen, list):
        chosen, rejected = _messages(chosen, "chosen"), _messages(rejected, "rejected")
        if "prompt" not in raw:
            if chosen[:-1] != rejected[:-1]:
                raise FieldError("rejected", rejected, "has another prompt than chosen", "only the last message may differ")
            rest["prompt"] = chosen[:-1]
        chosen, rejected = chosen[-1]["content"], rejected[-1]["content"]
    elif "prompt" not in raw:
        chosen, rejected = _text(chosen, "chosen"), _text(rejected, "rejected")
        end = os.path.commonprefix([chosen, rejected]).rfind(ASSISTANT) + len(ASSISTANT)
        if end < len(ASSISTANT):
            raise FieldError("chosen", chosen, f"shares no prompt with rejected up to {ASSISTANT!r}", "add a field prompt")
        rest["prompt"], chosen, rejected = chosen[:end], chosen[end:], rejected[end:]
    completions = [_text(chosen, "chosen"), _text(rejected, "rejected")]
    return {**rest, "prompt": _prompt(rest), "completions": completions, "ranks": [1, 2]}


def _field(raw: Record, key: str) -> Any:
    if key not in raw or raw[key] is None:
        raise FieldError(key, raw.get(key), f"is missing; there are {sorted(raw)}", f"add {key}, or map a column to it with columns")
    return raw[key]


def _text(value: Any, key: str, *, empty_ok: bool = False) -> str:
    if not isinstance(value, str):
        raise FieldError(key, value, f"must be text, not {type(value).__name__}", "write it as a JSON string")
    if not value.strip() and not empty_ok:
        raise FieldError(key, value, "is empty", "fill it in, or drop the record (on_bad_record=skip)")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise FieldError(key, value, f"has half a surrogate pair at character {error.start}", "write the character in UTF-8") from None
    return value


def _list(value: Any, key: str) -> list[Any]:
    if not isinstance(value, list):
        raise FieldError(key, value, f"must be a list, not {type(value).__name__}", "write it as a JSON array")
    return value


def _completions(raw: Record, *, empty_ok: bool = False) -> list[str]:
    values = _list(_field(raw, "completions"), "completions")
    if not values:
        raise FieldError("completions", values, "is empty", "give at least one completion")
    return [_text(value, f"completions[{i}]", empty_ok=empty_ok) for i, value in enumerate(values)]


def _prompt(raw: Record) -> str | list[dict[str, str]]:
    value = _field(raw, "prompt")
    return _messages(value, "prompt") if isinstance(value, list) else _text(value, "prompt")


def _messages(value: Any, key: str) -> list[dict[str, str]]:
    turns = _list(value, key)
    if not turns:
        raise FieldError(key, turns, "is empty", "give at least one message")
    for i, turn in enumerate(turns):
        if not isinstance(turn, dict) or not isinstance(turn.get("role"), str):
            raise FieldError(f"{key}[{i}]", turn, "is not a message", 'write {"role": "user", "content": "..."}')
        _text(turn.get("content"), f"{key}[{i}].content")
    return turns
