"""The counts of cleaned records as the paper gives them (Tables 1, 6 and 8 to 11), as numbers and
as one page of Markdown.
"""

import collections
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from instruct_jax.cleaning.filters import KINDS, SPLITS, Cleaned, Dropped, Item, Written
from instruct_jax.report.text import number, percent, plain

Row = dict[str, Any]
UNNAMED = "(none given)"
QUANTILES = {"min": 0, "p25": 25, "p50": 50, "p75": 75, "max": 100}
TITLES = {
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

    A prompt that has several records of a kind counts once, but in the first table.
    """
    first: dict[tuple[str, str], Written] = {}
    for item, part in result.written:
        first.setdefault((item.kind, item.prompt), (item, part))
    prompts = list(first.values())
    return {
        "flow": list(_flow(result)),
        "sizes": list(_sizes(result.written, prompts)),
        "use_cases": list(_use_cases(prompts)),
        "users": list(_users(prompts)),
        "tokens": list(
            _lengths(prompts, lambda item, part: {"kind": item.kind, "split": part}, _asked)
        ),
        "tokens_by_use_case": list(
            _lengths(
                prompts, lambda item, part: {"kind": item.kind, "use case": use_case(item)}, _asked
            )
        ),
        "tokens_by_source": [
            *_lengths(
                prompts,
                lambda item, part: {"kind": item.kind, "source": item.source, "of": "prompts"},
                _asked,
            ),
            *_lengths(
                result.written,
                lambda item, part: {"kind": item.kind, "source": item.source, "of": "completions"},
                lambda item: item.answered,
            ),
        ],
        "languages": list(_languages([item for item, _ in (*result.written, *result.dropped)])),
        "personal": [
            {"found": kind, "pieces": count} for kind, count in sorted(result.personal.items())
        ],
    }


def _flow(result: Cleaned) -> Iterator[Row]:
    reasons = sorted({drop.reason for _, drop in result.dropped})
    for kind in KINDS:
        dropped = collections.Counter(
            drop.reason for item, drop in result.dropped if item.kind == kind
        )
        bad = sum(of == kind for of, _ in result.bad)
        parts = collections.Counter(part for item, part in result.written if item.kind == kind)
        read = bad + dropped.total() + parts.total()
        if read:
            yield {"kind": kind, "read": read, "bad record": bad} | {reason: dropped[reason] for reason in reasons} | {
                part: parts[part] for part in SPLITS
            }  # fmt: skip


def _sizes(written: Sequence[Written], prompts: Sequence[Written]) -> Iterator[Row]:
    records = collections.Counter((item.kind, part) for item, part in written)
    sources = collections.Counter((item.kind, part, item.source) for item, part in prompts)
    for kind, part in _pairs(written):
        labeler, user = sources[kind, part, "labeler"], sources[kind, part, "user"]
        yield {
            "kind": kind,
            "split": part,
            "records": records[kind, part],
            "prompts": labeler + user,
            "labeler": labeler,
            "user": user,
        }


def _use_cases(prompts: Sequence[Written]) -> Iterator[Row]:
    total = collections.Counter(item.kind for item, _ in prompts)
    for (kind, name), count in _counted((item.kind, use_case(item)) for item, _ in prompts):
        yield {"kind": kind, "use case": name, "prompts": count, "share": count / total[kind]}


def _users(prompts: Sequence[Written]) -> Iterator[Row]:
    for kind, part in _pairs(prompts):
        counts = collections.Counter(
            item.user
            for item, of in prompts
            if (item.kind, of) == (kind, part) and item.user is not None
        )
        if counts:
            most = max(counts.values())
            yield {
                "kind": kind,
                "split": part,
                "users": len(counts),
                "prompts for each": counts.total() / len(counts),
                "most": most,
            }


def _lengths(
    written: Iterable[Written],
    group: Callable[[Item, str], Row],
    tokens: Callable[[Item], Iterable[int]],
) -> Iterator[Row]:
    found: dict[tuple, list[int]] = collections.defaultdict(list)
    for item, part in written:
        found[tuple(group(item, part).items())] += tokens(item)
    for key, values in sorted(found.items(), key=lambda pair: _rank(value for _, value in pair[0])):
        if values:
            yield dict(key) | describe(values)


def describe(values: Sequence[int]) -> Row:
    """count, mean, std (of the population) and quantiles of at least one number."""
    quantiles = np.percentile(values, list(QUANTILES.values()))
    spread = {name: float(value) for name, value in zip(QUANTILES, quantiles, strict=True)}
    return {
        "count": len(values),
        "mean": float(np.mean(values)),
        "std": float(np.std(values)),
    } | spread


def _languages(items: Sequence[Item]) -> Iterator[Row]:
    looked = [item.language[0] for item in items if item.language[0]]
    for (language,), count in _counted((language,) for language in looked):
        yield {"language": language, "prompts": count, "share": count / len(looked)}


def use_case(item: Item) -> str:
    found = item.record.get("use_case")
    return UNNAMED if found in (None, "") else str(found)


def _asked(item: Item) -> list[int]:
    return [item.asked]


def _pairs(written: Iterable[Written]) -> list[tuple[str, str]]:
    """(kind, split) of all that is there."""
    return sorted({(item.kind, part) for item, part in written}, key=_rank)


def _counted(names: Iterable[tuple[str, ...]]) -> list[tuple[tuple[str, ...], int]]:
    """The most frequent first, within its kind."""
    return sorted(
        collections.Counter(names).items(),
        key=lambda pair: (*_rank(pair[0][:-1]), -pair[1], pair[0]),
    )


def _rank(names: Iterable[str]) -> tuple[tuple[int, str], ...]:
    """Kinds and splits in the order of the paper, all else by name."""
    known = [*KINDS, *SPLITS]
    return tuple((known.index(name) if name in known else len(known), name) for name in names)


def dropped_rows(result: Cleaned) -> Iterator[Row]:
    """dropped.jsonl: a line for each record that is not written, in a fixed order.

    Its text stays where it was.
    """
    for kind, message in sorted(result.bad):
        yield {"kind": kind, "reason": "bad record", "detail": message}
    for item, drop in sorted(result.dropped, key=_place):
        name = {"id": item.record["id"]} if item.record.get("id") is not None else {}
        of = {"of": drop.of} if drop.of else {}
        yield (
            {"kind": item.kind, "place": item.place}
            | name
            | {"reason": drop.reason, "detail": drop.detail}
            | of
        )


def _place(pair: Dropped) -> tuple[str, str, int, str]:
    """Lines of a file in their order."""
    item, (place, _, line) = pair[0], pair[0].place.rpartition(":")
    return item.kind, place, int(line) if line.isdigit() else 0, item.place


def sentences(found: dict[str, list[Row]]) -> str:
    """A line for each kind, for the terminal."""
    lines = []
    for row in found["flow"]:
        gone = {
            key: count
            for key, count in row.items()
            if key not in ("kind", "read", *SPLITS) and count
        }
        why = (
            f" ({', '.join(f'{reason} {count:,}' for reason, count in gone.items())})"
            if gone
            else ""
        )
        kept = ", ".join(f"{part} {row[part]:,}" for part in SPLITS)
        lines.append(
            f"{row['kind']}: {row['read']:,} read, {sum(gone.values()):,} dropped{why}; {kept}"
        )
    return "\n".join(lines)


def page(name: str, found: dict[str, list[Row]]) -> str:
    """summary.md."""
    about = (
        "Made by `instruct-jax data clean`. A prompt of several records counts once; tokens are"
        " those of the config's tokenizer."
    )
    parts = [f"# {_plain(name)}\n\n{about}"]
    parts += [f"## {title}\n\n{table(found[key])}" for key, title in TITLES.items() if found[key]]
    return "\n\n".join(parts) + "\n"


def table(rows: Sequence[Row]) -> str:
    """Rows with the same keys as Markdown; numbers stand to the right."""
    head = list(rows[0])
    sides = ["---" if isinstance(rows[0][key], str) else "--:" for key in head]
    return "\n".join(
        f"| {' | '.join(cells)} |"
        for cells in (head, sides, *([_cell(key, row[key]) for key in head] for row in rows))
    )


def _cell(key: str, value: Any) -> str:
    if isinstance(value, str):
        return _plain(value)
    return (
        percent(value, 1)
        if key == "share"
        else f"{value:,}"
        if isinstance(value, int)
        else number(value, 1)
    )


def _plain(text: str) -> str:
    """Text of the data inside a cell: nothing of it is markup."""
    return plain(" ".join(text.split())).translate(
        {ord(char): f"\\{char}" for char in "\\|*_`<>[]"}
    )
