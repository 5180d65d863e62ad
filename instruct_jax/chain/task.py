"""Where a run's records come from: the embedded world, or files.

The stages see a Task and do not know which.
"""

import dataclasses
import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from instruct_jax.chain.settings import FilesConfig, RunConfig, WorldConfig
from instruct_jax.data import public_sets as adapters
from instruct_jax.data.schemas import Record
from instruct_jax.data.tokenize import load_tokenizer
from instruct_jax.runtime.hosts import barrier, is_main

ROUND = 1_000_000_007  # seeds of the world are so far apart from round to round
LONG = 100_000  # characters: a longer text is not held out whole, but its end is
# (prompt record, completion, ended) -> {"score": in [0, 1], ...}
Judge = Callable[[Record, str, bool], dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Rankings:
    """Ranked completions by the group that they measure; `train` is learned from."""

    train: list[Record]
    held_out_prompts: list[Record]  # same labelers, other prompts
    held_out_labelers: list[Record]  # other labelers, other prompts; may be empty
    agreement: float | None  # between two training labelers, where it is known
    noise: float | None = None  # of simulated labelers: they are as noisy in later rounds


@dataclasses.dataclass(frozen=True)
class Task:
    tokenizer: PreTrainedTokenizerBase
    texts: list[Record]
    held_out_texts: list[Record]
    demonstrations: list[Record]
    # compare, compare_held_out, normalisation, tuning, ppo, report
    prompts: dict[str, list[Record]]
    # samples for training, held out; noise, once known -> rankings
    rank: Callable[[list[Record], list[Record], float | None], Rankings]
    judge: Judge | None = None  # the truth that nothing is trained on, where there is one
    # prompt, answer, kind: has copying emerged?
    probes: list[Record] = dataclasses.field(default_factory=list)
    shots: str = ""  # a few-shot prefix for the base model


@dataclasses.dataclass(frozen=True)
class Split:
    """The records of files, as a run divides them."""

    texts: list[Record]
    held_out_texts: list[Record]
    demonstrations: list[Record]  # but for those of held-out prompts
    rankings: list[Record]
    held_out_rankings: list[Record]
    prompts: list[Record]
    held_out_prompts: list[Record]


def open_task(config: RunConfig, folder: Path) -> Task:
    """The task of a run; a world trains its tokenizer into folder/tokenizer the first time."""
    if config.world is not None:
        return _world(config, config.world, folder / "tokenizer")
    assert config.files is not None
    return _files(config, config.files)


def tokenizer_only(config: RunConfig, folder: Path) -> Task:
    """The task of a run without its records, for those who only use its models."""
    return Task(
        task_tokenizer(config, folder / "tokenizer"),
        [],
        [],
        [],
        {},
        lambda samples, held_out, noise: Rankings([], [], [], None),
    )


def files_tokenizer(files: FilesConfig) -> PreTrainedTokenizerBase:
    return load_tokenizer(files.tokenizer, pad_token=files.pad_token, eos_token=files.eos_token)


def task_tokenizer(config: RunConfig, folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer that the task of a run has, or will have once the world has saved it in
    `folder`.  Writes nothing that stays.
    """
    if config.files is not None:
        return files_tokenizer(config.files)
    if folder.exists():
        return load_tokenizer(folder)
    from instruct_jax.world.tokenizer import save_tokenizer

    with tempfile.TemporaryDirectory() as place:
        save_tokenizer(config.seed, place)
        return load_tokenizer(place)


def _world(config: RunConfig, world: WorldConfig, tokenizer: Path) -> Task:
    from instruct_jax.world import corpus, demonstrations, gold, instructions, labelers, probes
    from instruct_jax.world.tokenizer import save_tokenizer

    seed, compare, later = config.seed, config.compare, ROUND * (config.round - 1)
    if is_main() and not tokenizer.exists():
        save_tokenizer(seed, partial := tokenizer.with_name("tokenizer.partial"))
        partial.rename(tokenizer)  # a run that is killed leaves no half of it
    barrier("tokenizer")
    train, others = labelers.labelers(seed, "train"), labelers.labelers(seed, "held_out")
    row_tokens = config.pretrain.batch * config.pretrain.length
    ptx_rows = max(
        (p.iterations * p.updates * p.ptx_batch * p.ptx_length for p in config.rl.values()),
        default=0,
    )
    tokens = max(config.pretrain.steps * row_tokens, min(ptx_rows, 500_000))
    asked = {
        "compare": (compare.prompts, "comparisons"),
        "compare_held_out": (compare.held_out_prompts, "comparisons"),
        "normalisation": (256, "normalisation"),
        "tuning": (256, "tuning"),
        "ppo": (config.ppo.iterations * config.ppo.batch, "ppo"),
        "report": (config.evaluation.prompts, "report"),
    }
    # prompts of each round; all rounds are measured on the same ones
    own = {"compare", "compare_held_out", "ppo"}
    seeds = {name: seed + i + (later if name in own else 0) for i, name in enumerate(asked)}
    prompts = {
        name: instructions.prompts(seeds[name], n, split) for name, (n, split) in asked.items()
    }
    held_out = {r["prompt"] for r in prompts["compare_held_out"]}
    prompts["compare"] = [r for r in prompts["compare"] if r["prompt"] not in held_out]

    def rank(samples: list[Record], held_out: list[Record], noise: float | None) -> Rankings:
        sigma = labelers.calibrate_sigma(seed, held_out, train) if noise is None else noise
        return Rankings(
            train=labelers.rankings(seed + later, samples, train, sigma),
            held_out_prompts=labelers.rankings(seed + later + 1, held_out, train, sigma),
            held_out_labelers=labelers.rankings(seed + later + 2, held_out, others, sigma),
            agreement=labelers.group_agreement(seed + later + 3, held_out, train, sigma),
            noise=sigma,
        )

    return Task(
        tokenizer=load_tokenizer(tokenizer),
        texts=_texts(corpus.documents(seed, tokens)),
        held_out_texts=_texts(corpus.documents(seed + 1_000_003, world.held_out_tokens)),
        demonstrations=demonstrations.demonstrations(
            seed, world.demonstrations, careless=world.careless, lazy=world.lazy
        ),
        prompts=prompts,
        rank=rank,
        judge=lambda record, text, ended: gold.gold_parts(record["task"], text, ended),
        probes=probes.copy_probes(seed, 300),
        shots=demonstrations.few_shot_prefix(seed, config.evaluation.shots),
    )


def load_files(files: FilesConfig) -> dict[str, list[Record]]:
    """All records, by their kind."""
    on_bad: Any = files.on_bad_record
    return {
        kind: [
            record for path in getattr(files, kind) for record in adapters.load(kind, path, on_bad)
        ]
        for kind in adapters.SCHEMAS
    }


def _files(config: RunConfig, files: FilesConfig) -> Task:
    parts = split(load_files(files), files.held_out, config.seed)
    return Task(
        tokenizer=files_tokenizer(files),
        texts=parts.texts,
        held_out_texts=parts.held_out_texts,
        demonstrations=parts.demonstrations,
        prompts=(_compared(config, parts) if config.samples_ranked else {})
        | {
            "normalisation": parts.prompts[:256],
            "tuning": parts.prompts[:256],
            "ppo": parts.prompts,
            "report": parts.held_out_prompts[: config.evaluation.prompts],
        },
        rank=lambda samples, held_out, noise: Rankings(
            parts.rankings, parts.held_out_rankings, [], None
        ),
    )


def _compared(config: RunConfig, parts: Split) -> dict[str, list[Record]]:
    """The prompts whose completions are ranked: each round goes on where the one before it stopped."""
    cfg, found = config.compare, {}
    for name, count, records in (
        ("compare", cfg.prompts, parts.prompts),
        ("compare_held_out", cfg.held_out_prompts, parts.held_out_prompts),
    ):
        count, start = min(count, len(records)), (config.round - 1) * count
        order = sorted(
            range(len(records)),
            key=lambda i: hashlib.sha256(f"{config.seed} {name} {i}".encode()).digest(),
        )
        found[name] = [records[order[(start + i) % len(order)]] for i in range(count)]
    return found


def split(records: Mapping[str, list[Record]], share: float, seed: int) -> Split:
    """All records of files, by their kind, into what is learned from and what is held out."""
    texts, held_out_texts = hold_out_texts(records["texts"], share, seed)
    rankings, held_out_rankings = hold_out(records["rankings"], share, seed)
    prompts, held_out_prompts = hold_out(records["prompts"], share, seed)
    measured = {_beginning(record) for record in held_out_rankings + held_out_prompts}
    demonstrations = [
        record for record in records["demonstrations"] if _beginning(record) not in measured
    ]
    return Split(
        texts,
        held_out_texts,
        demonstrations,
        rankings,
        held_out_rankings,
        prompts,
        held_out_prompts,
    )


def hold_out(records: list[Record], share: float, seed: int) -> tuple[list[Record], list[Record]]:
    """(training, held out): one order of conversations for all kinds of records, so that what is
    held out of one is (but for the last conversations of the share) held out of the others; the
    turns of a conversation stay together.  A record that occurs twice, as where a config names a
    file twice to let it weigh twice, is trained on twice and measured once."""
    lots = [hashlib.sha256(f"{seed} {_beginning(record)}".encode()).digest() for record in records]
    order = sorted(range(len(records)), key=lambda i: (lots[i], i))
    cut = max(int(len(records) * share), 1) if len(records) > 1 else 0
    while 0 < cut < len(records) - 1 and lots[order[cut]] == lots[order[cut - 1]]:
        cut += 1  # to the end of the conversation
    held_out = {json.dumps(records[i], sort_keys=True): records[i] for i in order[:cut]}
    return [records[i] for i in order[cut:]], list(held_out.values())


def hold_out_texts(
    records: list[Record], share: float, seed: int
) -> tuple[list[Record], list[Record]]:
    """(training, held out): the end of every long text, and some short texts whole."""
    train, held_out = hold_out(
        [record for record in records if len(record["text"]) <= LONG], share, seed
    )
    for record in records:
        text = record["text"]
        if len(text) > LONG:
            at = int(len(text) * (1 - share))
            at = text.find("\n", at) + 1 or at  # between two lines where there are some
            train.append({**record, "text": text[:at]})
            held_out += [{**record, "text": text[at:]}] if text[at:].strip() else []
    return train, held_out


def _beginning(record: Record) -> str:
    """What a conversation began with; a text is its own beginning."""
    prompt = record.get("prompt", record.get("text"))
    return prompt[0]["content"] if isinstance(prompt, list) else str(prompt)


def _texts(texts: list[str]) -> list[Record]:
    return [{"text": text} for text in texts]
