"""Ragged sequences to rectangular rows.

Pure, deterministic, and no token is ever lost: what does not fit is an error.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from instruct_jax.errors import DataError

Ids = Sequence[int]
Sample = tuple[Ids, Sequence[bool]]  # token ids; True where the token is to be learned


class Rows(NamedTuple):
    """Packed rows: a TokenBatch of the whole data set before it is cut into batches."""

    tokens: np.ndarray  # [R, L] int32
    segments: np.ndarray  # [R, L] int32, 1, 2, ... from the left; 0 = padding
    # [R, L] bool, True = learn to predict this token; never the first of a segment
    mask: np.ndarray


def pack(samples: Sequence[Sample], length: int, *, pad: int) -> Rows:
    """Best fit, longest first: each sample goes, whole, into the fullest row that still has room
    for it.

    lengths 5 3 3 2 1, length 8 ->  [5 3] [3 2 1]
    """
    sizes = [len(ids) for ids, _ in samples]
    if sizes and max(sizes) > length:
        where = int(np.argmax(sizes))
        raise DataError(
            f"sample {where} has {sizes[where]} tokens, a row has length={length}; raise length, or"
            " shorten or drop the sample"
        )
    rows: list[list[int]] = []  # sample numbers
    with_room: list[list[int]] = [[] for _ in range(length + 1)]  # room -> rows
    rooms = 0  # bit r is set where with_room[r] is not empty
    for sample in sorted(range(len(samples)), key=lambda i: -sizes[i]):
        size, fits = sizes[sample], rooms >> sizes[sample]
        if size == 0:
            continue
        if fits:
            room = size + (fits & -fits).bit_length() - 1
            row = with_room[room].pop()
            rooms ^= 0 if with_room[room] else 1 << room
        else:
            room, row = length, len(rows)
            rows.append([])
        rows[row].append(sample)
        with_room[room - size].append(row)
        rooms |= 1 << (room - size)
    packed = Rows(
        np.full((len(rows), length), pad, np.int32),
        np.zeros((len(rows), length), np.int32),
        np.zeros((len(rows), length), bool),
    )
    for row, members in enumerate(rows):
        start = 0
        for segment, sample in enumerate(members, 1):
            ids, learn = samples[sample]
            end = start + len(ids)
            packed.tokens[row, start:end] = ids
            packed.segments[row, start:end] = segment
            packed.mask[row, start + 1 : end] = learn[1:]
            start = end
    return packed


def chunk_documents(documents: Sequence[Ids], length: int) -> list[Sample]:
    """Documents for `pack`, every token learned once.  A long one is split; a piece begins with the
    last token of the piece before it.

    a b c d e, length 3 ->  a b c | c d e
    """
    if length < 2:
        raise DataError(f"length={length} leaves no token to predict; use at least 2")
    pieces = [
        ids[start : start + length]
        for ids in documents
        for start in range(0, max(len(ids) - 1, 1), length - 1)
    ]
    return [(piece, [True] * len(piece)) for piece in pieces]


def pad_rows(sequences: Sequence[Ids], length: int, *, pad: int) -> tuple[np.ndarray, np.ndarray]:
    """(tokens [B, L] int32, mask [B, L] bool), padded on the right."""
    return _pad(sequences, length, pad, left=False)


def pad_prompts(
    sequences: Sequence[Ids], length: int, *, pad: int
) -> tuple[np.ndarray, np.ndarray]:
    """(tokens [B, P] int32, mask [B, P] bool), padded on the left."""
    return _pad(sequences, length, pad, left=True)


def _pad(
    sequences: Sequence[Ids], length: int, pad: int, *, left: bool
) -> tuple[np.ndarray, np.ndarray]:
    sizes = np.array([len(ids) for ids in sequences], np.int32)
    if sizes.size and sizes.max() > length:
        raise DataError(
            f"sequence {sizes.argmax()} has {sizes.max()} tokens, the row has length={length};"
            " raise length, or shorten it"
        )
    column = np.arange(length)[None, :]
    mask = column >= length - sizes[:, None] if left else column < sizes[:, None]
    tokens = np.full(mask.shape, pad, np.int32)
    tokens[mask] = [i for ids in sequences for i in ids]
    return tokens, mask
