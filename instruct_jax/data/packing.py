"""Makes rectangular rows of ragged sequences.

All pure and deterministic, and no token is ever lost: what does not fit is an error.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from instruct_jax.errors import DataError

Ids = Sequence[int]
Sample = tuple[Ids, Sequence[bool]]  # token ids; True where the token is to be learned
Padded = tuple[np.ndarray, np.ndarray]  # tokens int32, mask bool; both [B, length]


class Rows(NamedTuple):
    """Packed rows: a TokenBatch of the whole data set before it is cut into batches."""

    tokens: np.ndarray  # [R, L] int32
    segments: np.ndarray  # [R, L] int32, 1, 2, ... from the left; 0 = padding
    # [R, L] bool, True = learn to predict this token; never the first of a segment
    mask: np.ndarray


def pack(samples: Sequence[Sample], length: int, *, pad: int) -> Rows:
    """Packs samples by best fit, longest first.

    Each sample goes, whole, into the fullest row that still has room for it.

    lengths 5 3 3 2 1, length 8 ->  [5 3] [3 2 1]
    """
    sizes = [len(ids) for ids, _ in samples]
    if sizes and max(sizes) > length:
        where = int(np.argmax(sizes))
        raise DataError(
            f"sample {where} has {sizes[where]} tokens, a row has length={length}; raise length, or"
            " shorten or drop the sample"
        )
    rows = _best_fit(sizes, length)
    shape = (len(rows), length)
    tokens = np.full(shape, pad, np.int32)
    segments = np.zeros(shape, np.int32)
    mask = np.zeros(shape, bool)
    for row, members in enumerate(rows):
        start = 0
        for segment, sample in enumerate(members, 1):
            ids, learn = samples[sample]
            end = start + len(ids)
            tokens[row, start:end] = ids
            segments[row, start:end] = segment
            mask[row, start + 1 : end] = learn[1:]
            start = end
    return Rows(tokens, segments, mask)


def _best_fit(sizes: Sequence[int], length: int) -> list[list[int]]:
    """The samples of each row, as indices into `sizes`."""
    rows = []
    rows_with: list[list[int]] = [[] for _ in range(length + 1)]  # room -> rows that have it
    rooms = 0  # bit r is set where rows_with[r] is not empty
    for sample in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        size = sizes[sample]
        if size == 0:
            continue
        enough = rooms >> size
        if enough:
            lowest_bit = enough & -enough
            room = size + lowest_bit.bit_length() - 1
            row = rows_with[room].pop()
            if not rows_with[room]:
                rooms ^= 1 << room
        else:
            room, row = length, len(rows)
            rows.append([])
        rows[row].append(sample)
        left = room - size
        rows_with[left].append(row)
        rooms |= 1 << left
    return rows


def chunk_documents(documents: Sequence[Ids], length: int) -> list[Sample]:
    """Documents for `pack`, every token learned once.

    A long one is split, and a piece begins with the last token of the piece before it.

    a b c d e, length 3 ->  a b c | c d e
    """
    if length < 2:
        raise DataError(f"length={length} leaves no token to predict; use at least 2")
    samples = []
    for ids in documents:
        for start in range(0, max(len(ids) - 1, 1), length - 1):
            piece = ids[start : start + length]
            samples.append((piece, [True] * len(piece)))
    return samples


def pad_rows(sequences: Sequence[Ids], length: int, *, pad: int) -> Padded:
    """Sequences padded on the right."""
    sizes = _sizes(sequences, length)
    mask = np.arange(length) < sizes[:, None]
    return _filled(sequences, mask, pad), mask


def pad_prompts(sequences: Sequence[Ids], length: int, *, pad: int) -> Padded:
    """Sequences padded on the left."""
    sizes = _sizes(sequences, length)
    mask = np.arange(length) >= length - sizes[:, None]
    return _filled(sequences, mask, pad), mask


def _sizes(sequences: Sequence[Ids], length: int) -> np.ndarray:
    sizes = np.array([len(ids) for ids in sequences], np.int32)
    if sizes.size and sizes.max() > length:
        raise DataError(
            f"sequence {sizes.argmax()} has {sizes.max()} tokens, the row has length={length};"
            " raise length, or shorten it"
        )
    return sizes


def _filled(sequences: Sequence[Ids], mask: np.ndarray, pad: int) -> np.ndarray:
    """The tokens of all sequences, one after the other, where the mask is True."""
    tokens = np.full(mask.shape, pad, np.int32)
    tokens[mask] = list(itertools.chain.from_iterable(sequences))
    return tokens
