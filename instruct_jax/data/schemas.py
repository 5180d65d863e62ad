"""What a record is: each function takes an object as found in a file and returns the normal form of
records on disk, or raises FieldError.

    prompts         prompt (text or messages)   read also: messages, up to their last reply
    demonstrations  prompt, completion          read also: messages; instruction/input/output
    rankings        prompt, completions, ranks  read also: prompt/chosen/rejected; chosen/rejected
    transcripts (HH) or messages texts           text samples         prompt, completions

Fields not named here are kept as they are.  What people write holds no control characters; what a
model said may hold anything.
"""

import os.path
import re
from collections.abc import Callable
from typing import Any

from instruct_jax.errors import FieldError, names

Record = dict[str, Any]
Schema = Callable[[Record], Record]

MAX_K = 9  # of the paper
MAX_RANK = 2**31 - 1  # of int32
ASSISTANT = "\n\nAssistant:"  # begins a reply in HH transcripts
CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f]")  # of ASCII, but for white space


def prompt(raw: Record) -> Record:
    if "messages" in raw:
        turns = _messages(raw["messages"], "messages")
        asked = turns[:-1] if turns[-1]["role"] == "assistant" else turns
        return {
            **_without(raw, "messages"),
            "prompt": _asked(_messages(asked, "messages"), "messages"),
        }
    return {**raw, "prompt": _prompt(raw)}


def demonstration(raw: Record) -> Record:
    if "messages" in raw and "completion" not in raw:
        turns = _messages(raw["messages"], "messages")
        if len(turns) < 2 or turns[-1]["role"] != "assistant":
            raise FieldError(
                "messages",
                turns,
                "does not end with a reply",
                "end it with a message of role assistant, after a user's",
            )
        reply = _written(turns[-1]["content"], f"messages[{len(turns) - 1}].content")
        return {
            **_without(raw, "messages"),
            "prompt": _asked(turns[:-1], "messages"),
            "completion": reply,
        }
    if "instruction" in raw and "prompt" not in raw:
        output = _written(raw.get("output", raw.get("completion")), "output")
        return {
            **_without(raw, "instruction", "input", "output"),
            "prompt": instruction(raw),
            "completion": output,
        }
    return {
        **raw,
        "prompt": _prompt(raw),
        "completion": _written(_field(raw, "completion"), "completion"),
    }


def instruction(raw: Record) -> str:
    """The prompt that `instruction` and `input` make; the second may be absent."""
    task, given = _written(_field(raw, "instruction"), "instruction"), raw.get("input") or ""
    return f"{task}\n\n{_written(given, 'input')}" if given else task


def ranking(raw: Record) -> Record:
    if "completions" not in raw and ("chosen" in raw or "rejected" in raw):
        return _pair(raw)
    completions, ranks = _completions(raw), _list(_field(raw, "ranks"), "ranks")
    k = len(completions)
    if k == 1:
        raise FieldError(
            "completions",
            completions,
            "has K = 1, nothing to compare",
            "give 2 to 9 completions, or use it as a demonstration",
        )
    if k > MAX_K:
        raise FieldError(
            "completions",
            completions,
            f"has K = {k}",
            f"keep at most {MAX_K} completions, or split the record",
        )
    if len(ranks) != k:
        raise FieldError(
            "ranks",
            ranks,
            f"has {len(ranks)} ranks for {k} completions",
            "give one rank for each completion",
        )
    if any(isinstance(r, bool) or not isinstance(r, int) or not 1 <= r <= MAX_RANK for r in ranks):
        raise FieldError(
            "ranks",
            ranks,
            f"must be integers from 1 to {MAX_RANK}",
            "write 1 for the best, 2 for the next, equal for a tie",
        )
    if len(set(ranks)) == 1:
        raise FieldError(
            "ranks", ranks, "is one tie, so no pair is left", "drop the record (on_bad_record=skip)"
        )
    _check_ended(raw, k)
    for key in ("likert", "flags"):
        _check_length(raw, key, k)
    return {**raw, "prompt": _prompt(raw), "completions": completions, "ranks": ranks}


def text(raw: Record) -> Record:
    return {**raw, "text": _written(_field(raw, "text"), "text")}


def sample(raw: Record) -> Record:
    """An untrained policy may well have said nothing: completions can be empty here."""
    completions = _completions(raw, empty_ok=True)
    _check_ended(raw, len(completions))
    return {**raw, "prompt": _prompt(raw), "completions": completions}


def named(record: Record, *keys: str, default: str) -> str:
    """The first of these fields that is there and not null, as text."""
    return next((str(record[key]) for key in keys if record.get(key) is not None), default)


def _pair(raw: Record) -> Record:
    rest = _without(raw, "chosen", "rejected")
    chosen, rejected = _field(raw, "chosen"), _field(raw, "rejected")
    if chosen == rejected:
        raise FieldError(
            "rejected",
            rejected,
            "equals chosen, so no pair is left",
            "drop the record (on_bad_record=skip)",
        )
    if isinstance(chosen, list):
        chosen, rejected = _messages(chosen, "chosen"), _messages(rejected, "rejected")
        if "prompt" not in raw or (
            len(chosen) > 1 and isinstance(raw["prompt"], str)
        ):  # messages say more than their text
            if chosen[:-1] != rejected[:-1]:
                raise FieldError(
                    "rejected",
                    rejected,
                    "has another prompt than chosen",
                    "only the last message may differ",
                )
            rest["prompt"] = _asked(chosen[:-1], "chosen")
        chosen, rejected = chosen[-1]["content"], rejected[-1]["content"]
    elif "prompt" not in raw:
        chosen, rejected = _text(chosen, "chosen"), _text(rejected, "rejected")
        end = os.path.commonprefix([chosen, rejected]).rfind(ASSISTANT) + len(ASSISTANT)
        if end < len(ASSISTANT):
            raise FieldError(
                "chosen",
                chosen,
                f"shares no prompt with rejected up to {ASSISTANT!r}",
                "add a field prompt",
            )
        rest["prompt"], chosen, rejected = chosen[:end], chosen[end:], rejected[end:]
    completions = [_text(chosen, "chosen"), _text(rejected, "rejected")]
    return {**rest, "prompt": _prompt(rest), "completions": completions, "ranks": [1, 2]}


def _without(raw: Record, *keys: str) -> Record:
    return {key: value for key, value in raw.items() if key not in keys}


def _field(raw: Record, key: str) -> Any:
    if key not in raw:
        raise FieldError(
            key,
            None,
            f"is missing; there are {names(raw)}",
            f"add {key}, or map a column to it with columns",
        )
    if raw[key] is None:
        raise FieldError(
            key, None, "is null", "fill it in, or drop the record (on_bad_record=skip)"
        )
    return raw[key]


def _text(value: Any, key: str, *, empty_ok: bool = False) -> str:
    if not isinstance(value, str):
        raise FieldError(
            key, value, f"must be text, not {type(value).__name__}", "write it as a JSON string"
        )
    if not value.strip() and not empty_ok:
        raise FieldError(
            key, value, "is empty", "fill it in, or drop the record (on_bad_record=skip)"
        )
    return value


def _written(value: Any, key: str) -> str:
    """Text of people."""
    if bad := CONTROL.search(text := _text(value, key)):
        raise FieldError(
            key,
            value,
            f"has the control character {bad[0]!r} at character {bad.start()}",
            "remove it",
        )
    return text


def _check_ended(raw: Record, k: int) -> None:
    if not all(isinstance(end, bool) for end in _check_length(raw, "ended", k)):
        raise FieldError(
            "ended",
            raw["ended"],
            "must hold true and false",
            "write false where a completion was cut off",
        )


def _check_length(raw: Record, key: str, k: int) -> list[Any]:
    """The optional list `key` with an entry for each completion; null is absent."""
    values = [] if raw.get(key) is None else _list(raw[key], key)
    if raw.get(key) is not None and len(values) != k:
        raise FieldError(
            key,
            values,
            f"has {len(values)} entries for {k} completions",
            "give one entry for each completion",
        )
    return values


def _list(value: Any, key: str) -> list[Any]:
    if not isinstance(value, list):
        raise FieldError(
            key, value, f"must be a list, not {type(value).__name__}", "write it as a JSON array"
        )
    return value


def _completions(raw: Record, *, empty_ok: bool = False) -> list[str]:
    values = _list(_field(raw, "completions"), "completions")
    if not values:
        raise FieldError("completions", values, "is empty", "give at least one completion")
    return [_text(value, f"completions[{i}]", empty_ok=empty_ok) for i, value in enumerate(values)]


def _prompt(raw: Record) -> str | list[dict[str, str]]:
    value = _field(raw, "prompt")
    if not isinstance(value, list):
        return _written(value, "prompt")
    return _asked(_messages(value, "prompt"), "prompt")


def _asked(turns: list[dict[str, str]], key: str) -> list[dict[str, str]]:
    """A conversation that waits for a reply."""
    if turns and turns[-1]["role"] == "assistant":
        raise FieldError(
            key, turns, "asks for a reply to a reply", "end the prompt with a message of role user"
        )
    return turns


def _messages(value: Any, key: str) -> list[dict[str, str]]:
    turns = _list(value, key)
    if not turns:
        raise FieldError(key, turns, "is empty", "give at least one message")
    for i, turn in enumerate(turns):
        if not isinstance(turn, dict) or not isinstance(turn.get("role"), str):
            raise FieldError(
                f"{key}[{i}]", turn, "is not a message", 'write {"role": "user", "content": "..."}'
            )
        (_text if turn["role"] == "assistant" else _written)(
            turn.get("content"), f"{key}[{i}].content"
        )
    return turns
