"""Answers as records that the stages read (docs/records.md)."""

from collections.abc import Mapping, Sequence
from typing import Any

from instruct_jax.feedback.store import Answer
from instruct_jax.feedback.tasks import Task

Record = dict[str, Any]


def export(answers: Sequence[Answer], tasks: Mapping[str, Task]) -> dict[str, list[Record]]:
    """File name -> its records, one for each answer; every answer is in exactly one file, and every
    file is there, empty or not.
    """
    found: dict[str, list[Record]] = {
        name: []
        for name in (
            "rankings.jsonl",
            "demonstrations.jsonl",
            "comparisons.jsonl",
            "held_out_rankings.jsonl",
            "held_out_demonstrations.jsonl",
            "ties.jsonl",
            "screening.jsonl",
            "skipped.jsonl",
        )
    }
    for answer in answers:
        found[file_of(answer)].append(record(answer, tasks[answer.task_id].extra))
    return found


def file_of(answer: Answer) -> str:
    """What a reward model or SFT may learn from is in rankings.jsonl and demonstrations.jsonl, and
    nothing else is.
    """
    if answer.skipped is not None:
        return "skipped.jsonl"
    if answer.known is not None:
        return "screening.jsonl"
    if answer.kind == "compare":
        return "comparisons.jsonl"
    if answer.ranks is not None and len(set(answer.ranks)) == 1:
        return "ties.jsonl"  # no pair is left to learn from, and the reader of rankings refuses it
    kind = "rankings.jsonl" if answer.kind == "rank" else "demonstrations.jsonl"
    return f"held_out_{kind}" if answer.held_out else kind


def record(answer: Answer, extra: Mapping[str, Any]) -> Record:
    """One line.

    `extra` are the sample's other fields; its `id` becomes `sample_id`, as an id stands for one
    task here.
    """
    kept = {"sample_id" if key == "id" else key: value for key, value in extra.items()}
    asked = {
        "id": answer.task_id,
        "labeler_id": answer.labeler,
        "held_out": answer.held_out,
        "prompt": answer.prompt,
    }
    spent = {
        "seconds": round(answer.seconds, 1),
        "submitted": round(answer.submitted, 3),
        "instructions": answer.instructions,
    }
    if answer.kind == "demonstrate":
        said: Record = {} if answer.text is None else {"completion": answer.text}
    else:
        said = {"completions": answer.completions, "models": answer.models}
        if answer.ranks is not None:
            said |= {
                "ranks": answer.ranks,
                "likert": answer.likert,
                "flags": answer.flags,
                "notes": answer.notes,
            }
    known = {} if answer.known is None else {"known": answer.known}
    reason = {} if answer.skipped is None else {"kind": answer.kind, "skipped": answer.skipped}
    return kept | asked | said | known | reason | spent
