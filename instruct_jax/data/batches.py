"""The batch of a step is a pure function of seed and step, so resuming needs no iterator state.

The records are read as an endless stream of epochs, each shuffled differently; step s takes the
records [s * batch, (s + 1) * batch) of the stream.  The last batch of an epoch therefore wraps
around into the next one: no record is lost and no shape changes.
"""

import bisect
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import numpy as np

from instruct_jax.data.packing import Ids, Rows, pad_prompts, pad_rows
from instruct_jax.errors import DataError
from instruct_jax.records import PromptBatch, RankingBatch, TokenBatch

Batch = TypeVar("Batch")
Shape = TypeVar("Shape", int, tuple[int, int])
Ranking = tuple[Sequence[Ids], Sequence[int]]  # prompt + completion, K times; ranks, 1 = best


@dataclasses.dataclass(frozen=True)
class Batches(Generic[Batch]):
    batch_at: Callable[
        ..., Batch
        # (step, rows=all of them) -> those rows of the batch of all hosts together; leaves are
        # numpy
        # arrays
    ]
    records_at: Callable[[int], np.ndarray]  # step -> which records are in it, [B]
    steps_per_epoch: int


def buckets(lengths: Sequence[int], sizes: Sequence[int]) -> np.ndarray:
    """For each length the number of the smallest size that holds it; the sizes ascend.

    lengths 3 9 4, sizes 4 10 -> 0 1 0
    """
    if list(sizes) != sorted(set(sizes)):
        raise DataError(f"sizes={list(sizes)} must ascend and differ; sort them")
    if max(lengths) > sizes[-1]:
        raise DataError(
            f"record {int(np.argmax(lengths))} has {max(lengths)} tokens, the largest of"
            f" sizes={list(sizes)}; add a larger one"
        )
    return np.array([bisect.bisect_left(sizes, n) for n in lengths])


def _fitted(lengths: Sequence[int], sizes: Sequence[int] | None) -> list[int]:
    """For each length the smallest size that holds it; without sizes the largest length."""
    if not lengths:
        return []
    sizes = [max(lengths)] if sizes is None else sizes
    return [sizes[b] for b in buckets(lengths, sizes)]


def stream(records: np.ndarray, batch: int, seed: int) -> Callable[[int], np.ndarray]:
    """number of a batch -> its records, [batch]."""

    # Not grain: its random access is pure too, but costs 14 us a record (0.06 s for the 4096 rows
    # of a PPO-ptx step) and 0.8 s of import.
    @functools.lru_cache(maxsize=2)
    def shuffled(epoch: int) -> np.ndarray:
        return np.random.default_rng((seed, epoch)).permutation(records)

    def records_of(number: int) -> np.ndarray:
        epochs, positions = np.divmod(np.arange(number * batch, (number + 1) * batch), len(records))
        return np.array([shuffled(int(e))[p] for e, p in zip(epochs, positions, strict=True)])

    return records_of


def _source(
    make: Callable[[np.ndarray, np.ndarray, Shape], Batch],
    shapes: Sequence[Shape],
    batch: int,
    seed: int,
    what: str,
) -> Batches[Batch]:
    """`make(records, rows, shape)` for every step: the rows (indices) of the batch of these
    records, where shapes[record] is what a record needs.  With several shapes, each step's records
    have one shape, and each shape is a stream of its own: an epoch visits them in a shuffled order,
    each as often as it has batches (rounded up)."""
    if not len(shapes):
        raise DataError(f"no {what} to make batches of; check the data file and what was dropped")
    if batch < 1:
        raise DataError(f"batch={batch} must be at least 1")
    distinct = sorted(set(shapes))
    members = [np.flatnonzero([shape == one for shape in shapes]) for one in distinct]
    streams = [stream(records, batch, seed) for records in members]
    counts = [-(-len(records) // batch) for records in members]
    per_epoch = sum(counts)
    visits = np.repeat(range(len(distinct)), counts)

    def locate(step: int) -> tuple[int, np.ndarray]:
        if step < 0:
            raise ValueError(f"step={step} must not be negative")
        epoch, position = divmod(int(step), per_epoch)
        order = (
            visits
            if len(streams) == 1
            else np.random.default_rng((seed, epoch)).permutation(visits)
        )
        b = int(order[position])
        return b, streams[b](epoch * counts[b] + int((order[:position] == b).sum()))

    def batch_at(step: int, rows: np.ndarray | None = None) -> Batch:
        b, records = locate(step)
        return make(records, np.arange(batch) if rows is None else rows, distinct[b])

    return Batches(batch_at, lambda step: locate(step)[1], per_epoch)


def token_batches(rows: Rows, *, batch: int, seed: int) -> Batches[TokenBatch]:
    """Packed rows; every token to be learned weighs the same within its batch."""
    if rows.mask.size and not rows.mask.any(axis=1).all():
        where = int(np.flatnonzero(~rows.mask.any(axis=1))[0])
        raise DataError(
            f"row {where} has no token to learn, so a batch could weigh 0; drop empty completions"
            " and one-token documents"
        )

    counts = rows.mask.sum(axis=1)

    def make(records: np.ndarray, part: np.ndarray, size: int) -> TokenBatch:
        own = records[part]
        weight = rows.mask[own].astype(np.float32) / np.float32(counts[records].sum())
        return TokenBatch(rows.tokens[own], rows.segments[own], weight)  # pyright: ignore[reportArgumentType]

    length = rows.tokens.shape[1]
    return _source(make, [length] * len(rows.tokens), batch, seed, "rows")


def ranking_batches(
    rankings: Sequence[Ranking],
    *,
    batch: int,
    seed: int,
    pad: int,
    sizes: Sequence[int] | None = None,
    counts: Sequence[int] | None = None,
) -> Batches[RankingBatch]:
    """All completions of a prompt in one batch element.  `sizes` are the lengths L that may occur,
    `counts` the numbers of completions K; without them there is one of each, the largest of the
    data set."""
    completions_of = [len(ranks) for _, ranks in rankings]
    lengths = [max(len(ids) for ids in completions) for completions, _ in rankings]

    def make(records: np.ndarray, part: np.ndarray, shape: tuple[int, int]) -> RankingBatch:
        (most, size), own = shape, records[part]
        absent = [[()] * (most - len(rankings[r][1])) for r in own]
        sequences = [
            ids for r, none in zip(own, absent, strict=True) for ids in (*rankings[r][0], *none)
        ]
        tokens, mask = pad_rows(sequences, size, pad=pad)
        ranks = np.array(
            [[*rankings[r][1], *[0] * len(none)] for r, none in zip(own, absent, strict=True)],
            np.int32,
        )
        informative = np.array([len(set(rankings[r][1])) > 1 for r in records])  # a pair is left
        weight = informative[part].astype(np.float32) / np.float32(max(informative.sum(), 1))
        full = (len(own), most, size)
        return RankingBatch(tokens.reshape(full), mask.reshape(full), ranks, weight)  # pyright: ignore[reportArgumentType]

    shapes = list(zip(_fitted(completions_of, counts), _fitted(lengths, sizes), strict=True))
    return _source(make, shapes, batch, seed, "rankings")


def prompt_batches(
    prompts: Sequence[Ids], *, batch: int, seed: int, pad: int, sizes: Sequence[int] | None = None
) -> Batches[PromptBatch]:
    """Prompts padded on the left to the smallest of `sizes` (the lengths P that may occur) that
    holds every prompt of the batch.
    """

    def make(records: np.ndarray, part: np.ndarray, size: int) -> PromptBatch:
        return PromptBatch(*pad_prompts([prompts[r] for r in records[part]], size, pad=pad))  # pyright: ignore[reportArgumentType]

    lengths = [len(ids) for ids in prompts]
    return _source(make, _fitted(lengths, sizes), batch, seed, "prompts")
