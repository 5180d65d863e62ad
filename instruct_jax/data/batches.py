"""The batch of a step is a pure function of seed and step, so resuming needs no iterator state.

The records are read as an endless stream of epochs, each shuffled differently; step s takes the
records [s * batch, (s + 1) * batch) of the stream.  The last batch of an epoch therefore wraps
around into the next one: no record is lost and no shape changes.
"""

import bisect
import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import numpy as np

from instruct_jax.data.packing import Ids, Rows, pad_prompts, pad_rows
from instruct_jax.errors import DataError
from instruct_jax.records import PromptBatch, RankingBatch, TokenBatch

Batch = TypeVar("Batch")
Shape = TypeVar("Shape", int, tuple[int, int])
Ranking = tuple[Sequence[Ids], Sequence[int]]  # prompt + completion, K times; ranks, 1 = best
Stream = Callable[[int], np.ndarray]  # number of a batch -> its records, [B]


@dataclasses.dataclass(frozen=True)
class Batches(Generic[Batch]):
    """The batches of a stage, by the number of the step."""

    # (step, rows=all of them) -> those rows of the batch of all hosts together; leaves are numpy
    # arrays
    batch_at: Callable[..., Batch]
    records_at: Stream  # step -> which records are in it
    steps_per_epoch: int


def buckets(lengths: Sequence[int], sizes: Sequence[int]) -> np.ndarray:
    """For each length the index of the smallest size that holds it; the sizes ascend.

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
    if sizes is None:
        sizes = [max(lengths)]
    return [sizes[index] for index in buckets(lengths, sizes)]


def stream(records: np.ndarray, batch: int, seed: int) -> Stream:
    """The batches of an endless stream of epochs of these records, each epoch in its own order."""

    # Not grain: its random access is pure too, but costs 14 us a record (0.06 s for the 4096 rows
    # of a PPO-ptx step) and 0.8 s of import.
    @functools.lru_cache(maxsize=2)
    def shuffled(epoch: int) -> np.ndarray:
        return np.random.default_rng((seed, epoch)).permutation(records)

    def records_of(number: int) -> np.ndarray:
        members = []
        for place in range(number * batch, (number + 1) * batch):
            epoch, position = divmod(place, len(records))
            members.append(shuffled(epoch)[position])
        return np.array(members)

    return records_of


def _source(
    make: Callable[[np.ndarray, np.ndarray, Shape], Batch],
    shapes: Sequence[Shape],
    batch: int,
    seed: int,
    what: str,
) -> Batches[Batch]:
    """Batches of records that have the same shape, where shapes[record] is what a record needs.

    make(records, rows, shape) gives the rows (indices) of the batch of these records.  With several
    shapes, each shape is a stream of its own: an epoch takes batches from them in a shuffled order,
    from each as many as it has (rounded up).  `what` names the records in errors.
    """
    if not shapes:
        raise DataError(f"no {what} to make batches of; check the data file and what was dropped")
    if batch < 1:
        raise DataError(f"batch={batch} must be at least 1")
    by_shape: dict[Shape, list[int]] = {}
    for record, shape in enumerate(shapes):
        by_shape.setdefault(shape, []).append(record)
    distinct = sorted(by_shape)
    streams, counts = [], []
    for shape in distinct:
        records = np.array(by_shape[shape])
        streams.append(stream(records, batch, seed))
        counts.append(math.ceil(len(records) / batch))
    per_epoch = sum(counts)
    in_turn = np.repeat(range(len(distinct)), counts)  # which stream each batch is from

    def locate(step: int) -> tuple[Shape, np.ndarray]:
        if step < 0:
            raise ValueError(f"step={step} must not be negative")
        epoch, position = divmod(int(step), per_epoch)
        order = in_turn
        if len(streams) > 1:
            order = np.random.default_rng((seed, epoch)).permutation(in_turn)
        index = int(order[position])
        before = int((order[:position] == index).sum())  # batches of the stream in this epoch
        number = epoch * counts[index] + before
        return distinct[index], streams[index](number)

    def batch_at(step: int, rows: np.ndarray | None = None) -> Batch:
        shape, records = locate(step)
        if rows is None:
            rows = np.arange(batch)
        return make(records, rows, shape)

    def records_at(step: int) -> np.ndarray:
        _, records = locate(step)
        return records

    return Batches(batch_at, records_at, per_epoch)


def token_batches(rows: Rows, *, batch: int, seed: int) -> Batches[TokenBatch]:
    """Batches of packed rows; every token to be learned weighs the same within its batch."""
    counts = rows.mask.sum(axis=1)
    empty = np.flatnonzero(counts == 0)
    if empty.size:
        raise DataError(
            f"row {int(empty[0])} has no token to learn, so a batch could weigh 0; drop empty"
            " completions and one-token documents"
        )

    def make(records: np.ndarray, part: np.ndarray, size: int) -> TokenBatch:
        own = records[part]
        total = np.float32(counts[records].sum())
        weight = rows.mask[own].astype(np.float32) / total
        return TokenBatch(rows.tokens[own], rows.segments[own], weight)

    count, length = rows.tokens.shape
    return _source(make, [length] * count, batch, seed, "rows")


def ranking_batches(
    rankings: Sequence[Ranking],
    *,
    batch: int,
    seed: int,
    pad: int,
    sizes: Sequence[int] | None = None,
    counts: Sequence[int] | None = None,
) -> Batches[RankingBatch]:
    """Batches with all completions of a prompt in one element.

    `sizes` are the lengths L that may occur, `counts` the numbers of completions K; without them
    there is one of each, the largest of the data set.  A ranking that is one tie weighs 0.
    """
    ks, lengths = [], []
    for completions, ranks in rankings:
        ks.append(len(ranks))
        lengths.append(max(len(ids) for ids in completions))
    distinct = np.array([len(set(ranks)) for _, ranks in rankings])
    has_pair = distinct > 1

    def make(records: np.ndarray, part: np.ndarray, shape: tuple[int, int]) -> RankingBatch:
        k, length = shape
        own = records[part]
        sequences, all_ranks = [], []
        for record in own:
            completions, ranks = rankings[record]
            absent = k - len(ranks)
            sequences += [*completions, *[()] * absent]
            all_ranks.append([*ranks, *[0] * absent])
        tokens, mask = pad_rows(sequences, length, pad=pad)
        pairs = max(has_pair[records].sum(), 1)
        weight = has_pair[own].astype(np.float32) / np.float32(pairs)
        full = (len(own), k, length)
        return RankingBatch(
            tokens.reshape(full),
            mask.reshape(full),
            np.array(all_ranks, np.int32),
            weight,
        )

    fitted_ks = _fitted(ks, counts)
    shapes = list(zip(fitted_ks, _fitted(lengths, sizes), strict=True))
    return _source(make, shapes, batch, seed, "rankings")


def prompt_batches(
    prompts: Sequence[Ids], *, batch: int, seed: int, pad: int, sizes: Sequence[int] | None = None
) -> Batches[PromptBatch]:
    """Batches of prompts, padded on the left to the smallest of `sizes` that holds every one.

    `sizes` are the lengths P that may occur; without them there is one, the largest.
    """

    def make(records: np.ndarray, part: np.ndarray, size: int) -> PromptBatch:
        own = [prompts[record] for record in records[part]]
        tokens, mask = pad_prompts(own, size, pad=pad)
        return PromptBatch(tokens, mask)

    lengths = [len(ids) for ids in prompts]
    return _source(make, _fitted(lengths, sizes), batch, seed, "prompts")
