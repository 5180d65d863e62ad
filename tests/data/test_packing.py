import numpy as np
import pytest

from instruct_jax.data.packing import chunk_documents, pack, pad_prompts, pad_rows
from instruct_jax.errors import DataError

PAD = 0


def samples(n=200, longest=16, seed=0):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, longest + 1, n)
    return [
        (rng.integers(1, 50, size).tolist(), (rng.random(size) < 0.7).tolist()) for size in sizes
    ]


def segments_of(rows):
    """[(ids, mask)] read back from the rows."""
    found = []
    for tokens, segments, mask in zip(*rows, strict=True):
        for segment in range(1, segments.max() + 1):
            found.append((tokens[segments == segment].tolist(), mask[segments == segment].tolist()))
    return found


def test_pack_table():
    rows = pack(
        [
            ([1] * 3, [True] * 3),
            ([2] * 5, [False] * 5),
            ([3], [True]),
            ([4] * 4, [False, False, True, True]),
        ],
        8,
        pad=PAD,
    )
    np.testing.assert_array_equal(rows.tokens, [[2, 2, 2, 2, 2, 1, 1, 1], [4, 4, 4, 4, 3, 0, 0, 0]])
    np.testing.assert_array_equal(
        rows.segments, [[1, 1, 1, 1, 1, 2, 2, 2], [1, 1, 1, 1, 2, 0, 0, 0]]
    )
    np.testing.assert_array_equal(
        rows.mask.astype(int), [[0, 0, 0, 0, 0, 0, 1, 1], [0, 0, 1, 1, 0, 0, 0, 0]]
    )
    assert [a.dtype for a in rows] == [np.int32, np.int32, bool]


def test_pack_loses_nothing():
    given = samples()
    found = segments_of(pack(given, 16, pad=PAD))
    assert sorted(found) == sorted((ids, [False, *learn[1:]]) for ids, learn in given)


def test_pack_is_deterministic_and_best_fit():
    given = samples(1000)
    one, two = pack(given, 16, pad=PAD), pack(given, 16, pad=PAD)
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a, b)
    rooms = []  # slow twin: best fit, longest first
    for size in sorted((len(ids) for ids, _ in given), reverse=True):
        fitting = [row for row, room in enumerate(rooms) if room >= size]
        if fitting:
            rooms[min(fitting, key=rooms.__getitem__)] -= size
        else:
            rooms.append(16 - size)
    assert sorted((one.segments == 0).sum(axis=1)) == sorted(rooms)


def test_padding_is_on_the_right_and_segments_ascend():
    rows = pack(samples(), 16, pad=PAD)
    real = rows.segments > 0
    assert (np.diff(real.astype(int), axis=1) <= 0).all()
    assert (np.diff(rows.segments, axis=1)[real[:, 1:]] >= 0).all()
    assert not rows.mask[~real].any() and not rows.mask[:, 0].any()


def test_too_long_is_an_error():
    with pytest.raises(DataError, match="sample 1 has 9 tokens.*length=8; raise length"):
        pack([([1], [True]), ([1] * 9, [True] * 9)], 8, pad=PAD)
    with pytest.raises(DataError, match="sequence 0 has 3 tokens.*length=2; raise length"):
        pad_rows([[1, 2, 3]], 2, pad=PAD)
    with pytest.raises(DataError, match="length=1 leaves no token"):
        chunk_documents([[1, 2]], 1)


def test_chunks_learn_every_token_once():
    assert [ids for ids, _ in chunk_documents([[1, 2, 3, 4, 5], [6, 7], [8, 9, 10]], 3)] == [
        [1, 2, 3],
        [3, 4, 5],
        [6, 7],
        [8, 9, 10],
    ]
    documents = [
        list(range(100 * i, 100 * i + size)) for i, size in enumerate([2, 3, 7, 8, 9, 15, 16, 50])
    ]
    rows = pack(chunk_documents(documents, 8), 8, pad=-1)
    assert sorted(rows.tokens[rows.mask].tolist()) == sorted(
        token for document in documents for token in document[1:]
    )


def test_padding():
    tokens, mask = pad_rows([[1, 2], [], [3, 4, 5]], 3, pad=9)
    np.testing.assert_array_equal(tokens, [[1, 2, 9], [9, 9, 9], [3, 4, 5]])
    np.testing.assert_array_equal(mask, [[1, 1, 0], [0, 0, 0], [1, 1, 1]])
    tokens, mask = pad_prompts([[1, 2], [3, 4, 5]], 4, pad=9)
    np.testing.assert_array_equal(tokens, [[9, 9, 1, 2], [9, 3, 4, 5]])
    np.testing.assert_array_equal(mask, [[0, 0, 1, 1], [0, 1, 1, 1]])
    assert tokens.dtype == np.int32 and mask.dtype == bool
