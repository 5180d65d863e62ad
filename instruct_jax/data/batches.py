"""The batch of a step is a pure function of seed and step, so resuming needs no iterator state.

The records are read as an endless stream of epochs, each shuffled differently; step s takes the records [s * batch, (s + 1) * batch) of the
stream.  The last batch of an epoch therefore wraps around into the next one: no record is lost and no shape changes.
"""

import bisect
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import numpy as np

from instruct_jax.data.errors import DataError
from instruct_jax.data.packing import Ids, Rows, pad_prompts, pad_rows
from instruct_jax.records import PromptBatch, RankingBatch, TokenBatch

Batch = TypeVar("Batch")
Ranking = tuple[Sequence[Ids], Sequence[int]]  # prompt + completion, K times; ranks, 1 = best


@dataclasses.dataclass(frozen=True)
class Batches(Generic[Batch]):
    batch_at: Callable[[int], Batch]  # step -> batch of all hosts together; leaves are numpy arrays
    records_at: Callable[[int], np.ndarray]  # step -> which records are in it, [B]
    steps_per_epoch: int


def buckets(lengths: Sequence[int], sizes: Sequence[int]) -> np.ndarray:
    """For each length the number of the smallest size that holds it; the sizes ascend.

    lengths 3 9 4, sizes 4 10 -> 0 1 0
    """
    if list(sizes) != sorted(set(sizes)):
        raise DataError(f"sizes={list(sizes)} must ascend and differ; sort them")
    if max(lengths) > sizes[-1]:
        raise DataError(f"record {int(np.argmax(lengths))} has {max(lengths)} tokens, the largest of sizes={list(sizes)}; add a larger one")
    return np.array([bisect.bisect_left(sizes, n) for n in lengths])


def stream(records: np.ndarray, batch: int, seed: int) -> Callable[[int], np.ndarray]:
    """number of a batch -> its records, [batch]."""

    # Not grain: its random access is pure too, but costs 14 us a record (0.06 s for the 4096 rows of a PPO-ptx step) and 0.8 s of import.
    @functools.lru_cache(maxsize=2)
    def shuffled(epoch: int) -> np.ndarray:
        return np.random.default_rng((seed, epoch)).permutation(records)

    def records_of(number: int) -> np.ndarray:
        epochs, positions = np.divmod(np.arange(number * batch, (number + 1) * batch), len(records))
        return np.array([shuffled(int(e))[p] for e, p in zip(epochs, positions, strict=True)])

    return records_of


def _source(
    make: Callable[[np.ndarray, int], Batch], lengths: Sequence[int], sizes: Sequence[int], batch: int, seed: int, what: str
) -> Batches[Batch]:
    """`make(records, size)` for every step.  With several sizes, each step's records come from one length bucket, and each bucket is a
    stream of its own: an epoch visits the buckets in a shuffled order, each as often as it has batches (rounded up)."""
    if not len(lengths):
        raise DataError(f"no {what} to make batches of; check the data file and what was dropped")
    if batch < 1:
        raise DataError(f"batch={batch} must be at least 1")
    bucket = buckets(lengths, sizes)
    streams = {b: stream(np.flatnonzero(bucket == b), batch, seed) for b in range(len(sizes)) if (bucket == b).any()}
    counts = {b: -(-int((bucket == b).sum()) // batch) for b in streams}
    per_epoch = sum(counts.values())
    visits = np.repeat(list(counts), list(counts.values()))

    def locate(step: int) -> tuple[int, np.ndarray]:
        if step < 0:
            raise ValueError(f"step={step} must not be negative")
        epoch, position = divmod(int(step), per_epoch)
        order = visits if len(streams) == 1 else np.random.default_rng((seed, epoch)).permutation(visits)
        b = int(order[position])
        return b, streams[b](epoch * counts[b] + int((order[:position] == b).sum()))

    def batch_at(step: int) -> Batch:
        b, records = locate(step)
        return make(records, sizes[b])

    return Batches(batch_at, lambda step: locate(step)[1], per_epoch)


def token_batches(rows: Rows, *, batch: int, seed: int) -> Batches[TokenBatch]:
    """Packed rows; every token to be learned weighs the same within its batch."""
    if rows.mask.size and not rows.mask.any(axis=1).all():
        where = int(np.flatnonzero(~rows.mask.any(axis=1))[0])
        raise DataError(f"row {where} has no token to learn, so a batch could weigh 0; drop empty completions and one-token documents")

    def make(records: np.ndarray, size: int) -> TokenBatch:
        mask = rows.mask[records]
        weight = mask.astype(np.float32) / np.float32(mask.sum())
        return TokenBatch(rows.tokens[records], rows.segments[records], weight)  # pyright: ignore[reportArgumentType]

    length = rows.tokens.shape[1]
    return _source(make, [length] * len(rows.tokens), [length], batch, seed, "rows")


def ranking_batches(
    rankings: Sequence[Ranking], *, batch: int, seed: int, pad: int, sizes: Sequence[int] | None = None
) -> Batches[RankingBatch]:
    """All completions of a prompt in one batch element; K is the largest of the data set.  `sizes` are the lengths L that may occur."""
    most = max((len(ranks) for _, ranks in rankings), default=0)
    lengths = [max(len(ids) for ids in completions) for completions, _ in rankings]

    def make(records: np.ndarray, size: int) -> RankingBatch:
        absent = [[()] * (most - len(rankings[r][1])) for r in records]
        sequences = [ids for r, none in zip(records, absent, strict=True) for ids in (*rankings[r][0], *none)]
        tokens, mask = pad_rows(sequences, size, pad=pad)
        ranks = np.array([[*rankings[r][1], *[0] * len(none)] for r, none in zip(records, absent, strict=True)], np.int32)
        informative = np.array([len(set(rankings[r][1])) > 1 for r in records])  # a pair is left
        weight = informative.astype(np.float32) / np.float32(max(informative.sum(), 1))
        shape = (len(records), most, size)
        return RankingBatch(tokens.reshape(shape), mask.reshape(shape), ranks, weight)  # pyright: ignore[reportArgumentType]

    return _source(make, lengths, [max(lengths, default=1)] if sizes is None else list(sizes), batch, seed, "rankings")


def prompt_batches(prompts: Sequence[Ids], *, batch: int, seed: int, pad: int, sizes: Sequence[int] | None = None) -> Batches[PromptBatch]:
    """Prompts padded on the left to the smallest of `sizes` (the lengths P that may occur) that holds every prompt of the batch."""

    def make(records: np.ndarray, size: int) -> PromptBatch:
        return PromptBatch(*pad_prompts([prompts[r] for r in records], size, pad=pad))  # pyright: ignore[reportArgumentType]

    lengths = [len(ids) for ids in prompts]
    return _source(make, lengths, [max(lengths, default=1)] if sizes is None else list(sizes), batch, seed, "prompts")
