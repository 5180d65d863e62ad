"""Records from files: JSON Lines, JSON arrays, parquet, plain text, `datasets` folders and
`hub:NAME`; and back to JSON Lines.

A bad record is a DataError that names file, line, field, value and repair.  on_bad_record="skip"
drops it, logs it, and keeps the message in `Records.dropped`.  A line that is no UTF-8 or no JSON
counts as a bad record; a missing, empty or broken file is always an error.
"""

import collections
import functools
import gzip
import itertools
import json
import logging
import math
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from instruct_jax.data import schemas
from instruct_jax.data.hub import dataset_folder
from instruct_jax.errors import DataError, FieldError, names, shorten

logger = logging.getLogger(__name__)

OnBad = Literal["error", "skip"]
Columns = Mapping[str, str]  # our field -> column of the data set
HUB = "hub:"  # begins a data set of the hub: hub:OWNER/NAME, or hub:OWNER/NAME:SPLIT
# of lists and objects in each other: more would break Python's own limit somewhere on the way
DEPTH = 200
SHOWN = 10  # dropped records in the log; `Records.dropped` has them all
SUFFIXES = (".jsonl", ".json", ".parquet", ".txt", "each but parquet also with .gz")


class Records(list[schemas.Record]):
    """The good records of a file, where each stands, and why the others were dropped."""

    places: Sequence[str] = ()
    dropped: Sequence[str] = ()


def read(
    schema: schemas.Schema,
    path: str | Path,
    *,
    columns: Columns | None = None,
    on_bad_record: OnBad = "error",
    split: str | None = None,
) -> Records:
    """The records of a file in the schema's normal form; `columns` renames fields first, `split` is
    one of a data set with several.
    """
    if on_bad_record not in ("error", "skip"):
        raise DataError(f"on_bad_record={on_bad_record!r} is unknown; use error or skip")
    records, places, dropped, seen = Records(), [], [], {}
    for where, raw in _rows(path, split):
        try:
            value = _decode(raw) if isinstance(raw, bytes) else raw
            _check_value("record", value)
            record = schema(_rename(value, columns))
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
        shown = "\n  ".join([*dropped[:SHOWN], "..."] if len(dropped) > SHOWN else dropped)
        logger.warning(
            "%s: dropped %d of %d records\n  %s",
            path,
            len(dropped),
            len(dropped) + len(records),
            shown,
        )
    records.places, records.dropped = places, dropped
    return records


read_prompts = functools.partial(read, schemas.prompt)  # prompt
read_demonstrations = functools.partial(read, schemas.demonstration)  # prompt, completion
read_rankings = functools.partial(read, schemas.ranking)  # prompt, completions, ranks
# text; a plain text file is one document, also in a folder of them
read_texts = functools.partial(read, schemas.text)
read_samples = functools.partial(read, schemas.sample)  # prompt, completions


def write_jsonl(path: str | Path, records: Iterable[Mapping[str, Any]]) -> None:
    """JSON Lines, UTF-8; `path` (.jsonl or .jsonl.gz) holds all of them or is as it was before."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # one name: the next run writes over what a killed one left
    partial = path.with_name(path.name + ".partial")
    data = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode(
        "utf-8"
    )
    try:
        partial.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
        os.replace(partial, path)
    except OSError as error:
        error.filename = error.filename or str(path)  # write() does not say which file it is about
        raise
    finally:
        partial.unlink(missing_ok=True)


def _rename(raw: Any, columns: Columns | None) -> schemas.Record:
    if not isinstance(raw, dict):
        raise FieldError(
            "record",
            raw,
            f"must be an object, not {type(raw).__name__}",
            'write {"field": value, ...}',
        )
    for ours, theirs in (columns or {}).items():
        if theirs not in raw:
            raise FieldError(
                "columns",
                {ours: theirs},
                f"names no column; there are {names(raw)}",
                "correct the column map",
            )
    taken = set((columns or {}).values())
    return {key: value for key, value in raw.items() if key not in taken} | {
        ours: raw[theirs] for ours, theirs in (columns or {}).items()
    }


def _decode(line: bytes) -> Any:
    """The value on one line of JSON Lines."""
    try:
        return json.loads(line.decode("utf-8-sig"), object_pairs_hook=_object)
    except FieldError:
        raise
    except UnicodeDecodeError as error:
        bad, encoding = (
            line[error.start : error.start + 8],
            "utf-16" if line[:2] in (b"\xff\xfe", b"\xfe\xff") else "latin1",
        )
        raise FieldError(
            "line",
            bad,
            f"is not UTF-8 at byte {error.start + 1}",
            f"convert the file: iconv -f {encoding} -t utf-8",
        ) from None
    except (ValueError, RecursionError) as error:
        value = line.decode("utf-8-sig").strip()
        raise FieldError(
            "line", value, f"is not JSON ({error})", "put one complete JSON object on each line"
        ) from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """JSON takes the last of two equal names without a word."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(
            name
            for name, count in collections.Counter(name for name, _ in pairs).items()
            if count > 1
        )
        raise FieldError("field", twice, "stands twice in one object", "remove one of them")
    return found


def _check_value(name: str, value: Any, depth: int = 0) -> None:
    """What was read can be written again: a late stage does, and must not find out then."""
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
    """An id stands for one record of a file; of rankings, for one of each labeler."""
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


def _rows(path: str | Path, split: str | None) -> Iterator[tuple[str, Any]]:
    """(where, record) of every record; a record of JSON Lines is still bytes."""
    if str(path).startswith(HUB):
        name, part = _hub_name(str(path))
        return _dataset_rows(path, dataset_folder(name), split or part)
    path = Path(path)
    if not exists(path):
        raise DataError(
            f"{path}: no such file or folder (looked in {Path.cwd()}); correct the path, or write"
            " hub:OWNER/NAME for a data set of the hub"
        )
    name = path.name.removesuffix(".gz")
    if path.is_dir() and (texts := sorted([*path.glob("*.txt"), *path.glob("*.txt.gz")])):
        return itertools.chain.from_iterable(map(_text_rows, texts))
    if path.is_dir() or path.suffix == ".parquet":
        return _dataset_rows(path, path, split)
    if name.endswith((".jsonl", ".json")):
        return _json_rows(path)
    if name.endswith(".txt"):
        return _text_rows(path)
    raise DataError(
        f"{path}: suffix {path.suffix!r} is unknown; use one of {', '.join(SUFFIXES)}, or a folder"
    )


def _hub_name(path: str) -> tuple[str, str | None]:
    """(OWNER/NAME, split) of hub:OWNER/NAME:SPLIT"""
    name, _, split = path.removeprefix(HUB).partition(":")
    return name, split or None


def exists(path: str | Path) -> bool:
    """DataError for what cannot be read, and for what can be read only once: a run reads its files
    twice.
    """
    if str(path).startswith(HUB):
        try:
            return dataset_folder(_hub_name(str(path))[0]).is_dir()
        except DataError:
            return False
    path = Path(path)
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
        return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(
            f"{path}: broken gzip file ({error}); download or compress it again"
        ) from error
    except OSError as error:
        raise _unreadable(path, error) from error


def _json_rows(path: Path) -> Iterator[tuple[str, Any]]:
    data = _contents(path)
    if ".json" in path.suffixes and data.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"[":
        try:
            yield from ((f"{path}: record {i}", raw) for i, raw in enumerate(_decode(data), 1))
        except FieldError as error:
            raise DataError(f"{path}: {error}") from error
        return
    for number, line in enumerate(
        data.split(b"\n"), 1
    ):  # never splitlines(): U+2028 may stand inside a string
        if line.strip():
            yield f"{path}:{number}", line


def _text_rows(path: Path) -> Iterator[tuple[str, Any]]:
    data = _contents(path)
    if not data.strip():
        return
    try:
        yield f"{path}:1", {"text": data.decode("utf-8-sig").replace("\r\n", "\n")}
    except UnicodeDecodeError as error:
        number, bad = (
            data.count(b"\n", 0, error.start) + 1,
            shorten(data[error.start : error.start + 8]),
        )
        raise DataError(
            f"{path}:{number}: text={bad} is not UTF-8; convert the file: iconv -f latin1 -t utf-8"
        ) from error


def _dataset_rows(path: str | Path, place: Path, split: str | None) -> Iterator[tuple[str, Any]]:
    """Those of the data set `path`, which lies at `place`."""
    import datasets  # takes a second to import

    try:
        if place.is_file():
            data = datasets.Dataset.from_parquet(str(place))
        elif (place / "dataset_info.json").exists() or (place / "dataset_dict.json").exists():
            data = datasets.load_from_disk(str(place))
        else:
            data = datasets.load_dataset(str(place))
    except Exception as error:  # the library raises anything for a broken file
        repair = "write JSON Lines, parquet, or a folder made by datasets' save_to_disk"
        raise DataError(
            f"{path}: cannot be read as a data set ({shorten(error, 200)}); {repair}"
        ) from error
    if isinstance(data, dict):
        names = list(data)
        if split is None and len(names) > 1:
            raise DataError(
                f"{path}: there are the splits {names}; choose one, hub:OWNER/NAME:SPLIT, or"
                " split=... from Python"
            )
        if split is not None and split not in names:
            raise DataError(f"{path}: split={split!r} does not exist; choose one of {names}")
        data = data[names[0] if split is None else split]
    # dates and the like become text: JSON has none, and a late stage writes the record
    yield from (
        (f"{path}: record {i}", json.loads(json.dumps(dict(raw), default=str)))
        for i, raw in enumerate(data, 1)
    )  # pyright: ignore
