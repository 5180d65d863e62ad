"""The schemas of records on disk.

Each function takes an object of a file and returns the record in its normal form, or raises
FieldError.

    prompts         prompt (text or messages)
                    or messages, up to their last reply; or instruction, input
    demonstrations  prompt, completion (text or messages)
                    or messages; or instruction, input, output
    rankings        prompt, completions, ranks or scores
                    or prompt, chosen, rejected; or chosen, rejected as transcripts (HH) or messages
    texts           text
    samples         prompt, completions

Messages may be called conversations, and are read in the form of ShareGPT too.  `system` and
`history` (pairs of earlier turns) become messages before the prompt.  Fields that other libraries
read, and this one does not, are refused by name; fields not named here are kept as they are.  Null
counts as absent.  Text that people wrote holds no control characters; that of a model may hold
anything.
"""

import math
import os.path
import re
from collections.abc import Callable, Mapping
from typing import Any

from instruct_jax.errors import FieldError, names, shorten

Record = dict[str, Any]
Schema = Callable[[Record], Record]
# each with `role` and `content`, and with `weight` 0 where it is a reply that is not learned
Messages = list[dict[str, Any]]
Prompt = str | Messages

MAX_K = 9  # of the paper
MAX_RANK = 2**31 - 1  # of int32
ASSISTANT = "\n\nAssistant:"  # begins a reply in HH transcripts
CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f]")  # of ASCII, except white space
CONVERSATIONS = ("messages", "conversations")  # fields of whole conversations
PROMPTS = ("prompt", *CONVERSATIONS, "instruction")  # fields that ask for a reply
SPEAKERS = {  # of ShareGPT
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}

# Fields of other libraries that change what is read or learned, and that are not supported -> the
# fix.  They may be null or empty, or have the value that changes nothing.
NO_CHANGE = {"weight": 1, "train": True}
RECORD_KEYS = {
    "tools": "describe the tools in a message of role system",
    "functions": "describe them in a message of role system",
    "chat_template_kwargs": "change the chat template of the tokenizer",
    "system_prompt": "call it system, data.columns: {system: system_prompt}",
    "images": "only text is read",
    "image": "only text is read",
    "videos": "only text is read",
    "audio": "only text is read",
    "weight": "all records weigh the same; repeat those that shall weigh more, drop those of weight"
    " 0",
    "train": "drop the records that are not learned",
    "loss_mask": "give the messages that are not learned the weight 0",
    "assistant_masks": "give the messages that are not learned the weight 0",
    "completion_mask": "give the messages that are not learned the weight 0",
}
RANKING_KEYS = {
    "label": "let chosen be the better one of each pair",
    "labels": "let chosen be the better one of each pair",
    "margin": "no loss here has a margin",
}
MESSAGE_KEYS = {
    "tool_calls": "write the call into content, as the model shall write it",
    "function_call": "write the call into content, as the model shall write it",
    "reasoning_content": "write it into content, as the model shall write it",
    "reasoning": "write it into content, as the model shall write it",
    "thinking": "write it into content, as the model shall write it",
    "loss_mask": "give the message the weight 0 or 1",
}
ABSENT = (None, "", [], {})


def prompt(raw: Record) -> Record:
    """A prompt, to be replied to."""
    _refuse_foreign(raw)
    key = _only(raw, *CONVERSATIONS)
    if key is None:
        return {**_rest(raw), "prompt": _prompt(raw)}
    turns = _messages(raw[key], key)
    if turns[-1]["role"] == "assistant":
        turns = _messages(turns[:-1], key)
    return {**_rest(raw), "prompt": _open(_whole(raw, key, turns), key)}


def demonstration(raw: Record) -> Record:
    """A prompt and the reply to learn.

    What stands behind the last reply that is learned is left out, as it changes nothing.
    """
    _refuse_foreign(raw)
    if raw.get("label") not in (*ABSENT, 1):
        raise FieldError(
            "label",
            raw["label"],
            "marks a completion that is not to be learned",
            "drop the record, or leave the field out, data.columns: {label: null}",
        )
    key = _only(raw, *CONVERSATIONS)
    answer = "completion"
    if _has(raw, "instruction"):
        answer = _only(raw, "completion", "output") or "output"
    if key is not None and not _has(raw, answer):
        turns = _whole(raw, key, _messages(raw[key], key))
    elif isinstance(raw.get(answer), list):
        key = answer
        turns = _continued(raw, key, _messages(raw[key], key))
    else:
        reply = _written(_field(raw, answer), answer)
        return {**_rest(raw, answer), "prompt": _prompt(raw), "completion": reply}
    _check_ends_with_reply(turns, key)
    learned = [i for i, turn in enumerate(turns) if is_learned(turn)]
    if not learned:
        raise FieldError(key, turns, "has no reply that is learned", "drop the record")
    last = learned[-1]
    return {
        **_rest(raw, answer),
        "prompt": _open(turns[:last], key),
        "completion": _written(turns[last]["content"], f"{key}[{last}].content"),
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
    _refuse_foreign(raw)
    if _has(raw, "completion") and _has(raw, "label"):
        raise FieldError(
            "label",
            raw["label"],
            "marks single completions as good or bad (KTO), of which no pairs can be made",
            "give prompt, chosen and rejected, or use those of label true as demonstrations",
        )
    _refuse_foreign(raw, RANKING_KEYS)
    if not _has(raw, "completions") and (_has(raw, "chosen") or _has(raw, "rejected")):
        return _pair(raw)
    values = _list(_field(raw, "completions"), "completions")
    if not values:
        raise FieldError("completions", values, "is empty", "give at least one completion")
    asked, completions = _compared(
        raw, {f"completions[{i}]": value for i, value in enumerate(values)}
    )
    k = len(completions)
    scores = _check_length(raw, "scores", k)
    if scores and not _has(raw, "ranks"):
        raw = {**raw, "ranks": _ranked(scores)}
    ranks = _list(_field(raw, "ranks"), "ranks")
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
    if scores and _ranked(scores) != _ranked([-rank for rank in ranks]):
        raise FieldError(
            "ranks",
            ranks,
            f"orders the completions otherwise than scores={shorten(scores)}",
            "leave one of them out, such as data.columns: {scores: null}",
        )
    _check_ended(raw, k)
    _check_same(completions, raw.get("ended") or [True] * k, ranks)
    for key in ("likert", "flags"):
        _check_length(raw, key, k)
    return {**_rest(raw), "prompt": asked, "completions": completions, "ranks": ranks}


def _check_same(completions: list[str], ended: list[bool], ranks: list[int]) -> None:
    """FieldError where one completion has two ranks."""
    first: dict[tuple[str, bool], int] = {}
    for i, completion in enumerate(zip(completions, ended, strict=True)):
        same = first.setdefault(completion, i)
        if ranks[same] != ranks[i]:
            raise FieldError(
                f"completions[{i}]",
                completions[i],
                f"equals completions[{same}], but the ranks are {ranks[i]} and {ranks[same]}",
                "give them one rank, or drop the record (on_bad_record=skip)",
            )


def text(raw: Record) -> Record:
    """A document."""
    _refuse_foreign(raw)
    return {**raw, "text": _written(_field(raw, "text"), "text")}


def sample(raw: Record) -> Record:
    """A prompt and completions of models.

    They may be empty, as an untrained policy may well say nothing.
    """
    _refuse_foreign(raw)
    completions = _completions(raw)
    _check_ended(raw, len(completions))
    return {**_rest(raw), "prompt": _prompt(raw), "completions": completions}


def named(record: Record, *keys: str, default: str) -> str:
    """The first of these fields that is there and not null, as text."""
    for key in keys:
        if record.get(key) is not None:
            return str(record[key])
    return default


def _pair(raw: Record) -> Record:
    """The ranking that chosen and rejected make."""
    chosen, rejected = _field(raw, "chosen"), _field(raw, "rejected")
    is_text = not isinstance(chosen, list | dict)
    if is_text and not any(_has(raw, key) for key in PROMPTS):
        for key in ("system", "history"):
            if raw.get(key) not in ABSENT:
                raise FieldError(
                    key, raw[key], "stands beside transcripts", "give prompt, chosen and rejected"
                )
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
        raw = {**raw, "prompt": chosen[:end]}
        chosen, rejected = chosen[end:], rejected[end:]
    asked, completions = _compared(raw, {"chosen": chosen, "rejected": rejected})
    if completions[0] == completions[1]:
        raise FieldError(
            "rejected",
            completions[1],
            "equals chosen, so no pair is left",
            "drop the record (on_bad_record=skip)",
        )
    rest = _without(_rest(raw), "chosen", "rejected")
    return ranking({**rest, "prompt": asked, "completions": completions, "ranks": [1, 2]})


def _compared(raw: Record, values: Mapping[str, Any]) -> tuple[Prompt, list[str]]:
    """The prompt that completions share, and their texts; `values` are text, or messages of which
    only the last may differ.
    """
    if not any(isinstance(value, list | dict) for value in values.values()):
        return _prompt(raw), [_text(value, key) for key, value in values.items()]
    conversations = {}
    for key, value in values.items():
        turns = _messages([value] if isinstance(value, dict) else value, key)
        conversations[key] = _continued(raw, key, turns)
    first = next(iter(conversations))
    shared = conversations[first][:-1]
    for key, turns in conversations.items():
        _check_ends_with_reply(turns, key)
        if not is_learned(turns[-1]):
            raise FieldError(key, turns, "ends with a reply of weight 0", "drop the record")
        if turns[:-1] != shared:
            raise FieldError(
                key,
                values[key],
                f"differs from {first} before the last message",
                "only the last may differ: conversations with other turns in the middle cannot be"
                " compared yet",
            )
    texts = [turns[-1]["content"] for turns in conversations.values()]
    return _open(shared, first), texts


def _ranked(scores: list[Any]) -> list[int]:
    """The ranks that scores make: the highest is best, equal is a tie."""
    for score in scores:
        is_number = isinstance(score, int | float) and not isinstance(score, bool)
        if not is_number or not math.isfinite(score):
            raise FieldError("scores", scores, "must be numbers", "write one for each completion")
    order = sorted(set(scores), reverse=True)
    return [order.index(score) + 1 for score in scores]


def _without(raw: Record, *keys: str) -> Record:
    return {key: value for key, value in raw.items() if key not in keys}


def _rest(raw: Record, *answers: str) -> Record:
    """The fields that are not part of the prompt, nor of these."""
    own = [*PROMPTS, "system", "history", *answers]
    if _has(raw, "instruction"):
        own.append("input")
    return _without(raw, *own)


def _has(raw: Record, key: str) -> bool:
    return raw.get(key) is not None


def _refuse_foreign(
    raw: Record, table: Mapping[str, str] = RECORD_KEYS, place: str | None = None
) -> None:
    """FieldError for a field of the table; `place` is that of a message."""
    for key, fix in table.items():
        value = raw.get(key)
        if value in ABSENT or value == NO_CHANGE.get(key):
            continue
        leave_out = f"leave the field out, data.columns: {{{key}: null}}"
        if place is not None:
            leave_out = f"remove {key}"
        field = key if place is None else f"{place}.{key}"
        raise FieldError(field, value, "is not supported", f"{fix}, and {leave_out}")


def _field(raw: Record, key: str) -> Any:
    """raw[key]; FieldError where it is missing or null."""
    if key not in raw:
        raise FieldError(
            key,
            None,
            f"is missing; there are {names(raw)}",
            f"add {key}, or map a column to it, data.columns: {{{key}: COLUMN}}",
        )
    if raw[key] is None:
        raise FieldError(
            key, None, "is null", "fill it in, or drop the record (on_bad_record=skip)"
        )
    return raw[key]


def _text(value: Any, key: str, *, empty_ok: bool = False) -> str:
    if value is None:
        raise FieldError(
            key, None, "is null", "fill it in, or drop the record (on_bad_record=skip)"
        )
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


def _completions(raw: Record) -> list[str]:
    """Texts of models, which may be empty."""
    values = _list(_field(raw, "completions"), "completions")
    if not values:
        raise FieldError("completions", values, "is empty", "give at least one completion")
    return [_text(value, f"completions[{i}]", empty_ok=True) for i, value in enumerate(values)]


def _prompt(raw: Record) -> Prompt:
    """What the record asks."""
    key = _only(raw, *CONVERSATIONS)
    if key is not None:
        return _open(_whole(raw, key, _messages(raw[key], key)), key)
    if _only(raw, "prompt", "instruction") == "instruction":
        return _behind(raw, instruction(raw))
    asked = _field(raw, "prompt")
    if not isinstance(asked, list):
        return _behind(raw, _written(asked, "prompt"))
    return _behind(raw, _open(_messages(asked, "prompt"), "prompt"))


def _only(raw: Record, *keys: str) -> str | None:
    """The one of these fields that is there; FieldError where there are two."""
    found = [key for key in keys if _has(raw, key)]
    if len(found) > 1:
        first, second, *_ = found
        raise FieldError(
            second,
            raw[second],
            f"stands beside {first}={shorten(raw[first])}",
            f"leave one of them out, such as data.columns: {{{second}: null}}",
        )
    return found[0] if found else None


def _continued(raw: Record, key: str, turns: Messages) -> Messages:
    """The conversation of `key`, which holds all messages, or only those behind the prompt."""
    if turns[0]["role"] != "assistant":
        return _whole(raw, key, turns)
    asked = _prompt(raw)
    if isinstance(asked, str):
        asked = [{"role": "user", "content": asked}]
    return [*asked, *turns]


def _whole(raw: Record, key: str, turns: Messages) -> Messages:
    """The conversation of `key`, which holds all messages; other prompts of the record must agree
    with it.
    """
    for other in PROMPTS:
        if other == key or not _has(raw, other):
            continue
        asked = instruction(raw) if other == "instruction" else raw[other]
        if not _agrees(other, asked, turns):
            raise FieldError(
                other,
                raw[other],
                f"is not the prompt of {key}={shorten(turns)}",
                f"leave one of them out, such as data.columns: {{{other}: null}}",
            )
    return _behind(raw, turns)  # pyright: ignore


def _agrees(key: str, asked: Any, turns: Messages) -> bool:
    """Whether these are messages that the conversation begins with, but for a reply at their end,
    or text that the user says in it.
    """
    if isinstance(asked, str):
        return any(
            turn["role"] == "user" and turn["content"].strip() == asked.strip() for turn in turns
        )
    before = _messages(asked, key)
    if before[-1]["role"] == "assistant":
        before = before[:-1]
    return turns[: len(before)] == before


def _behind(raw: Record, asked: Prompt) -> Prompt:
    """The prompt behind the messages that `system` and `history` make."""
    system, history = raw.get("system"), raw.get("history")
    if system in ABSENT and history in ABSENT:
        return asked
    before: Messages = []
    if system not in ABSENT:
        before.append({"role": "system", "content": _written(system, "system")})
    if history not in ABSENT:
        before += _history(history)
    if isinstance(asked, str):
        return [*before, {"role": "user", "content": asked}]
    if history in ABSENT and asked[0]["role"] != "system":
        return [*before, *asked]
    if asked[: len(before)] == before:
        return asked
    key = "system" if history in ABSENT else "history"
    raise FieldError(
        key,
        raw[key],
        f"stands beside messages that begin otherwise, {shorten(asked)}",
        f"leave one of them out, such as data.columns: {{{key}: null}}",
    )


def _history(value: Any) -> Messages:
    """The messages of pairs [what the user said, the reply]."""
    turns = []
    for i, pair in enumerate(value if isinstance(value, list) else [value]):
        if not isinstance(pair, list) or len(pair) != 2:
            raise FieldError(
                "history",
                value,
                "must be a list of pairs of text",
                "write [[what the user said, the reply], ...], or map it to the prompt,"
                " data.columns: {prompt: history}",
            )
        said, reply = pair
        turns.append({"role": "user", "content": _written(said, f"history[{i}][0]")})
        turns.append({"role": "assistant", "content": _text(reply, f"history[{i}][1]")})
    return turns


def _open(turns: Messages, key: str) -> Messages:
    """A conversation that waits for a reply; FieldError where it ends with one."""
    if turns and turns[-1]["role"] == "assistant":
        raise FieldError(
            key, turns, "asks for a reply to a reply", "end the prompt with a message of role user"
        )
    return turns


def _check_ends_with_reply(turns: Messages, key: str) -> None:
    if len(turns) < 2 or turns[-1]["role"] != "assistant":
        raise FieldError(
            key,
            turns,
            "does not end with a reply",
            "end it with a message of role assistant, after a user's",
        )


def is_learned(turn: dict[str, Any]) -> bool:
    """Whether a message is a reply that is learned, and not only read."""
    return turn["role"] == "assistant" and "weight" not in turn


def _messages(value: Any, key: str) -> Messages:
    turns = _list(value, key)
    if not turns:
        raise FieldError(key, turns, "is empty", "give at least one message")
    return [_message(turn, f"{key}[{i}]") for i, turn in enumerate(turns)]


def _message(raw: Any, place: str) -> dict[str, Any]:
    """A message in normal form: role, content, weight 0 where it is a reply that is not learned,
    and what a chat template may know.
    """
    if isinstance(raw, dict) and "from" in raw and not _has(raw, "role"):
        speaker, content = _speaker(raw["from"], place), raw.get("value")
        raw = {**_without(raw, "from", "value"), "role": speaker, "content": content}
    if not isinstance(raw, dict) or not isinstance(raw.get("role"), str):
        raise FieldError(place, raw, "is not a message", 'write {"role": "user", "content": "..."}')
    turn = {key: value for key, value in raw.items() if value not in ABSENT}
    _refuse_foreign(turn, MESSAGE_KEYS, place)
    is_reply = turn["role"] == "assistant"
    learned = _learned(turn, place)
    turn = _without(turn, "weight", "train")
    content = raw.get("content")
    if isinstance(content, list):
        content = _joined(content, f"{place}.content")
    check = _text if is_reply else _written
    turn["content"] = check(content, f"{place}.content")
    if is_reply and not learned:
        turn["weight"] = 0
    return turn


def _learned(turn: dict[str, Any], place: str) -> bool:
    """Whether `weight` and `train` let a reply be learned."""
    is_reply = turn["role"] == "assistant"
    said = {}
    for key in ("weight", "train"):
        if key in turn:
            said[key] = turn[key]
            if turn[key] not in (0, 1):
                raise FieldError(
                    f"{place}.{key}",
                    turn[key],
                    "must be 0 or 1",
                    "give a reply 1 to learn it, 0 to only read it",
                )
            if turn[key] == 1 and not is_reply:
                raise FieldError(
                    f"{place}.{key}",
                    turn[key],
                    f"asks to learn a message of role {turn['role']}",
                    "give it 0, as only replies are learned",
                )
    if len(set(said.values())) > 1:
        raise FieldError(place, said, "says both", "remove one of the two")
    return is_reply and 0 not in said.values()


def _speaker(name: Any, place: str) -> str:
    if not isinstance(name, str) or name not in SPEAKERS:
        raise FieldError(
            f"{place}.from", name, "is not supported", f"use one of {', '.join(SPEAKERS)}"
        )
    return SPEAKERS[name]


def _joined(parts: list[Any], place: str) -> str:
    """The text of content that is given in parts."""
    texts = []
    for i, part in enumerate(parts):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text":
            raise FieldError(
                f"{place}[{i}]",
                part,
                f"is a part of type {shorten(kind)}",
                'only text is read, {"type": "text", "text": "..."}; remove it',
            )
        texts.append(_text(part.get("text"), f"{place}[{i}].text", empty_ok=True))
    return "".join(texts)
