"""The schemas of records on disk.

Each function takes an object of a file and returns the record in its normal form, or raises
FieldError.

    prompts         prompt (text or messages)
                    or messages, up to their last reply
    demonstrations  prompt, completion
                    or messages; or instruction, input, output
    rankings        prompt, completions, ranks
                    or prompt, chosen, rejected; or chosen, rejected as transcripts (HH) or messages
    texts           text
    samples         prompt, completions

Fields not named here are kept as they are.  Text that people wrote holds no control characters;
that of a model may hold anything.
"""

import os.path
import re
from collections.abc import Callable
from typing import Any

from instruct_jax.errors import FieldError, names

Record = dict[str, Any]
Schema = Callable[[Record], Record]
Messages = list[dict[str, str]]  # each with `role` and `content`
Prompt = str | Messages

MAX_K = 9  # of the paper
MAX_RANK = 2**31 - 1  # of int32
ASSISTANT = "\n\nAssistant:"  # begins a reply in HH transcripts
CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f]")  # of ASCII, except white space


def prompt(raw: Record) -> Record:
    """A prompt, to be replied to."""
    if "messages" not in raw:
        return {**raw, "prompt": _prompt(raw)}
    turns = _messages(raw["messages"], "messages")
    if turns[-1]["role"] == "assistant":
        turns = _messages(turns[:-1], "messages")
    return {**_without(raw, "messages"), "prompt": _open(turns, "messages")}


def demonstration(raw: Record) -> Record:
    """A prompt and the reply to learn."""
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
            "prompt": _open(turns[:-1], "messages"),
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
    task = _written(_field(raw, "instruction"), "instruction")
    given = raw.get("input")
    if not given:
        return task
    return f"{task}\n\n{_written(given, 'input')}"


def ranking(raw: Record) -> Record:
    """A prompt and K completions with their ranks, 1 = best, equal = tie."""
    if "completions" not in raw and ("chosen" in raw or "rejected" in raw):
        return _pair(raw)
    completions = _completions(raw)
    ranks = _list(_field(raw, "ranks"), "ranks")
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
    for rank in ranks:
        is_integer = isinstance(rank, int) and not isinstance(rank, bool)
        if not is_integer or not 1 <= rank <= MAX_RANK:
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
    """A document."""
    return {**raw, "text": _written(_field(raw, "text"), "text")}


def sample(raw: Record) -> Record:
    """A prompt and completions of models.

    They may be empty, as an untrained policy may well say nothing.
    """
    completions = _completions(raw, empty_ok=True)
    _check_ended(raw, len(completions))
    return {**raw, "prompt": _prompt(raw), "completions": completions}


def named(record: Record, *keys: str, default: str) -> str:
    """The first of these fields that is there and not null, as text."""
    for key in keys:
        if record.get(key) is not None:
            return str(record[key])
    return default


def _pair(raw: Record) -> Record:
    """The ranking that chosen and rejected make."""
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
        # messages say more than their text
        says_more = len(chosen) > 1 and isinstance(raw.get("prompt"), str)
        if "prompt" not in raw or says_more:
            if chosen[:-1] != rejected[:-1]:
                raise FieldError(
                    "rejected",
                    rejected,
                    "has another prompt than chosen",
                    "only the last message may differ",
                )
            rest["prompt"] = _open(chosen[:-1], "chosen")
        chosen, rejected = chosen[-1]["content"], rejected[-1]["content"]
    elif "prompt" not in raw:
        chosen, rejected = _text(chosen, "chosen"), _text(rejected, "rejected")
        common = os.path.commonprefix([chosen, rejected])  # noqa: RUF071  of characters is meant
        start = common.rfind(ASSISTANT)
        if start < 0:
            raise FieldError(
                "chosen",
                chosen,
                f"shares no prompt with rejected up to {ASSISTANT!r}",
                "add a field prompt",
            )
        end = start + len(ASSISTANT)
        rest["prompt"] = chosen[:end]
        chosen, rejected = chosen[end:], rejected[end:]
    completions = [_text(chosen, "chosen"), _text(rejected, "rejected")]
    return {**rest, "prompt": _prompt(rest), "completions": completions, "ranks": [1, 2]}


def _without(raw: Record, *keys: str) -> Record:
    return {key: value for key, value in raw.items() if key not in keys}


def _field(raw: Record, key: str) -> Any:
    """raw[key]; FieldError where it is missing or null."""
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
    """Text that a person wrote."""
    text = _text(value, key)
    bad = CONTROL.search(text)
    if bad:
        where = f"at character {bad.start()}"
        raise FieldError(key, value, f"has the control character {bad[0]!r} {where}", "remove it")
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
    if raw.get(key) is None:
        return []
    values = _list(raw[key], key)
    if len(values) != k:
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


def _prompt(raw: Record) -> Prompt:
    value = _field(raw, "prompt")
    if not isinstance(value, list):
        return _written(value, "prompt")
    return _open(_messages(value, "prompt"), "prompt")


def _open(turns: Messages, key: str) -> Messages:
    """A conversation that waits for a reply; FieldError where it ends with one."""
    if turns and turns[-1]["role"] == "assistant":
        raise FieldError(
            key, turns, "asks for a reply to a reply", "end the prompt with a message of role user"
        )
    return turns


def _messages(value: Any, key: str) -> Messages:
    turns = _list(value, key)
    if not turns:
        raise FieldError(key, turns, "is empty", "give at least one message")
    for i, turn in enumerate(turns):
        if not isinstance(turn, dict) or not isinstance(turn.get("role"), str):
            raise FieldError(
                f"{key}[{i}]", turn, "is not a message", 'write {"role": "user", "content": "..."}'
            )
        check = _text if turn["role"] == "assistant" else _written
        check(turn.get("content"), f"{key}[{i}].content")
    return turns
