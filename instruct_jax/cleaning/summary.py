"""The counts of cleaned records, as numbers and as one page of Markdown.

They are those of the paper's Tables 1, 6 and 8 to 11.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from instruct_jax.cleaning.filters import KINDS, SPLITS, Cleaned, Dropped, Item, Items, Written
from instruct_jax.text import number, percent, plain

Row = dict[str, Any]
Names = tuple[str, ...]
ORDER = (*KINDS, *SPLITS)
UNNAMED = "(none given)"
BAD = "bad record"
QUANTILES = {"min": 0, "p25": 25, "p50": 50, "p75": 75, "max": 100}
KEEP = {  # reason -> how such records are kept
    "too long": "raise max_prompt or max_completion",
    "language": "name their language in languages.keep",
    "overlap": "raise overlap.ngram, or set overlap to null",
    "duplicate": "set exact to false",
    "shared prefix": "raise prefix, or set it to null",
    "over the cap": "raise per_user, or set it to null",
    "personal data": "set pii.action to mask",
}
TITLES = {
    "mostly_dropped": "Warning: one step dropped more than half of a file",
    "flow": "Records read, dropped and written",
    "sizes": "Sizes (paper, Table 6)",
    "use_cases": "Use cases of prompts (paper, Table 1)",
    "users": "Prompts for each user (paper, Table 8)",
    "tokens": "Tokens of prompts by split (paper, Table 9)",
    "tokens_by_use_case": "Tokens of prompts by use case (paper, Table 10)",
    "tokens_by_source": "Tokens of prompts and completions by source (paper, Table 11)",
    "languages": "Languages of all prompts read",
    "personal": "Personal data in the training split",
}


def facts(result: Cleaned) -> dict[str, list[Row]]:
    """Table -> rows, all in a fixed order.

    A prompt that has several records of a kind counts once, except in the first table.
    """
    first = {}
    for item, part in result.written:
        first.setdefault((item.kind, item.prompt), (item, part))
    prompts = list(first.values())
    items = [item for item, _ in result.written]
    items += [item for item, _ in result.dropped]
    personal = []
    for kind in sorted(result.personal):
        personal.append({"found": kind, "pieces": result.personal[kind]})
    return {
        "mostly_dropped": _mostly_dropped(result),
        "flow": _flow(result),
        "sizes": _sizes(result.written, prompts),
        "use_cases": _use_cases(prompts),
        "users": _users(prompts),
        "tokens": _lengths(prompts, _by_split, _prompt_tokens),
        "tokens_by_use_case": _lengths(prompts, _by_use_case, _prompt_tokens),
        "tokens_by_source": [
            *_lengths(prompts, _prompts_by_source, _prompt_tokens),
            *_lengths(result.written, _completions_by_source, _completion_tokens),
        ],
        "languages": _languages(items),
        "personal": personal,
    }


def _flow(result: Cleaned) -> list[Row]:
    counts = Counter()  # (kind, what became of a record)
    for kind, _ in result.bad:
        counts[kind, BAD] += 1
    reasons = set()
    for item, drop in result.dropped:
        counts[item.kind, drop.reason] += 1
        reasons.add(drop.reason)
    for item, part in result.written:
        counts[item.kind, part] += 1
    columns = [BAD, *sorted(reasons), *SPLITS]
    rows = []
    for kind in KINDS:
        outcomes = {column: counts[kind, column] for column in columns}
        read = sum(outcomes.values())
        if read:
            rows.append({"kind": kind, "read": read} | outcomes)
    return rows


def _mostly_dropped(result: Cleaned) -> list[Row]:
    """The steps that dropped more than half of the records of a file, each with an example."""
    read = Counter()
    dropped = defaultdict(list)
    for item, _ in result.written:
        read[item.kind, _file_of(item)] += 1
    for item, drop in sorted(result.dropped, key=_place):
        read[item.kind, _file_of(item)] += 1
        dropped[item.kind, _file_of(item), drop.reason].append((item, drop))
    rows = []
    for kind, file, reason in sorted(dropped, key=_rank):
        pairs = dropped[kind, file, reason]
        total = read[kind, file]
        if 2 * len(pairs) <= total:
            continue
        item, drop = pairs[0]
        example = f"{item.place}: {drop.detail}"
        if drop.of:
            example += f" ({drop.of})"
        row = {
            "kind": kind,
            "file": file,
            "reason": reason,
            "dropped": len(pairs),
            "read": total,
            "such as": example,
            "to keep them": KEEP[reason],
        }
        rows.append(row)
    return rows


def _sizes(written: Sequence[Written], prompts: Sequence[Written]) -> list[Row]:
    records = Counter()
    sources = Counter()
    for item, part in written:
        records[item.kind, part] += 1
    for item, part in prompts:
        sources[item.kind, part, item.source] += 1
    rows = []
    for kind, part in sorted(records, key=_rank):
        labeler = sources[kind, part, "labeler"]
        user = sources[kind, part, "user"]
        row = {
            "kind": kind,
            "split": part,
            "records": records[kind, part],
            "prompts": labeler + user,
            "labeler": labeler,
            "user": user,
        }
        rows.append(row)
    return rows


def _use_cases(prompts: Sequence[Written]) -> list[Row]:
    total = Counter()
    counts = Counter()
    for item, _ in prompts:
        total[item.kind] += 1
        counts[item.kind, use_case(item)] += 1
    rows = []
    for kind, name in _frequent_first(counts):
        count = counts[kind, name]
        row = {
            "kind": kind,
            "use case": name,
            "prompts": count,
            "share": count / total[kind],
        }
        rows.append(row)
    return rows


def _users(prompts: Sequence[Written]) -> list[Row]:
    user_prompts = defaultdict(Counter)
    for item, part in prompts:
        if item.user is not None:
            user_prompts[item.kind, part][item.user] += 1
    rows = []
    for kind, part in sorted(user_prompts, key=_rank):
        counts = user_prompts[kind, part]
        row = {
            "kind": kind,
            "split": part,
            "users": len(counts),
            "prompts for each": counts.total() / len(counts),
            "most": max(counts.values()),
        }
        rows.append(row)
    return rows


def _lengths(
    written: Iterable[Written],
    group: Callable[[Item, str], Row],
    tokens: Callable[[Item], Iterable[int]],
) -> list[Row]:
    """One row for each group of items, with numbers of tokens."""
    lengths = defaultdict(list)
    columns = []
    for item, part in written:
        row = group(item, part)
        columns = list(row)
        lengths[tuple(row.values())] += tokens(item)
    rows = []
    for values in sorted(lengths, key=_rank):
        if lengths[values]:
            row = dict(zip(columns, values, strict=True))
            rows.append(row | describe(lengths[values]))
    return rows


def _by_split(item: Item, part: str) -> Row:
    return {"kind": item.kind, "split": part}


def _by_use_case(item: Item, part: str) -> Row:
    return {"kind": item.kind, "use case": use_case(item)}


def _prompts_by_source(item: Item, part: str) -> Row:
    return {"kind": item.kind, "source": item.source, "of": "prompts"}


def _completions_by_source(item: Item, part: str) -> Row:
    return {"kind": item.kind, "source": item.source, "of": "completions"}


def _prompt_tokens(item: Item) -> list[int]:
    return [item.prompt_tokens]


def _completion_tokens(item: Item) -> tuple[int, ...]:
    return item.completion_tokens


def describe(values: Sequence[int]) -> Row:
    """count, mean, std (of the population) and quantiles of at least one number."""
    row: Row = {
        "count": len(values),
        "mean": float(np.mean(values)),
        "std": float(np.std(values)),
    }
    quantiles = np.percentile(values, list(QUANTILES.values()))
    for name, value in zip(QUANTILES, quantiles, strict=True):
        row[name] = float(value)
    return row


def _languages(items: Items) -> list[Row]:
    counts = Counter()
    for item in items:
        language, _ = item.language
        if language:
            counts[(language,)] += 1
    rows = []
    for key in _frequent_first(counts):
        row = {
            "language": key[0],
            "prompts": counts[key],
            "share": counts[key] / counts.total(),
        }
        rows.append(row)
    return rows


def use_case(item: Item) -> str:
    """The use case that the record names."""
    name = item.record.get("use_case")
    return UNNAMED if name in (None, "") else str(name)


def _frequent_first(counts: Counter[Names]) -> list[Names]:
    """The keys, in the order of all parts but the last, and then the most frequent one first."""

    def rank(key: Names) -> tuple[Any, ...]:
        *kind, _ = key
        return (*_rank(kind), -counts[key], key)

    return sorted(counts, key=rank)


def _rank(names: Iterable[str]) -> tuple[Any, ...]:
    """Kinds and splits in the order of the paper, all else by name."""
    ranks = []
    for name in names:
        place = len(ORDER)
        if name in ORDER:
            place = ORDER.index(name)
        ranks.append((place, name))
    return tuple(ranks)


def dropped_rows(result: Cleaned) -> Iterator[Row]:
    """dropped.jsonl: a line for each record that is not written, in a fixed order.

    The text of the record stays where it was.
    """
    for kind, message in sorted(result.bad):
        yield {"kind": kind, "reason": BAD, "detail": message}
    for item, drop in sorted(result.dropped, key=_place):
        row = {"kind": item.kind, "place": item.place}
        if item.record.get("id") is not None:
            row["id"] = item.record["id"]
        row |= {"reason": drop.reason, "detail": drop.detail}
        if drop.of:
            row["of"] = drop.of
        yield row


def _place(pair: Dropped) -> tuple[str, str, int, str]:
    """Sorts the lines of a file by their numbers."""
    item = pair[0]
    line = item.place.rpartition(":")[2].removeprefix(" record ")
    line_number = int(line) if line.isdigit() else 0
    return item.kind, _file_of(item), line_number, item.place


def _file_of(item: Item) -> str:
    """The file or data set of a place, which is FILE:LINE or NAME: record NUMBER."""
    return item.place.rpartition(":")[0]


def sentences(tables: dict[str, list[Row]]) -> str:
    """A line for each kind, for the terminal."""
    lines = []
    for row in tables["flow"]:
        total = 0
        reasons = []
        for key, count in row.items():
            if count and key not in ("kind", "read", *SPLITS):
                total += count
                reasons.append(f"{key} {count:,}")
        kind = row["kind"]
        line = f"{kind}: {row['read']:,} read, {total:,} dropped"
        if reasons:
            line += f" ({', '.join(reasons)})"
        kept = [f"{part} {row[part]:,}" for part in SPLITS]
        lines.append(f"{line}; {', '.join(kept)}")
    for row in tables["mostly_dropped"]:
        lines.append(
            f"warning: {row['file']}: {row['reason']} dropped {row['dropped']:,} of {row['read']:,}"
            f" {row['kind']}, such as {row['such as']}; to keep them {row['to keep them']}"
        )
    return "\n".join(lines)


def page(name: str, tables: dict[str, list[Row]]) -> str:
    """summary.md."""
    sections = [
        f"# {_plain(name)}",
        "Made by `instruct-jax data clean`. A prompt of several records counts once; tokens are"
        " those of the config's tokenizer.",
    ]
    for key, title in TITLES.items():
        if tables[key]:
            sections += [f"## {title}", table(tables[key])]
    return "\n\n".join(sections) + "\n"


def table(rows: Sequence[Row]) -> str:
    """Rows with the same keys as Markdown; numbers stand to the right."""
    head = list(rows[0])
    sides = []
    for value in rows[0].values():
        sides.append("---" if isinstance(value, str) else "--:")
    lines = [_line(head), _line(sides)]
    for row in rows:
        cells = [_cell(key, row[key]) for key in head]
        lines.append(_line(cells))
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(key: str, value: Any) -> str:
    if isinstance(value, str):
        return _plain(value)
    if key == "share":
        return percent(value, 1)
    if isinstance(value, int):
        return f"{value:,}"
    return number(value, 1)


def _plain(text: str) -> str:
    """Text of the data inside a cell, where none of it is markup."""
    escapes = {ord(char): f"\\{char}" for char in "\\|*_`<>[]"}
    return plain(" ".join(text.split())).translate(escapes)
