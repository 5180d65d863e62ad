"""Answers of the labeling page as records that the stages read (docs/records.md).  All pure."""

from collections.abc import Mapping, Sequence
from typing import Any

from instruct_jax.feedback.store import Answer
from instruct_jax.feedback.tasks import LabelTask

Record = dict[str, Any]


FILES = (
    "rankings.jsonl",
    "demonstrations.jsonl",
    "comparisons.jsonl",
    "held_out_rankings.jsonl",
    "held_out_demonstrations.jsonl",
    "ties.jsonl",
    "screening.jsonl",
    "skipped.jsonl",
)


def export(answers: Sequence[Answer], tasks: Mapping[str, LabelTask]) -> dict[str, list[Record]]:
    """File name -> its records, one for each answer.

    Every answer is in exactly one of FILES, and every file is there, empty or not.
    """
    files: dict[str, list[Record]] = {name: [] for name in FILES}
    for answer in answers:
        task = tasks[answer.task_id]
        line = record(answer, task.extra)
        files[file_of(answer)].append(line)
    return files


def file_of(answer: Answer) -> str:
    """The file for an answer.

    rankings.jsonl and demonstrations.jsonl hold all that a reward model or SFT may learn from, and
    nothing else.
    """
    if answer.skipped is not None:
        return "skipped.jsonl"
    if answer.known is not None:
        return "screening.jsonl"
    if answer.kind == "compare":
        return "comparisons.jsonl"
    if answer.ranks is not None and len(set(answer.ranks)) == 1:
        return "ties.jsonl"  # no pair is left to learn from, and the reader of rankings refuses it
    name = "rankings.jsonl" if answer.kind == "rank" else "demonstrations.jsonl"
    return f"held_out_{name}" if answer.held_out else name


def record(answer: Answer, extra: Mapping[str, Any]) -> Record:
    """One line of a file.

    `extra` are the sample's other fields; its `id` becomes `sample_id`, because `id` is the task
    here.
    """
    line: Record = {}
    for key, value in extra.items():
        line["sample_id" if key == "id" else key] = value
    line |= {
        "id": answer.task_id,
        "labeler_id": answer.labeler,
        "held_out": answer.held_out,
        "prompt": answer.prompt,
    }
    if answer.kind != "demonstrate":
        line |= {"completions": answer.completions, "models": answer.models}
    elif answer.text is not None:
        line["completion"] = answer.text
    if answer.ranks is not None:
        line |= {
            "ranks": answer.ranks,
            "likert": answer.likert,
            "flags": answer.flags,
            "notes": answer.notes,
        }
    if answer.known is not None:
        line["known"] = answer.known
    if answer.skipped is not None:
        line |= {"kind": answer.kind, "skipped": answer.skipped}
    return line | {
        "seconds": round(answer.seconds, 1),
        "submitted": round(answer.submitted, 3),
        "instructions": answer.instructions,
    }
