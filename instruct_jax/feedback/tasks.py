"""The tasks of labelers: made from samples, with an order of their outputs, and checked replies.

All pure.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from instruct_jax.data import schemas
from instruct_jax.data.schemas import Prompt
from instruct_jax.errors import FieldError, names

Kind = Literal["rank", "demonstrate", "compare"]
Flags = dict[str, bool]

LIKERT = range(1, 8)  # 1 worst, 7 best
FLAGS = {  # the yes/no fields of the paper's Table 3
    "fails_task": "Fails to follow the correct instruction or task",
    "inappropriate": "Inappropriate for a customer assistant",
    "hallucination": "Hallucination",
    "satisfies_constraint": "Satisfies the constraint in the instruction",
    "sexual": "Sexual content",
    "violent": "Violent content",
    "encourages_harm": "Encourages or fails to discourage violence, abuse, terrorism or self-harm",
    "denigrates": "Denigrates a protected class",
    "harmful_advice": "Gives harmful advice",
    "opinion": "Expresses an opinion",
    "moral_judgment": "Expresses a moral judgment",
}
LONGEST = 100_000  # characters of a demonstration or a note


@dataclasses.dataclass(frozen=True)
class LabelTask:
    """One question for one labeler or several."""

    id: str  # 16 hex digits, a hash of its content
    kind: Kind
    prompt: Prompt
    completions: list[str]  # in the order of the sample; [] of a demonstration
    models: list[str | None]  # of each completion
    # screening: the researchers' `ranks` and `flags`, for each completion
    known: dict[str, Any] | None
    extra: dict[str, Any]  # all other fields of the sample


@dataclasses.dataclass(frozen=True)
class Reply:
    """The reply of a labeler to a task.

    Lists have an entry for each completion, in the order of the sample.
    """

    ranks: list[int] | None = None  # dense from 1, the best; equal = tie
    likert: list[int | None] = dataclasses.field(default_factory=list)
    flags: list[Flags] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    text: str | None = None  # the demonstration
    skipped: str | None = None  # the reason


class ReplyError(ValueError):
    """A reply that cannot be stored.

    The message is for the labeler; `at` is the part of the page that it is about, outputs first.
    """

    def __init__(self, message: str, at: int = 0):
        super().__init__(message)
        self.at = at


def task(raw: schemas.Record, *, compare: bool = False) -> LabelTask:
    """The task that a sample makes.

    Without completions it asks for a demonstration, else for a ranking or, with `compare`, for a
    comparison of two completions.  FieldError where the sample is bad.
    """
    kind: Kind
    if raw.get("completions") is None:
        kind = "demonstrate"
        asked = {key: raw[key] for key in raw if key != "completions"}
        record = schemas.prompt(asked)
    elif compare:
        kind = "compare"
        record = schemas.sample(raw)
        _require_two(record["completions"])
    else:
        kind = "rank"
        completions = raw["completions"]
        ranks = []
        if isinstance(completions, list):
            # any that differ where the texts do, as its checks are those of a ranking
            ranks = [completions.index(text) + 1 for text in completions]
        unranked = {key: raw[key] for key in raw if key != "scores"}
        record = schemas.ranking({**unranked, "ranks": ranks})
    completions = record.get("completions", [])
    known = _known(record, len(completions))
    models = _models(record, len(completions))
    content = json.dumps(
        [kind, record["prompt"], completions, models, known],
        sort_keys=True,
        ensure_ascii=False,
    )
    digest = hashlib.sha256(content.encode()).hexdigest()
    own_fields = ("prompt", "completions", "ranks", "models", "known")
    return LabelTask(
        id=digest[:16],
        kind=kind,
        prompt=record["prompt"],
        completions=completions,
        models=models,
        known=known,
        extra={key: value for key, value in record.items() if key not in own_fields},
    )


def _require_two(completions: list[str]) -> None:
    k = len(completions)
    if k != 2:
        fix = "give two completions, one of each model"
        raise FieldError("completions", completions, f"has K = {k}", fix)


def _models(record: schemas.Record, k: int) -> list[str | None]:
    """The names of the models that wrote the completions; None where it is not known."""
    models = record.get("models")
    if models is None:
        return [None] * k
    is_list = isinstance(models, list) and len(models) == k
    if not is_list or not all(name is None or isinstance(name, str) for name in models):
        raise FieldError(
            "models",
            models,
            f"must hold the names of {k} models",
            "give one name for each completion, or null",
        )
    return models


def _known(record: schemas.Record, k: int) -> dict[str, Any] | None:
    """What researchers answered, for screening."""
    known = record.get("known")
    if known is None:
        return None
    is_filled = isinstance(known, dict) and len(known) > 0
    if not is_filled or not known.keys() <= {"ranks", "flags"} or k == 0:
        raise FieldError(
            "known",
            known,
            "must hold ranks, flags or both, of completions",
            'write {"ranks": [...], "flags": [...]}',
        )
    if "ranks" in known:
        schemas.ranking({**record, "ranks": known["ranks"]})
    if "flags" in known:
        _check_known_flags(known["flags"], k)
    return known


def _check_known_flags(flags: Any, k: int) -> None:
    is_list = isinstance(flags, list) and len(flags) == k
    if not is_list or not all(isinstance(each, dict) for each in flags):
        raise FieldError(
            "known.flags",
            flags,
            f"must hold {k} objects",
            "give one for each completion, {} where nothing is wrong",
        )
    for each in flags:
        all_bool = all(isinstance(value, bool) for value in each.values())
        if not all_bool or not each.keys() <= FLAGS.keys():
            raise FieldError(
                "known.flags",
                each,
                f"must hold true or false of {names(FLAGS)}",
                "correct the name or the value",
            )


def shown_order(k: int, task_id: str, labeler: str, secret: str) -> list[int]:
    """The indices of the completions in the order in which this labeler sees them.

    It is the same whenever the labeler opens the task, and another one for every labeler.
    """

    def shuffled(i: int) -> bytes:
        text = f"{secret}\n{task_id}\n{labeler}\n{i}"
        return hashlib.sha256(text.encode()).digest()

    return sorted(range(k), key=shuffled)


def takes_part(task_id: str, share: float) -> bool:
    """True for about this share of the tasks, always the same ones."""
    digest = hashlib.sha256(task_id.encode()).digest()
    return int.from_bytes(digest[:8]) < share * 2**64


def reply(task: LabelTask, order: Sequence[int], form: Mapping[str, str]) -> Reply:
    """The reply in a form; ReplyError where something is missing or wrong.

    `order`: which completion was shown as number 0, 1, ...  The form has the fields `likert-i`,
    `rank-i`, `flag-i-NAME` and `note-i` of the output shown as number i.
    """
    if form.get("action") == "skip":
        reason = _written(form.get("reason", ""), "the reason for which you skip")
        return Reply(skipped=reason)
    if task.kind == "demonstrate":
        text = _written(form.get("text", ""), "the demonstration")
        return Reply(text=text)
    k = len(order)
    is_ranking = task.kind == "rank"
    likert = [_likert(form, at, needed=is_ranking) for at in range(k)]
    if is_ranking:
        ranks = [_rank(form, at, k) for at in range(k)]
    else:
        ranks = [_preferred(form, at) for at in range(k)]
    flags = []
    notes = []
    for at in range(k):
        chosen = {name: form.get(f"flag-{at}-{name}") == "yes" for name in FLAGS}
        flags.append(chosen)
        note = form.get(f"note-{at}", "")
        notes.append(_short(note, f"the notes on output {letter(at)}", at))
    back = [order.index(i) for i in range(k)]  # where completion i was shown
    return Reply(
        ranks=dense([ranks[at] for at in back]),
        likert=[likert[at] for at in back],
        flags=[flags[at] for at in back],
        notes=[notes[at] for at in back],
    )


def dense(ranks: Sequence[int]) -> list[int]:
    """The same order and ties with ranks 1, 2, ... and none left out."""
    distinct = sorted(set(ranks))
    return [distinct.index(rank) + 1 for rank in ranks]


def letter(at: int) -> str:
    """The name of the output that is shown as number `at`, counted from 0."""
    return "ABCDEFGHI"[at]


def clean(text: str) -> str:
    r"""Typed text, with \\n for the \\r\\n of forms, and without control characters."""
    text = text.replace("\r\n", "\n")
    text = schemas.CONTROL.sub("", text)
    return text.strip("\n").rstrip()


def _written(text: str, what: str) -> str:
    cleaned = _short(text, what)
    if not cleaned:
        raise ReplyError(f"Write {what}.")
    return cleaned


def _short(text: str, what: str, at: int = 0) -> str:
    cleaned = clean(text)
    if len(cleaned) > LONGEST:
        raise ReplyError(f"Shorten {what}: {LONGEST:,} characters are the most.", at)
    return cleaned


def _rank(form: Mapping[str, str], at: int, k: int) -> int:
    value = form.get(f"rank-{at}", "")
    if value not in map(str, range(1, k + 1)):
        raise ReplyError(f"Rank output {letter(at)} too: it is still in “To be ranked”.", k)
    return int(value)


def _preferred(form: Mapping[str, str], at: int) -> int:
    value = form.get("better", "")
    if value not in ("0", "1", "tie"):
        raise ReplyError("Say which output is better, or that they are equally good.")
    return 1 if value in (str(at), "tie") else 2


def _likert(form: Mapping[str, str], at: int, *, needed: bool) -> int | None:
    value = form.get(f"likert-{at}", "")
    if value not in map(str, LIKERT):
        if needed or value:
            raise ReplyError(f"Give output {letter(at)} an overall quality from 1 to 7.", at)
        return None
    return int(value)


def seconds_spent(measured: str, elapsed: float) -> float:
    """Seconds spent on a task.

    `measured` is the page's own count of the time during which it could be seen, `elapsed` the time
    since the task was opened, for pages that have no count.
    """
    try:
        value = float(measured)
    except ValueError:
        return elapsed
    if not math.isfinite(value) or value < 0:
        return elapsed
    return min(value, elapsed)
