"""Files of answers: a new folder for each export and import, in the form of one tool.

converters.py and records.py make what is in them; this module reads and writes it.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from instruct_jax.data import readers
from instruct_jax.data.schemas import Record
from instruct_jax.errors import DataError, require
from instruct_jax.feedback import converters
from instruct_jax.feedback.records import export
from instruct_jax.feedback.store import Answer
from instruct_jax.feedback.tasks import LabelTask


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
        converted = converters.to_argilla(tasks, answers)
    else:
        converted = converters.to_label_studio(tasks, answers)
        most = max((len(task.completions) for task in tasks.values()), default=0)
        config = converters.label_studio_config(most)
        (out / "config.xml").write_text(config + "\n", encoding="utf-8")
    text = json.dumps(converted, ensure_ascii=False, indent=1) + "\n"
    (out / "tasks.json").write_text(text, encoding="utf-8")
    return {"tasks.json": len(converted)}


def read(form: str, path: Path, out: Path) -> dict[str, int]:
    """Writes the answers of another tool as our records, in a new folder.

    `form` is label-studio or argilla; `path` is the JSON file that the tool exports.  Returns how
    many records are in each file; DataError where the export cannot be used.
    """
    _require_new(out)
    fix = "give the JSON file that the other tool exports"
    try:
        raw: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error}); {fix}") from error
    if not isinstance(raw, list):
        raise DataError(f"{path}: holds a {type(raw).__name__}, not a list; {fix}")
    convert = converters.from_argilla if form == "argilla" else converters.from_label_studio
    try:
        rankings, demonstrations = convert(raw)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    files = {
        "rankings.jsonl": rankings,
        "demonstrations.jsonl": demonstrations,
    }
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
