"""The command `data clean`: makes records that are fit to learn from (docs/hygiene.md).

It writes train, valid and test files, what was dropped and why, and a page of counts.
"""

import dataclasses
import json
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, TypeVar

from transformers import PreTrainedTokenizerBase

from instruct_jax.cleaning import filters, overlap, personal, summary
from instruct_jax.cleaning.filters import (
    KINDS,
    Bad,
    Cleaned,
    Drop,
    Dropped,
    Drops,
    Item,
    Written,
)
from instruct_jax.cleaning.language import Identify, identifier
from instruct_jax.cleaning.overlap import EvaluationText
from instruct_jax.data import public_sets
from instruct_jax.data.readers import read, write_jsonl
from instruct_jax.data.schemas import Record
from instruct_jax.data.tokenize import encode_completion, encode_prompt, load_tokenizer
from instruct_jax.errors import DataError, RunError, require
from instruct_jax.runtime.folders import check_run, open_run, require_local, write_atomic
from instruct_jax.runtime.progress import StageProgress

T = TypeVar("T")
R = TypeVar("R")
DROPPED = "dropped.jsonl"
EVERY = 1000  # records between two updates of the progress bar


@dataclasses.dataclass(frozen=True)
class CleanData:
    """The records to clean: keys of a run's section `data`, with the same meaning."""

    tokenizer: str  # lengths are counted with it
    pad_token: str | None = None
    eos_token: str | None = None
    prompts: tuple[str, ...] = ()
    demonstrations: tuple[str, ...] = ()
    rankings: tuple[str, ...] = ()
    columns: dict[str, str | None] = dataclasses.field(default_factory=dict)
    on_bad_record: Literal["error", "skip"] = "error"  # skip: bad records are among the dropped

    def __post_init__(self):
        require(
            any(getattr(self, kind) for kind in KINDS),
            "data names no records; give at least one of prompts, demonstrations, rankings",
        )
        for kind in KINDS:
            paths = getattr(self, kind)
            require(
                len(set(paths)) == len(paths),
                f"data.{kind}={list(paths)} names a file twice; remove one of them",
            )


@dataclasses.dataclass(frozen=True)
class LanguagesConfig:
    """Languages of prompts, for which the extra `language` is needed."""

    keep: tuple[str, ...] = ("en",)  # ISO 639 codes
    min_confidence: float = 0.9  # least probability of another language that drops a prompt

    def __post_init__(self):
        require(
            len(self.keep) >= 1,
            "languages.keep=[] must name at least one; set languages to null to keep all",
        )
        require(
            0 <= self.min_confidence <= 1,
            f"languages.min_confidence={self.min_confidence} must lie in [0, 1]",
        )


@dataclasses.dataclass(frozen=True)
class OverlapConfig:
    """Evaluation sets that nothing may be learned from."""

    # PATH: FIELD; any file of records, and the field that holds text, a list of texts, or messages
    files: dict[str, str]
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
    """The config of `data clean`."""

    out: str  # a new folder
    data: CleanData
    seed: int = 0  # of the split, and of which duplicate stays
    max_prompt: int | None = 1024  # tokens; null = any number
    max_completion: int | None = 1024
    languages: LanguagesConfig | None = None  # null = prompts of all languages stay
    overlap: OverlapConfig | None = None  # null = not compared with evaluation sets
    exact: bool = True  # drop duplicates
    # characters; of the prompts that begin with the same ones, one stays; null = all
    prefix: int | None = 200
    per_user: int | None = 200  # prompts of each kind; null = any number
    valid: float = 0.1  # share of users
    test: float = 0.1
    pii: PersonalConfig | None = PersonalConfig()  # null = not searched for

    def __post_init__(self):
        require(self.seed >= 0, f"seed={self.seed} must not be negative")
        for key in ("max_prompt", "max_completion", "prefix", "per_user"):
            value = getattr(self, key)
            require(
                value is None or value >= 1, f"{key}={value} must be at least 1; null turns it off"
            )
        shares = self.valid + self.test
        require(
            self.valid >= 0 and self.test >= 0 and shares < 1,
            f"valid={self.valid} + test={self.test} must lie in [0, 1)",
        )


@dataclasses.dataclass(frozen=True)
class Tools:
    """What the steps need besides records; None = the step is off."""

    tokenizer: PreTrainedTokenizerBase
    identify: Identify | None
    evaluation: EvaluationText | None
    finder: personal.Find | None


def clean(config: CleanConfig, *, overwrite: bool = False) -> str:
    """Writes the folder config.out, whole or not at all; returns the counts in words.

    RunError where the folder exists; `overwrite` replaces one that data clean made.
    """
    out = Path(config.out)
    partial = out.with_name(f"{out.name}.partial")
    require_local(config.out, "out")
    _check_out(out, overwrite)
    shutil.rmtree(partial, ignore_errors=True)
    check_run(partial)  # before the work, whether the folder can be made
    result = cleaned(config)
    open_run(partial, dataclasses.asdict(config))
    files = defaultdict(list)
    for item, part in result.written:
        files[part, item.kind].append(item.record)
    for (part, kind), records in files.items():
        write_jsonl(partial / part / f"{kind}.jsonl", records)
    write_jsonl(partial / DROPPED, summary.dropped_rows(result))
    facts = summary.facts(result)
    name = out.resolve().name
    write_atomic(partial / "summary.json", json.dumps(facts, indent=1) + "\n")
    write_atomic(partial / "summary.md", summary.page(name, facts))
    if out.exists():
        shutil.rmtree(out)
    partial.rename(out)
    return summary.sentences(facts)


def cleaned(config: CleanConfig) -> Cleaned:
    """What to write of all that the config names, and why the rest is left out."""
    tools = _tools(config)
    items, bad = _read(config.data, tools)
    items = filters.in_order(items, config.seed)
    dropped: list[Dropped] = []
    for step in _steps(config, tools):
        drops = step(items)
        for i, drop in drops.items():
            dropped.append((items[i], drop))
        items = filters.without(items, drops)
    parts = filters.split(items, config.seed, config.valid, config.test)
    written = list(zip(items, parts, strict=True))
    found: dict[str, int] = {}
    if config.pii and tools.finder:
        drop = config.pii.action == "drop"
        written, private, found = _without_personal_data(written, tools, drop=drop)
        dropped += private
    items = filters.distinct_ids([item for item, _ in written])
    parts = [part for _, part in written]
    written = list(zip(items, parts, strict=True))
    return Cleaned(written, dropped, bad, found)


def _tools(config: CleanConfig) -> Tools:
    """Makes all tools before any record is read, so that a missing one is refused at once."""
    identify = evaluation = finder = None
    if config.languages:
        identify = identifier(config.languages.keep)
    if config.pii:
        finder = personal.finder_with_presidio() if config.pii.library else personal.find
    data = config.data
    tok = load_tokenizer(
        data.tokenizer,
        pad_token=data.pad_token,
        eos_token=data.eos_token,
    )
    if config.overlap:
        evaluation = _evaluation_text(config.overlap)
    return Tools(tok, identify, evaluation, finder)


def _evaluation_text(config: OverlapConfig) -> EvaluationText:
    texts = []
    for path, field in config.files.items():
        records = read(overlap.field_schema(field), path)
        for place, record in zip(records.places, records, strict=True):
            texts += [(place, text) for text in record["texts"]]
    return overlap.evaluation_text(texts, config.ngram)


def _read(data: CleanData, tools: Tools) -> tuple[list[Item], list[Bad]]:
    """The items of all files, and the lines that are no records."""
    items = []
    bad = []
    mapped: set[str] = set()
    for kind in KINDS:
        for path in getattr(data, kind):
            records = public_sets.load(kind, path, data.on_bad_record, data.columns)
            bad += [(kind, message) for message in records.dropped]
            mapped |= records.mapped

            def make(placed: tuple[str, Record], kind: str = kind) -> Item:
                place, record = placed
                return _item(kind, place, record, tools)

            placed_records = list(zip(records.places, records, strict=True))
            items += _each(f"{kind} {path}", placed_records, make)
    public_sets.check_columns(data.columns, mapped)
    return items, bad


def _item(kind: str, place: str, record: Record, tools: Tools) -> Item:
    try:
        prompt_tokens, completion_tokens = _tokens(record, tools.tokenizer)
    except DataError as error:  # of the tokenizer
        raise DataError(f"{place}: {error}") from error
    return filters.make_item(kind, place, record, prompt_tokens, completion_tokens, tools.identify)


def _tokens(record: Record, tok: PreTrainedTokenizerBase) -> tuple[int, tuple[int, ...]]:
    """Tokens of the prompt, and of each completion with its EOS."""
    prompt = len(encode_prompt(tok, record["prompt"]))
    replies = [len(encode_completion(tok, text)) for text in filters.completions(record)]
    return prompt, tuple(replies)


def _steps(config: CleanConfig, tools: Tools) -> Iterator[Callable[[list[Item]], Drops]]:
    """The steps before the split that are on, in their order; docs/hygiene.md says why this one."""
    yield lambda items: filters.too_long(items, config.max_prompt, config.max_completion)
    languages = config.languages
    if languages:
        yield lambda items: filters.other_language(items, languages.keep, languages.min_confidence)
    sets = config.overlap
    evaluation = tools.evaluation
    if sets and evaluation:

        def overlapping(items: list[Item]) -> Drops:
            hits = _each("overlap", items, lambda item: overlap.hits(item, evaluation))
            return overlap.overlapping(items, hits, sets.common)

        yield overlapping
    if config.exact:
        yield filters.duplicates
    prefix = config.prefix
    per_user = config.per_user
    if prefix:
        yield lambda items: filters.shared_prefixes(items, prefix)
    if per_user:
        yield lambda items: filters.over_cap(items, per_user)


def _without_personal_data(
    written: Sequence[Written],
    tools: Tools,
    *,
    drop: bool,
) -> tuple[list[Written], list[Dropped], dict[str, int]]:
    """Masks or drops the personal data of the training split.

    Returns what is left to write, what is dropped, and how many pieces of each kind were found.
    """
    finder = tools.finder
    assert finder is not None

    def masked(pair: Written) -> tuple[Record, dict[str, int]]:
        item, part = pair
        if part != "train":
            return {}, {}
        return personal.masked(item.record, finder)

    kept: list[Written] = []
    dropped: list[Dropped] = []
    found: Counter[str] = Counter()
    results = _each("personal data", written, masked)
    for (item, part), (record, counts) in zip(written, results, strict=True):
        found.update(counts)
        if counts and drop:
            drop_of_item = Drop("personal data", ", ".join(sorted(counts)))
            dropped.append((item, drop_of_item))
            continue
        if counts:
            prompt_tokens, completion_tokens = _tokens(record, tools.tokenizer)
            item = dataclasses.replace(
                item,
                record=record,
                prompt_tokens=prompt_tokens,
                completion_tokens=completion_tokens,
            )
        kept.append((item, part))
    return kept, dropped, dict(found)


def _each(name: str, values: Sequence[T], work: Callable[[T], R]) -> list[R]:
    """work(value) of every value, with a progress bar."""
    results = []
    with StageProgress(name, step=0, total=len(values)) as progress:
        for number, value in enumerate(values, 1):
            results.append(work(value))
            if number % EVERY == 0 or number == len(values):
                progress.update(number, {})
    return results


def _check_out(out: Path, overwrite: bool) -> None:
    if not out.exists():
        return
    if not overwrite:
        raise RunError(
            f"{out} exists; choose another folder, remove it, or make it again with --overwrite"
        )
    if not (out / DROPPED).is_file():
        raise RunError(
            f"{out} was not made by data clean, it has no {DROPPED}, so --overwrite leaves it"
            " alone; choose another folder"
        )
