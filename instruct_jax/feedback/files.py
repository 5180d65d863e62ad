"""Files of answers: a new folder for each export and import, in the form of one tool.

label_studio.py, argilla.py and records.py make what is in them; this module reads and writes it.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from instruct_jax.data import readers
from instruct_jax.data.schemas import Record
from instruct_jax.errors import DataError, require
from instruct_jax.feedback import argilla, label_studio
from instruct_jax.feedback.converters import Import
from instruct_jax.feedback.records import export
from instruct_jax.feedback.store import Answer
from instruct_jax.feedback.tasks import LabelTask
from instruct_jax.text import plural

SHOWN = 8  # kinds of what was found in an export of which nothing can be read


def write(
    form: str,
    answers: Sequence[Answer],
    tasks: Mapping[str, LabelTask],
    out: Path,
) -> dict[str, int]:
    """Writes a new folder; returns how many records are in each of its parts.

    `form` is records, datasets, label-studio or argilla.
    """
    _require_new(out)
    if form == "records":
        return _write_records(out, export(answers, tasks))
    if form == "datasets":
        return _write_datasets(out, export(answers, tasks))
    out.mkdir(parents=True)
    if form == "argilla":
        converted = argilla.to_argilla(tasks, answers)
    else:
        converted = label_studio.to_label_studio(tasks, answers)
        most = max((len(task.completions) for task in tasks.values()), default=0)
        config = label_studio.label_studio_config(most)
        (out / "config.xml").write_text(config + "\n", encoding="utf-8")
    text = json.dumps(converted, ensure_ascii=False, indent=1) + "\n"
    (out / "tasks.json").write_text(text, encoding="utf-8")
    return {"tasks.json": len(converted)}


def read(form: str, path: Path, out: Path, into: Import) -> dict[str, int]:
    """Writes the answers of another tool as our records, in a new folder.

    `form` is label-studio or argilla; `path` is the JSON file that the tool exports.  Returns how
    many records are in each file; DataError where there are none.  `into` says what was left out.
    """
    _require_new(out)
    on_bad_record = "skip" if into.skip else "error"
    # under a key, as readers.read wants each `id` once, and two exports may be in one file
    records = readers.read(lambda raw: {"task": raw}, path, on_bad_record=on_bad_record)
    tasks = [(place, record["task"]) for place, record in zip(records.places, records, strict=True)]
    if form == "argilla":
        argilla.from_argilla(tasks, into)
        what = argilla.READ
    else:
        label_studio.from_label_studio(tasks, into)
        what = label_studio.READ
    into.check_options()
    files = {
        "rankings.jsonl": into.rankings,
        "demonstrations.jsonl": into.demonstrations,
    }
    if not any(files.values()):
        found = into.left_out_lines()[:SHOWN] + into.dropped[:1]
        raise DataError(
            f"{path}: nothing to import; in {plural(len(tasks), 'record')} there are"
            f" {'; '.join(found)}; --format {form} reads {what}"
        )
    return _write_records(out, files)


def _require_new(out: Path) -> None:
    require(
        not out.exists(),
        f"--out {out} is there already, and nothing is overwritten; name a new folder",
    )


def _write_records(out: Path, files: Mapping[str, list[Record]]) -> dict[str, int]:
    for name, records in files.items():
        readers.write_jsonl(out / name, records)
    return {name: len(records) for name, records in files.items()}


def _write_datasets(out: Path, files: Mapping[str, list[Record]]) -> dict[str, int]:
    """A folder of Hugging Face's save_to_disk for each kind of answer that there is."""
    import datasets

    counts = {}
    for file, records in files.items():
        if not records:
            continue
        name = file.removesuffix(".jsonl")
        kinds = {type(record["prompt"]) for record in records}
        if len(kinds) > 1:
            raise DataError(
                f"{name}: prompts are partly text and partly messages, which no column of datasets"
                " holds; export records instead"
            )
        datasets.Dataset.from_list(records).save_to_disk(out / name)
        counts[name] = len(records)
    return counts
