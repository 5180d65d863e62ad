"""Reads records from files, and writes them as JSON Lines.

Read are JSON Lines, JSON arrays, CSV, parquet, plain text, `datasets` folders and `hub:NAME`.  A
bad record is a DataError that names file, line, field, value and the fix.  on_bad_record="skip"
drops it, logs it, and keeps the message in `Records.dropped`.  A line that is no UTF-8 or no JSON
counts as a bad record; a missing, empty or broken file is always an error.
"""

import collections
import csv
import functools
import gzip
import io
import itertools
import json
import logging
import lzma
import math
import os
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, Literal

from instruct_jax.data import schemas
from instruct_jax.data.hub import dataset_folder
from instruct_jax.errors import DataError, FieldError, names, shorten

logger = logging.getLogger(__name__)

OnBad = Literal["error", "skip"]
Rows = Iterator[tuple[str, Any]]  # where each stands, and what is there
Columns = Mapping[str, str | None]  # our field -> column of the data set; None: leave it out
HUB = "hub:"  # begins a data set of the hub: hub:OWNER/NAME[@REVISION][:SPLIT]
# levels of lists and objects; more would break Python's own limit in some later stage
DEPTH = 200
SHOWN = 10  # dropped records in the log; `Records.dropped` has them all
KINDS = {  # of files, by their suffix
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".txt": "text",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
COMPRESSED = (".gz", ".xz", ".zst")  # may follow each but .parquet and .arrow
# texts about the data in a folder, which are not its data
ABOUT = re.compile(
    r"(readme|licen[cs]e([-_.].*)?|copying|notice|sources?|authors|citation|changelog)",
    re.IGNORECASE,
)


class Records(list[schemas.Record]):
    """The good records of a file, where each stands, and why the others were dropped."""

    places: Sequence[str] = ()
    dropped: Sequence[str] = ()
    mapped: Set[str] = frozenset()  # fields whose entry in `columns` changed a record


def read(
    schema: schemas.Schema,
    path: str | Path,
    *,
    columns: Columns | None = None,
    on_bad_record: OnBad = "error",
    split: str | None = None,
) -> Records:
    """The records of a file in the schema's normal form.

    `columns` renames fields first, where their column is there, or leaves them out; `split` is the
    one to read of a data set with several.
    """
    if on_bad_record not in ("error", "skip"):
        raise DataError(f"on_bad_record={on_bad_record!r} is unknown; use error or skip")
    records, places, dropped, seen = Records(), [], [], {}
    columns = columns or {}
    mapped: set[str] = set()
    for where, raw in _rows(path, split):
        try:
            value = _decode(raw) if isinstance(raw, bytes) else raw
            _check_value("record", value)
            record = _mapped(schema, value, columns, mapped)
            check_id(record, where, seen)
            records.append(record)
            places.append(where)
        except FieldError as error:
            if on_bad_record == "error":
                raise DataError(f"{where}: {error}") from error
            dropped.append(f"{where}: {error}")
    if not records and not dropped:
        raise DataError(f"{path}: no records; the file is empty, give one with at least one record")
    if not records:
        raise DataError(
            f"{path}: all {len(dropped)} records were dropped, the first because of {dropped[0]}"
        )
    if dropped:
        shown = dropped[:SHOWN]
        if len(dropped) > SHOWN:
            shown.append("...")
        total = len(dropped) + len(records)
        lines = "\n  ".join(shown)
        logger.warning("%s: dropped %d of %d records\n  %s", path, len(dropped), total, lines)
    records.places, records.dropped, records.mapped = places, dropped, mapped
    return records


read_prompts = functools.partial(read, schemas.prompt)  # prompt
read_demonstrations = functools.partial(read, schemas.demonstration)  # prompt, completion
read_rankings = functools.partial(read, schemas.ranking)  # prompt, completions, ranks
# text; a plain text file is one document, also in a folder of them
read_texts = functools.partial(read, schemas.text)
read_samples = functools.partial(read, schemas.sample)  # prompt, completions


def write_jsonl(path: str | Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Writes JSON Lines, UTF-8, into a .jsonl or .jsonl.gz file: all records or none."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # always the same name, so that the next run writes over what a killed one left
    partial = path.with_name(path.name + ".partial")
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    data = "".join(lines).encode("utf-8")
    if path.suffix == ".gz":
        data = gzip.compress(data, mtime=0)
    try:
        partial.write_bytes(data)
        os.replace(partial, path)
    except OSError as error:
        error.filename = error.filename or str(path)  # write() does not say which file it is about
        raise
    finally:
        partial.unlink(missing_ok=True)


def _mapped(schema: schemas.Schema, raw: Any, columns: Columns, mapped: set[str]) -> schemas.Record:
    """The record in normal form, its columns renamed; adds the fields that were."""
    if not isinstance(raw, dict):
        raise FieldError(
            "record",
            raw,
            f"must be an object, not {type(raw).__name__}",
            'write {"field": value, ...}',
        )
    renamed = {key: raw[key] for key in raw if key not in columns.values()}
    for ours, theirs in columns.items():
        if theirs in raw:
            renamed[ours] = raw[theirs]
            mapped.add(ours)
        elif theirs is None and ours in raw:
            renamed.pop(ours, None)
            mapped.add(ours)
    try:
        return schema(renamed)
    except FieldError as error:
        theirs = columns.get(error.field)
        if theirs is None or theirs in raw or error.field in raw:
            raise
        raise FieldError(
            "data.columns",
            {error.field: theirs},
            f"names no column; there are {names(raw)}",
            "correct the column map",
        ) from error


def _decode(line: bytes) -> Any:
    """The value on one line of JSON Lines."""
    try:
        return json.loads(line.decode("utf-8-sig"), object_pairs_hook=_object)
    except FieldError:
        raise
    except UnicodeDecodeError as error:
        encoding = "utf-16" if line[:2] in (b"\xff\xfe", b"\xfe\xff") else "latin1"
        raise FieldError(
            "line",
            line[error.start : error.start + 8],
            f"is not UTF-8 at byte {error.start + 1}",
            f"convert the file: iconv -f {encoding} -t utf-8",
        ) from None
    except (ValueError, RecursionError) as error:
        value = line.decode("utf-8-sig").strip()
        raise FieldError(
            "line", value, f"is not JSON ({error})", "put one complete JSON object on each line"
        ) from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object; FieldError where a name is there twice, of which JSON would take the last."""
    counts = collections.Counter(name for name, _ in pairs)
    for name, count in counts.items():
        if count > 1:
            raise FieldError("field", name, "stands twice in one object", "remove one of them")
    return dict(pairs)


def _check_value(name: str, value: Any, depth: int = 0) -> None:
    """FieldError for a value that could not be written again, as a late stage will do."""
    if isinstance(value, str):
        _check_encodable(name, value)
    elif isinstance(value, float) and not math.isfinite(value):
        raise FieldError(name, value, "is no number of JSON", "write null where there is none")
    elif isinstance(value, dict | list) and depth == DEPTH:
        raise FieldError(
            name, value, f"is nested deeper than {DEPTH} levels", "write it flat, or leave it out"
        )
    elif isinstance(value, dict):
        for key, part in value.items():
            _check_encodable("field", key)
            _check_value(f"{name}.{key}" if depth else key, part, depth + 1)
    elif isinstance(value, list):
        for i, part in enumerate(value):
            _check_value(f"{name}[{i}]", part, depth + 1)


def _check_encodable(name: str, text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise FieldError(
            name,
            text,
            f"has half a surrogate pair at character {error.start}",
            "write the character in UTF-8",
        ) from None


def check_id(record: schemas.Record, where: str, seen: dict[str, str]) -> None:
    """FieldError where an id stands for two records of a file, or for two rankings of a labeler."""
    if record.get("id") is None:
        return
    key = repr((record["id"], record.get("labeler_id")))
    if key in seen:
        raise FieldError(
            "id",
            record["id"],
            f"is that of {seen[key]} too",
            "give each record an id of its own, or remove one of the two",
        )
    seen[key] = where


def _rows(path: str | Path, split: str | None) -> Rows:
    """(where, record) of every record; one of JSON Lines is still bytes."""
    if str(path).startswith(HUB):
        name, part = _hub_name(str(path))
        return _dataset_rows(path, dataset_folder(name), split or part)
    whole = path
    folder, part = folder_and_split(str(path))
    path, split = Path(folder), split or part
    if not exists(path):
        raise DataError(
            f"{path}: no such file or folder (looked in {Path.cwd()}); correct the path, or write"
            " hub:OWNER/NAME for a data set of the hub"
        )
    if path.is_dir():
        kind, files = _data_files(path)
        if kind != "text":
            return _dataset_rows(whole, path, split, kind)
        rows = itertools.chain.from_iterable(map(_text_rows, files))
    elif path.suffix in (".parquet", ".arrow"):
        rows = _dataset_rows(path, path, None)
    else:
        kind = KINDS.get(_suffix(path))
        if kind not in READ:
            raise DataError(
                f"{path}: suffix {path.suffix!r} is unknown; use one of {', '.join(KINDS)}, also"
                f" with {' or '.join(COMPRESSED)}, or a folder"
            )
        rows = READ[kind](path)
    if split is not None:
        raise DataError(f"{path}: split={split!r} does not exist, it is one whole; leave it out")
    return rows


def _suffix(path: Path) -> str:
    """The suffix before that of a compression."""
    if path.suffix in COMPRESSED:
        path = path.with_suffix("")
    return path.suffix


def _data_files(folder: Path) -> tuple[str | None, list[Path]]:
    """The one kind of files that a folder holds, and these; None where it says itself what its data
    is.  DataError where it holds several kinds, or no data.
    """
    if _is_saved(folder):
        return None, []
    readme = folder / "README.md"
    if readme.exists() and "data_files:" in readme.read_text("utf-8", errors="replace"):
        return None, []
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        kind = KINDS.get(_suffix(path))
        is_hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if kind is None or is_hidden or not path.is_file():
            continue
        stem = path.name.partition(".")[0]
        if path.name in ("config.json", "dataset_infos.json") or (
            kind == "text" and ABOUT.fullmatch(stem)
        ):
            continue
        found.setdefault(kind, []).append(path)
    if not found:
        raise DataError(f"{folder}: no data in it; give files with one of {', '.join(KINDS)}")
    if len(found) > 1:
        examples = " and ".join(str(paths[0].relative_to(folder)) for paths in found.values())
        raise DataError(
            f"{folder}: holds several kinds of files, {examples}; name the files themselves, or"
            " move those that are not the data"
        )
    [(kind, files)] = found.items()
    return kind, files


def _is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` of datasets wrote the folder."""
    return any((folder / f"dataset_{name}.json").exists() for name in ("info", "dict"))


def folder_and_split(path: str) -> tuple[str, str | None]:
    """(FOLDER, SPLIT) of FOLDER:SPLIT; (path, None) of any other path."""
    folder, _, split = path.rpartition(":")
    if folder and split and os.path.isdir(folder) and not os.path.exists(path):
        return folder, split
    return path, None


def _by_split(folder: Path, kind: str) -> dict[str, list[str]]:
    """Split -> its files of one kind; the library alone would take the kind with most files."""
    from datasets import data_files  # takes a second to import

    found = data_files.DataFilesDict.from_patterns(
        data_files.get_data_patterns(str(folder)),
        base_path=str(folder),
        allowed_extensions=[suffix for suffix in KINDS if KINDS[suffix] == kind],
    )
    return {split: list(files) for split, files in found.items() if files}


def _hub_name(path: str) -> tuple[str, str | None]:
    """(OWNER/NAME, split) of hub:OWNER/NAME:SPLIT; @REVISION stays with the name."""
    name, _, split = path.removeprefix(HUB).partition(":")
    return name, split or None


def exists(path: str | Path) -> bool:
    """Whether there is such a file, folder or data set.

    DataError where it cannot be read, or can be read only once: a run reads its files twice.
    """
    if str(path).startswith(HUB):
        try:
            return dataset_folder(_hub_name(str(path))[0]).is_dir()
        except DataError:
            return False
    path = Path(folder_and_split(str(path))[0])
    try:
        if path.exists() and not path.is_dir() and not path.is_file():
            raise DataError(
                f"{path}: is neither file nor folder but a pipe or a device; write its contents to"
                " a file"
            )
        return path.exists()
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(
        f"{path}: cannot be read ({error.strerror}); correct the path or its permissions"
    )


def _contents(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error
    if path.suffix not in COMPRESSED:
        return data
    name, decompress = DECOMPRESS[path.suffix]
    try:
        return decompress(data)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise DataError(
            f"{path}: broken {name} file ({error}); download or compress it again"
        ) from error


def _zstd(data: bytes) -> bytes:
    import pyarrow  # takes a while to import

    return pyarrow.CompressedInputStream(pyarrow.BufferReader(data), "zstd").read()


DECOMPRESS = {
    ".gz": ("gzip", gzip.decompress),
    ".xz": ("xz", lzma.decompress),
    ".zst": ("zstd", _zstd),
}


def _json_rows(path: Path) -> Rows:
    data = _contents(path)
    start = data.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    if _suffix(path) == ".json" and start == b"[":
        try:
            array = _decode(data)
        except FieldError as error:
            raise DataError(f"{path}: {error}") from error
        for i, raw in enumerate(array, 1):
            yield f"{path}: record {i}", raw
        return
    # not splitlines(): U+2028 may stand inside a string
    for number, line in enumerate(data.split(b"\n"), 1):
        if line.strip():
            yield f"{path}:{number}", line


def _text_rows(path: Path) -> Rows:
    text = _text(path)
    if text.strip():
        yield f"{path}:1", {"text": text.replace("\r\n", "\n")}


def _text(path: Path) -> str:
    data = _contents(path)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = data.count(b"\n", 0, error.start) + 1
        bad = shorten(data[error.start : error.start + 8])
        raise DataError(
            f"{path}:{number}: text={bad} is not UTF-8; convert the file: iconv -f latin1 -t utf-8"
        ) from error


def _table_rows(path: Path, *, separator: str) -> Rows:
    """The rows of a table whose first line names the fields.

    Every cell is text, or null where it is empty.
    """
    csv.field_size_limit(sys.maxsize)  # of text there may be much
    table = csv.reader(io.StringIO(_text(path), newline=""), delimiter=separator, strict=True)
    fields: list[str] = []
    line = 1
    try:
        for cells in table:
            where = f"{path}:{line}"
            line = table.line_num + 1
            if not cells:
                continue  # an empty line
            if not fields:
                fields = cells
                for name, count in collections.Counter(fields).items():
                    if count > 1:
                        raise DataError(
                            f"{where}: the field {shorten(name)} stands twice; remove one of them"
                        )
                continue
            if len(cells) != len(fields):
                raise DataError(
                    f"{where}: has {len(cells)} cells for the {len(fields)} fields"
                    f" {shorten(fields, 200)}; put quotes around a cell that holds {separator!r}"
                )
            yield where, {name: cell or None for name, cell in zip(fields, cells, strict=True)}
    except csv.Error as error:
        raise DataError(
            f"{path}:{line}: is not CSV ({error}); put quotes around a cell that holds quotes, and"
            " write each of these twice"
        ) from error


READ: Mapping[str | None, Callable[[Path], Rows]] = {  # kind -> rows of one file
    "json": _json_rows,
    "csv": functools.partial(_table_rows, separator=","),
    "tsv": functools.partial(_table_rows, separator="\t"),
    "text": _text_rows,
}


def _dataset_rows(
    path: str | Path, place: Path, split: str | None, kind: str | None = None
) -> Rows:
    """The rows of the data set `path`, which lies at `place`; `kind`: that of the files in it."""
    import datasets  # takes a second to import

    try:
        if place.suffix == ".arrow":
            data = datasets.Dataset.from_file(str(place))
        elif place.is_file():
            data = datasets.Dataset.from_parquet(str(place))
        elif _is_saved(place):
            data = datasets.load_from_disk(str(place))
        else:
            files = None if kind is None else _by_split(place, kind)
            data = datasets.load_dataset(str(place), data_files=files)
    except Exception as error:  # the library raises anything for a broken file
        raise DataError(
            f"{path}: cannot be read as a data set ({shorten(error, 200)}); write JSON Lines,"
            " parquet, or a folder made by datasets' save_to_disk"
        ) from error
    if isinstance(data, dict):
        names = list(data)
        if split is None and len(names) > 1:
            raise DataError(
                f"{path}: there are the splits {names}; choose one, such as {path}:{names[0]}"
            )
        if split is not None and split not in names:
            raise DataError(f"{path}: split={split!r} does not exist; choose one of {names}")
        data = data[names[0] if split is None else split]
    elif split is not None:
        raise DataError(f"{path}: split={split!r} does not exist, it is one whole; leave it out")
    for i, raw in enumerate(data, 1):
        # dates and the like become text: JSON has none, and a late stage writes the record
        text = json.dumps(dict(raw), default=str)
        yield f"{path}: record {i}", json.loads(text)
