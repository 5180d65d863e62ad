"""What labelers are asked: tasks from samples, the order in which outputs are shown, and the check
of what comes back.  All pure.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from instruct_jax.data import schemas
from instruct_jax.errors import FieldError, names

Prompt = str | list[dict[str, str]]  # text, or messages with `role` and `content`
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
class Task:
    """One question for one labeler or several."""

    id: str  # of its content
    kind: Kind
    prompt: Prompt
    completions: list[str]  # in the order of the sample; [] of a demonstration
    models: list[str | None]  # of each completion
    # screening: the researchers' `ranks` and `flags`, for each completion
    known: dict[str, Any] | None
    extra: dict[str, Any]  # all other fields of the sample


@dataclasses.dataclass(frozen=True)
class Reply:
    """What a labeler said to a task; lists have an entry for each completion, in the order of the
    sample.
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


def task(raw: schemas.Record, *, compare: bool = False) -> Task:
    """The task that a sample makes: a demonstration without completions, else a ranking, or a
    comparison of two models.
    """
    if raw.get("completions") is None:
        record, kind = (
            schemas.prompt({key: value for key, value in raw.items() if key != "completions"}),
            "demonstrate",
        )
    elif compare:
        record, kind = schemas.sample(raw), "compare"
        if (k := len(record["completions"])) != 2:
            raise FieldError(
                "completions",
                record["completions"],
                f"has K = {k}",
                "give two completions, one of each model",
            )
    else:
        k = len(raw["completions"]) if isinstance(raw["completions"], list) else 0
        # its checks are those of a ranking
        record, kind = (schemas.ranking({**raw, "ranks": list(range(1, k + 1))}), "rank")
    completions = record.get("completions", [])
    known, models = _known(record, len(completions)), _models(record, len(completions))
    mine = ("prompt", "completions", "ranks", "models", "known")
    content = json.dumps(
        [kind, record["prompt"], completions, models, known], sort_keys=True, ensure_ascii=False
    )
    return Task(
        id=hashlib.sha256(content.encode()).hexdigest()[:16],
        kind=kind,
        prompt=record["prompt"],
        completions=completions,
        models=models,
        known=known,
        extra={key: value for key, value in record.items() if key not in mine},
    )


def _models(record: schemas.Record, k: int) -> list[str | None]:
    found = record.get("models")
    if found is None:
        return [None] * k
    if (
        not isinstance(found, list)
        or len(found) != k
        or not all(name is None or isinstance(name, str) for name in found)
    ):
        raise FieldError(
            "models",
            found,
            f"must hold the names of {k} models",
            "give one name for each completion, or null",
        )
    return found


def _known(record: schemas.Record, k: int) -> dict[str, Any] | None:
    found = record.get("known")
    if found is None:
        return None
    if not isinstance(found, dict) or not found or not found.keys() <= {"ranks", "flags"} or k == 0:
        raise FieldError(
            "known",
            found,
            "must hold ranks, flags or both, of completions",
            'write {"ranks": [...], "flags": [...]}',
        )
    if "ranks" in found:
        schemas.ranking({**record, "ranks": found["ranks"]})
    flags = found.get("flags", [{}] * k)
    if (
        not isinstance(flags, list)
        or len(flags) != k
        or not all(isinstance(each, dict) for each in flags)
    ):
        raise FieldError(
            "known.flags",
            flags,
            f"must hold {k} objects",
            "give one for each completion, {} where nothing is wrong",
        )
    for each in flags:
        if not each.keys() <= FLAGS.keys() or not all(
            isinstance(value, bool) for value in each.values()
        ):
            raise FieldError(
                "known.flags",
                each,
                f"must hold true or false of {names(FLAGS)}",
                "correct the name or the value",
            )
    return found


def shown_order(k: int, task_id: str, labeler: str, secret: str) -> list[int]:
    """The completions in the order in which this labeler sees them: the same at every visit,
    another for every labeler.
    """
    return sorted(
        range(k),
        key=lambda i: hashlib.sha256(f"{secret}\n{task_id}\n{labeler}\n{i}".encode()).digest(),
    )


def takes_part(task_id: str, share: float) -> bool:
    """True for about this share of the tasks, always the same ones."""
    return int.from_bytes(hashlib.sha256(task_id.encode()).digest()[:8]) < share * 2**64


def reply(task: Task, order: Sequence[int], form: Mapping[str, str]) -> Reply:
    """What a form says; its fields `likert-i`, `rank-i`, `flag-i-NAME` and `note-i` are of the
    output that was shown as number i.
    """
    if form.get("action") == "skip":
        return Reply(skipped=_written(form.get("reason", ""), "the reason for which you skip"))
    if task.kind == "demonstrate":
        return Reply(text=_written(form.get("text", ""), "the demonstration"))
    rated, shown = task.kind == "rank", range(len(order))
    likert = [_likert(form, at, needed=rated) for at in shown]
    ranks = [_rank(form, at, len(order)) if rated else _preferred(form, at) for at in shown]
    flags = [{name: form.get(f"flag-{at}-{name}") == "yes" for name in FLAGS} for at in shown]
    notes = [
        _short(form.get(f"note-{at}", ""), f"the notes on output {letter(at)}", at) for at in shown
    ]
    back = [order.index(i) for i in shown]  # where completion i was shown
    return Reply(
        ranks=dense([ranks[at] for at in back]),
        likert=[likert[at] for at in back],
        flags=[flags[at] for at in back],
        notes=[notes[at] for at in back],
    )


def dense(ranks: Sequence[int]) -> list[int]:
    """The same order and ties with ranks 1, 2, ... and none left out."""
    found = sorted(set(ranks))
    return [found.index(rank) + 1 for rank in ranks]


def letter(at: int) -> str:
    """The name of the output that is shown as number `at`, from 0."""
    return "ABCDEFGHI"[at]


def clean(text: str) -> str:
    """What a person typed: the line ends of forms are \\r\\n, and records of people hold no control
    characters.
    """
    return schemas.CONTROL.sub("", text.replace("\r\n", "\n")).strip("\n").rstrip()


def _written(text: str, what: str) -> str:
    if not (found := _short(text, what)):
        raise ReplyError(f"Write {what}.")
    return found


def _short(text: str, what: str, at: int = 0) -> str:
    if len(found := clean(text)) > LONGEST:
        raise ReplyError(f"Shorten {what}: {LONGEST:,} characters are the most.", at)
    return found


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
    """The page's own count of seconds while it could be seen; the time since the task was opened
    where the page has no count.
    """
    try:
        value = float(measured)
    except ValueError:
        return elapsed
    return min(value, elapsed) if math.isfinite(value) and value >= 0 else elapsed
