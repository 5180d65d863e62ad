"""data clean: records as they came in to records that are fit to learn from (docs/hygiene.md):
train, valid and test files, what was dropped and why, and a page of counts."""

import collections
import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, TypeVar

from transformers import PreTrainedTokenizerBase

from instruct_jax.cleaning import filters as hygiene
from instruct_jax.cleaning import overlap, personal
from instruct_jax.cleaning import summary as cleaning
from instruct_jax.cleaning.filters import (
    KINDS,
    SPLITS,
    Cleaned,
    Drop,
    Dropped,
    Drops,
    Item,
    Written,
)
from instruct_jax.cleaning.language import Identify, identifier
from instruct_jax.cleaning.overlap import Measured
from instruct_jax.data import public_sets as adapters
from instruct_jax.data.readers import read, write_jsonl
from instruct_jax.data.schemas import Record
from instruct_jax.data.tokenize import encode_completion, encode_prompt, load_tokenizer
from instruct_jax.errors import DataError, RunError, require
from instruct_jax.runtime.folders import check_run, open_run, write_atomic
from instruct_jax.runtime.progress import StageProgress

T = TypeVar("T")
R = TypeVar("R")
DROPPED = "dropped.jsonl"
EVERY = 1000  # records between two movements of the bar


@dataclasses.dataclass(frozen=True)
class CleanFiles:
    """Keys of a run's section `files`, with the same meaning."""

    tokenizer: str  # lengths are counted with it
    pad_token: str | None = None
    eos_token: str | None = None
    prompts: tuple[str, ...] = ()
    demonstrations: tuple[str, ...] = ()
    rankings: tuple[str, ...] = ()
    on_bad_record: Literal["error", "skip"] = "error"  # skip: bad records are among the dropped

    def __post_init__(self):
        named = [*self.prompts, *self.demonstrations, *self.rankings]
        require(
            bool(named),
            "files names no records; give at least one of prompts, demonstrations, rankings",
        )
        for kind in KINDS:
            paths = getattr(self, kind)
            require(
                len(set(paths)) == len(paths),
                f"files.{kind}={list(paths)} names a file twice; remove one of them",
            )


@dataclasses.dataclass(frozen=True)
class LanguagesConfig:
    """Needs the extra `language`."""

    keep: tuple[str, ...] = ("en",)  # ISO 639 codes
    sure: float = 0.9  # least probability of another language that drops a prompt

    def __post_init__(self):
        require(
            len(self.keep) >= 1,
            "languages.keep=[] must name at least one; set languages to null to keep all",
        )
        require(0 <= self.sure <= 1, f"languages.sure={self.sure} must lie in [0, 1]")


@dataclasses.dataclass(frozen=True)
class OverlapConfig:
    """Evaluation sets that nothing may be learned from."""

    files: dict[
        str, str
        # PATH: FIELD; any file of records, and the field that holds text, a list of texts, or
        # messages
    ]
    ngram: int = 13  # words; shorter texts are compared whole
    # an n-gram in more prompts than this is a common phrase and counts for nothing
    common: int = 10

    def __post_init__(self):
        require(self.ngram >= 1, f"overlap.ngram={self.ngram} must be at least 1")
        require(self.common >= 1, f"overlap.common={self.common} must be at least 1")


@dataclasses.dataclass(frozen=True)
class PersonalConfig:
    """Personal data in the training split."""

    action: Literal["mask", "drop"] = "mask"  # what becomes of it, or of the records that hold it
    # finds more, with the extra `pii`; null = the regular expressions alone
    library: Literal["presidio"] | None = None


@dataclasses.dataclass(frozen=True)
class CleanConfig:
    out: str  # a new folder
    files: CleanFiles
    seed: int = 0  # of the split, and of which duplicate stays
    max_prompt: int | None = 1024  # tokens; null = any number
    max_completion: int | None = 1024
    languages: LanguagesConfig | None = None  # null = prompts of all languages stay
    overlap: OverlapConfig | None = None  # null = no evaluation sets to be kept apart
    exact: bool = True  # drop duplicates
    # characters; of the prompts that begin with the same ones, one stays; null = all
    prefix: int | None = 200
    per_user: int | None = 200  # prompts of each kind; null = any number
    valid: float = 0.1  # share of users
    test: float = 0.1
    pii: PersonalConfig | None = PersonalConfig()  # null = nothing is looked for

    def __post_init__(self):
        require(self.seed >= 0, f"seed={self.seed} must not be negative")
        for key in ("max_prompt", "max_completion", "prefix", "per_user"):
            value = getattr(self, key)
            require(
                value is None or value >= 1, f"{key}={value} must be at least 1; null turns it off"
            )
        require(
            0 <= self.valid and 0 <= self.test and self.valid + self.test < 1,
            f"valid={self.valid} + test={self.test} must lie in [0, 1)",
        )


@dataclasses.dataclass(frozen=True)
class Tools:
    """What the steps need besides records; None = the step is off."""

    tokenizer: PreTrainedTokenizerBase
    identify: Identify | None
    against: Measured | None
    finder: personal.Find | None


def clean(config: CleanConfig, *, overwrite: bool = False) -> str:
    """Writes the folder config.out, whole or not at all; returns the counts in words.

    `overwrite` makes one again.
    """
    out = Path(config.out)
    partial = out.with_name(f"{out.name}.partial")
    _check_out(out, overwrite)
    shutil.rmtree(partial, ignore_errors=True)
    check_run(partial)  # can it be made?
    result = cleaned(config)
    open_run(partial, dataclasses.asdict(config))
    for part in SPLITS:
        for kind in KINDS:
            if records := [
                item.record for item, of in result.written if (item.kind, of) == (kind, part)
            ]:
                write_jsonl(partial / part / f"{kind}.jsonl", records)
    write_jsonl(partial / DROPPED, cleaning.dropped_rows(result))
    facts = cleaning.facts(result)
    write_atomic(partial / "summary.json", json.dumps(facts, indent=1) + "\n")
    write_atomic(partial / "summary.md", cleaning.page(out.resolve().name, facts))
    if out.exists():
        shutil.rmtree(out)
    partial.rename(out)
    return cleaning.sentences(facts)


def cleaned(config: CleanConfig) -> Cleaned:
    """What to write of all that the config names, and why not the rest."""
    tools = _tools(config)
    items, bad = _read(config.files, tools)
    items, dropped = hygiene.in_order(items, config.seed), []
    for step in _screens(config, tools):
        drops = step(items)
        dropped += [(items[i], drop) for i, drop in drops.items()]
        items = hygiene.without(items, drops)
    written = list(
        zip(items, hygiene.split(items, config.seed, config.valid, config.test), strict=True)
    )
    found: dict[str, int] = {}
    if config.pii and tools.finder:
        written, private, found = _without_personal_data(
            written, tools, drop=config.pii.action == "drop"
        )
        dropped += private
    items = hygiene.distinct_ids([item for item, _ in written])
    return Cleaned(
        [(item, part) for item, (_, part) in zip(items, written, strict=True)], dropped, bad, found
    )


def _tools(config: CleanConfig) -> Tools:
    """All of them before any record is read: what is not installed, or not here, shows at once."""
    identify = identifier(config.languages.keep) if config.languages else None
    finder = (
        (personal.finder_with_presidio() if config.pii.library else personal.find)
        if config.pii
        else None
    )
    tok = load_tokenizer(
        config.files.tokenizer, pad_token=config.files.pad_token, eos_token=config.files.eos_token
    )
    return Tools(
        tok, identify, _evaluation_sets(config.overlap) if config.overlap else None, finder
    )


def _evaluation_sets(config: OverlapConfig) -> Measured:
    texts = []
    for path, field in config.files.items():
        records = read(overlap.field_schema(field), path)
        texts += [
            (place, text)
            for place, record in zip(records.places, records, strict=True)
            for text in record["texts"]
        ]
    return overlap.measured(texts, config.ngram)


def _read(files: CleanFiles, tools: Tools) -> tuple[list[Item], list[tuple[str, str]]]:
    """The items of all files, and (kind, message) of the records that are none."""
    items, bad = [], []
    for kind in KINDS:
        for path in getattr(files, kind):
            records = adapters.load(kind, path, files.on_bad_record)
            bad += [(kind, message) for message in records.dropped]
            placed = list(zip(records.places, records, strict=True))
            items += _each(
                f"{kind} {path}",
                placed,
                lambda pair, kind=kind: _item(kind, pair[0], pair[1], tools),
            )
    return items, bad


def _item(kind: str, place: str, record: Record, tools: Tools) -> Item:
    try:
        return hygiene.make_item(
            kind, place, record, *_tokens(record, tools.tokenizer), tools.identify
        )
    except DataError as error:  # of the tokenizer
        raise DataError(f"{place}: {error}") from error


def _tokens(record: Record, tok: PreTrainedTokenizerBase) -> tuple[int, tuple[int, ...]]:
    """Tokens of the prompt, and of each completion with its EOS."""
    return len(encode_prompt(tok, record["prompt"])), tuple(
        len(encode_completion(tok, text)) for text in hygiene.completions(record)
    )


def _screens(config: CleanConfig, tools: Tools) -> Iterator[Callable[[list[Item]], Drops]]:
    """The steps before the split that are on, in their order; docs/hygiene.md says why this one."""
    yield lambda items: hygiene.too_long(items, config.max_prompt, config.max_completion)
    if languages := config.languages:
        yield lambda items: hygiene.other_language(items, languages.keep, languages.sure)
    if (sets := config.overlap) and (against := tools.against):
        yield lambda items: overlap.overlapping(
            items, _each("overlap", items, lambda item: overlap.hits(item, against)), sets.common
        )
    if config.exact:
        yield hygiene.duplicates
    if prefix := config.prefix:
        yield lambda items: hygiene.shared_prefixes(items, prefix)
    if most := config.per_user:
        yield lambda items: hygiene.over_cap(items, most)


def _without_personal_data(
    written: Sequence[Written], tools: Tools, *, drop: bool
) -> tuple[list[Written], list[Dropped], dict[str, int]]:
    """What is left to write, what is dropped, and how many pieces of each kind were found; only the
    training split is looked at.
    """
    finder = tools.finder
    assert finder is not None
    kept, dropped, found = [], [], collections.Counter()
    looked = _each(
        "personal data",
        written,
        lambda pair: personal.masked(pair[0].record, finder) if pair[1] == "train" else ({}, {}),
    )
    for (item, part), (record, counts) in zip(written, looked, strict=True):
        found.update(counts)
        if counts and drop:
            dropped.append((item, Drop("personal data", ", ".join(sorted(counts)))))
        elif counts:
            asked, answered = _tokens(record, tools.tokenizer)
            kept.append(
                (dataclasses.replace(item, record=record, asked=asked, answered=answered), part)
            )
        else:
            kept.append((item, part))
    return kept, dropped, dict(found)


def _each(name: str, values: Sequence[T], work: Callable[[T], R]) -> list[R]:
    """work(value) of every value, with a bar."""
    found = []
    with StageProgress(name, step=0, total=len(values)) as progress:
        for number, value in enumerate(values, 1):
            found.append(work(value))
            if number % EVERY == 0 or number == len(values):
                progress.update(number, {})
    return found


def _check_out(out: Path, overwrite: bool) -> None:
    if out.exists() and not overwrite:
        raise RunError(
            f"{out} exists; choose another folder, remove it, or make it again with --overwrite"
        )
    if out.exists() and not (out / DROPPED).is_file():
        raise RunError(
            f"{out} was not made by data clean, it has no {DROPPED}, so --overwrite leaves it"
            " alone; choose another folder"
        )
