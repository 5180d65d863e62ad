"""Answers of the labeling page in the forms of other tools, theirs as records, and how far people
agree, as text.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from instruct_jax.data import readers
from instruct_jax.data.schemas import Record
from instruct_jax.errors import DataError, require
from instruct_jax.feedback import agreement
from instruct_jax.feedback import converters as exchange
from instruct_jax.feedback.records import export
from instruct_jax.feedback.store import Answer
from instruct_jax.feedback.tasks import Task
from instruct_jax.text import table

FORMS = ("records", "datasets", "label-studio", "argilla")


def write(
    form: str, answers: Sequence[Answer], tasks: Mapping[str, Task], out: Path
) -> dict[str, int]:
    """Writes a new folder; returns how many records are in each of its parts."""
    require(
        not out.exists(),
        f"--out {out} is there already, and nothing is overwritten; name a new folder",
    )
    if form == "records":
        return _records(out, export(answers, tasks))
    if form == "datasets":
        return _datasets(out, export(answers, tasks))
    out.mkdir(parents=True)
    if form == "argilla":
        found = exchange.to_argilla(tasks, answers)
    else:
        found = exchange.to_label_studio(tasks, answers)
        config = exchange.label_studio_config(
            max((len(task.completions) for task in tasks.values()), default=0)
        )
        (out / "config.xml").write_text(config + "\n", encoding="utf-8")
    (out / "tasks.json").write_text(
        json.dumps(found, ensure_ascii=False, indent=1) + "\n", encoding="utf-8"
    )
    return {"tasks.json": len(found)}


def read(form: str, path: Path, out: Path) -> dict[str, int]:
    """What people said in another tool, as rankings.jsonl and demonstrations.jsonl in a new folder."""
    require(
        not out.exists(),
        f"--out {out} is there already, and nothing is overwritten; name a new folder",
    )
    try:
        raw: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: cannot be read as JSON ({error}); give the JSON file that the other tool"
            " exports"
        ) from error
    if not isinstance(raw, list):
        raise DataError(
            f"{path}: holds a {type(raw).__name__}, not a list; give the JSON file that the other"
            " tool exports"
        )
    try:
        rankings, demonstrations = (
            exchange.from_argilla if form == "argilla" else exchange.from_label_studio
        )(raw)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    return _records(out, {"rankings.jsonl": rankings, "demonstrations.jsonl": demonstrations})


def _records(out: Path, files: Mapping[str, list[Record]]) -> dict[str, int]:
    for name, records in files.items():
        readers.write_jsonl(out / name, records)
    return {name: len(records) for name, records in files.items()}


def _datasets(out: Path, files: Mapping[str, list[Record]]) -> dict[str, int]:
    """A folder of Hugging Face's save_to_disk for each kind of answer that there is."""
    import datasets

    found = {name.removesuffix(".jsonl"): records for name, records in files.items() if records}
    for name, records in found.items():
        if len({type(record["prompt"]) for record in records}) > 1:
            raise DataError(
                f"{name}: prompts are partly text and partly messages, which no column of datasets"
                " holds; export records instead"
            )
        datasets.Dataset.from_list(records).save_to_disk(out / name)
    return {name: len(records) for name, records in found.items()}


def agreement_text(answers: Sequence[Answer]) -> str:
    """Agreement as the paper reports it, and the measures beside it."""
    rows = [
        (f"{name} labelers" if name != "between" else "training with held-out", *_share(s))
        for name, s in agreement.by_group(answers).items()
    ]
    head = ("agreement on pairs", "share", "95 %", "pairs")
    lines = [
        *table(head, rows),
        "",
        *table(
            (head[0], *head[1:]),
            [(who, *_share(s)) for who, s in agreement.by_labeler(answers).items()],
        ),
    ]
    alphas = {name: value for name, value in agreement.alphas(answers).items() if value == value}
    lines += [
        "",
        *table(
            ("Krippendorff's alpha", ""), [(name, f"{value:.3f}") for name, value in alphas.items()]
        ),
    ]
    flags = agreement.flags(answers)
    lines += [
        "",
        *table(
            ("flags: both say yes, or both no", *head[1:]),
            [(name, *_share(s)) for name, s in flags.items()],
        ),
    ]
    screened = agreement.screening(answers)
    if screened:
        rows = [
            (who, *_share(s.ranks)[:2], *_share(s.sensitive)[:2], "yes" if s.passed else "no")
            for who, s in screened.items()
        ]
        lines += [
            "",
            *table(
                (
                    "screening, against researchers",
                    "ranks",
                    "95 %",
                    "sensitive flags",
                    "95 %",
                    "passed",
                ),
                rows,
            ),
        ]
    return "\n".join(lines)


def _share(share: agreement.Share) -> tuple[str, str, str]:
    if not share.pairs:
        return "-", "-", "0"
    return f"{share.mean:.1%}", f"{share.low:.1%} to {share.high:.1%}", f"{share.pairs:,}"
