"""Where the records of a run come from: the embedded world, or files.  The stages see a Task and do
not know which.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from instruct_jax.chain.settings import DataConfig, RunConfig, StageData, WorldConfig
from instruct_jax.data import public_sets
from instruct_jax.data.held_out import Split, split
from instruct_jax.data.schemas import Record
from instruct_jax.errors import require
from instruct_jax.runtime.hosts import barrier, is_main

ROUND = 1_000_000_007  # seeds of the world are so far apart from round to round
GROUPS = ("train", "held_out_prompts", "held_out_labelers")  # of rankings; train is learned from
KINDS = tuple(public_sets.SCHEMAS)  # of records
N_TUNING_PROMPTS = 256  # prompts on which settings and epochs are chosen

# what prompts are asked for -> split of the world, and whether each round has its own
PURPOSES = {
    "compare": ("comparisons", True),
    "compare_held_out": ("comparisons", True),
    "normalisation": ("normalisation", False),
    "tuning": ("tuning", False),
    "ppo": ("ppo", True),
    "report": ("report", False),
}

# (prompt record, completion, ended) -> {"score": in [0, 1], ...}
GoldScorer = Callable[[Record, str, bool], dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Rankings:
    """Ranked completions by the group that they measure."""

    train: list[Record]
    held_out_prompts: list[Record]  # same labelers, other prompts
    held_out_labelers: list[Record]  # other labelers, other prompts; may be empty
    agreement: float | None = None  # between two training labelers, where it is known
    noise: float | None = None  # of simulated labelers: they are as noisy in later rounds


# (samples to learn from, held-out samples, noise once it is known) -> rankings
Ranker = Callable[[list[Record], list[Record], float | None], Rankings]


@dataclasses.dataclass(frozen=True)
class Task:
    """The records of a run, and what is known about them."""

    texts: Callable[[int], list[Record]]  # at least so many tokens of text, or all there are
    held_out_texts: list[Record]
    demonstrations: list[Record]
    held_out_demonstrations: list[Record]
    rankings: Rankings | None  # that the data brings
    prompts: Callable[[str, int], list[Record]]  # (purpose, at most so many)
    rank: Ranker | None = None  # simulated labelers
    gold_scorer: GoldScorer | None = None  # the truth that nothing is trained on
    # prompt, answer, kind: has copying emerged?
    probes: list[Record] = dataclasses.field(default_factory=list)
    examples: Callable[[int], str] = lambda count: ""  # a few-shot prefix for a base model


def open_task(config: RunConfig, override: StageData | None = None) -> Task:
    """The task of a run, with other files where a stage names its own."""
    if config.world is not None:
        require(
            override is None,
            "data: a stage of the embedded world has no files of its own; remove it",
        )
        return _of_world(config, config.world)
    assert config.data is not None
    return _of_files(config, merged_data(config.data, override))


def merged_data(data: DataConfig, override: StageData | None) -> DataConfig:
    """The files of a run, with those that a stage names in place of its own."""
    if override is None:
        return data
    named = {}
    for kind in KINDS:
        files = getattr(override, kind)
        if files:
            named[kind] = files
    return dataclasses.replace(data, **named)


def save_world_tokenizer(seed: int, folder: Path) -> None:
    """Trains the tokenizer of the world into the folder, the first time."""
    from instruct_jax.world.tokenizer import save_tokenizer

    if is_main() and not folder.exists():
        partial = folder.with_name(f"{folder.name}.partial")
        save_tokenizer(seed, partial)
        partial.rename(folder)  # a run that is killed leaves no half of it
    barrier("tokenizer")


def _of_world(config: RunConfig, world: WorldConfig) -> Task:
    from instruct_jax.world import corpus, demonstrations, gold, instructions, labelers, probes

    seed = config.seed
    later = ROUND * (config.round - 1)
    train = labelers.labelers(seed, "train")
    others = labelers.labelers(seed, "held_out")
    numbers = {name: number for number, name in enumerate(PURPOSES)}

    def prompts(purpose: str, count: int) -> list[Record]:
        part, own_of_round = PURPOSES[purpose]
        shift = later if own_of_round else 0
        return instructions.prompts(seed + numbers[purpose] + shift, count, part)

    def rank(samples: list[Record], held_out: list[Record], noise: float | None) -> Rankings:
        sigma = noise
        if sigma is None:
            sigma = labelers.calibrate_sigma(seed, held_out, train)
        return Rankings(
            train=labelers.rankings(seed + later, samples, train, sigma),
            held_out_prompts=labelers.rankings(seed + later + 1, held_out, train, sigma),
            held_out_labelers=labelers.rankings(seed + later + 2, held_out, others, sigma),
            agreement=labelers.group_agreement(seed + later + 3, held_out, train, sigma),
            noise=sigma,
        )

    return Task(
        texts=functools.cache(lambda tokens: _texts(corpus.documents(seed, tokens))),
        held_out_texts=_texts(corpus.documents(seed + 1_000_003, world.held_out_tokens)),
        demonstrations=demonstrations.demonstrations(
            seed, world.demonstrations, careless=world.careless, lazy=world.lazy
        ),
        held_out_demonstrations=[],
        rankings=None,
        prompts=functools.cache(prompts),
        rank=rank,
        gold_scorer=lambda record, text, ended: gold.gold_parts(record["task"], text, ended),
        probes=probes.copy_probes(seed, 300),
        examples=lambda count: demonstrations.few_shot_prefix(seed, count),
    )


def load_files(data: DataConfig) -> dict[str, list[Record]]:
    """All records, by their kind."""
    on_bad: Any = data.on_bad_record
    found: dict[str, list[Record]] = {}
    for kind in KINDS:
        found[kind] = []
        for path in getattr(data, kind):
            found[kind] += public_sets.load(kind, path, on_bad, data.columns)
    return found


def _of_files(config: RunConfig, data: DataConfig) -> Task:
    parts = split(load_files(data), data.held_out, config.seed)
    given = Rankings(parts.rankings, parts.held_out_rankings, [])
    return Task(
        texts=lambda tokens: parts.texts,
        held_out_texts=parts.held_out_texts,
        demonstrations=parts.demonstrations,
        held_out_demonstrations=parts.held_out_demonstrations,
        rankings=given if given.train else None,
        prompts=lambda purpose, count: _prompts(config, parts, purpose, count),
    )


def _prompts(config: RunConfig, parts: Split, purpose: str, count: int) -> list[Record]:
    if purpose == "report":
        return parts.held_out_prompts[:count]
    if purpose == "ppo":
        return parts.prompts
    if purpose == "compare":
        return _of_round(config, purpose, parts.prompts, count)
    if purpose == "compare_held_out":
        return _of_round(config, purpose, parts.held_out_prompts, count)
    return parts.prompts[:count]


def _of_round(config: RunConfig, purpose: str, records: list[Record], count: int) -> list[Record]:
    """Prompts whose completions are ranked: each round begins where the one before it stopped."""
    count = min(count, len(records))
    start = (config.round - 1) * count

    def place(i: int) -> bytes:
        name = f"{config.seed} {purpose} {i}"
        return hashlib.sha256(name.encode()).digest()

    order = sorted(range(len(records)), key=place)
    chosen = []
    for i in range(start, start + count):
        chosen.append(records[order[i % len(order)]])
    return chosen


def _texts(texts: list[str]) -> list[Record]:
    return [{"text": text} for text in texts]
