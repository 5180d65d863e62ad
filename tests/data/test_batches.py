import jax
import numpy as np
import pytest

from instruct_jax.data.batches import buckets, prompt_batches, ranking_batches, token_batches
from instruct_jax.data.packing import chunk_documents, pack
from instruct_jax.errors import DataError

N, BATCH = 23, 5


def rows():
    return pack(chunk_documents([[i + 1] * 8 for i in range(N)], 8), 8, pad=0)


def rankings():
    return [
        ([[i + 1] * (2 + (i + k) % 6) for k in range(2 + i % 3)], [1, *[2] * (1 + i % 3)])
        for i in range(N)
    ]


def prompts():
    return [[i + 1] * (1 + i % 7) for i in range(N)]


SOURCES = {
    "tokens": lambda seed=0: token_batches(rows(), batch=BATCH, seed=seed),
    "rankings": lambda seed=0: ranking_batches(rankings(), batch=BATCH, seed=seed, pad=0),
    "prompts": lambda seed=0: prompt_batches(prompts(), batch=BATCH, seed=seed, pad=0),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_batch_is_a_pure_function_of_seed_and_step(kind):
    one, two = SOURCES[kind](), SOURCES[kind]()
    forward = [one.batch_at(step) for step in range(12)]
    backward = [two.batch_at(step) for step in reversed(range(12))][::-1]
    jax.tree.map(np.testing.assert_array_equal, forward, backward)
    assert any((SOURCES[kind](1).records_at(s) != one.records_at(s)).any() for s in range(2))
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(forward))
    assert len({tuple(leaf.shape for leaf in jax.tree.leaves(batch)) for batch in forward}) == 1


@pytest.mark.parametrize("kind", SOURCES)
def test_every_record_once_an_epoch_and_epochs_differ(kind):
    source = SOURCES[kind]()
    assert source.steps_per_epoch == 5
    stream = np.concatenate([source.records_at(step) for step in range(3 * N)])
    epochs = stream.reshape(-1, N)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(N), (len(epochs), 1)))
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == len(epochs)


def test_token_weights_sum_to_one():
    source = SOURCES["tokens"]()
    for step in range(6):
        batch = source.batch_at(step)
        assert batch.weight.dtype == np.float32 and not batch.weight[:, 0].any()
        np.testing.assert_allclose(batch.weight.sum(), 1, rtol=1e-6)
        assert len(np.unique(batch.weight)) == 2
        np.testing.assert_array_equal(
            batch.tokens[:, 0], source.records_at(step) * 0 + batch.tokens[:, -1]
        )


def test_rankings_weigh_the_same_whatever_their_k():
    source = ranking_batches([*rankings(), ([[1], [2]], [1, 1])], batch=24, seed=0, pad=0)
    batch = source.batch_at(0)
    tied = source.records_at(0) == N
    assert batch.tokens.shape == batch.mask.shape == (24, 4, 7) and batch.ranks.shape == (24, 4)
    np.testing.assert_array_equal(batch.weight, np.where(tied, 0, np.float32(1) / np.float32(23)))
    np.testing.assert_array_equal(batch.mask.any(-1), batch.ranks > 0)
    for row, record in enumerate(source.records_at(0)):
        if record < N:
            completions, ranks = rankings()[record]
            assert batch.ranks[row].tolist() == [*ranks, *[0] * (4 - len(ranks))]
            for k, ids in enumerate(completions):
                assert batch.tokens[row, k][batch.mask[row, k]].tolist() == ids


def test_pairs_are_not_padded_to_the_largest_k():
    data = [([[1]] * k, list(range(1, k + 1))) for k in (2, 2, 3, 4, 2, 4, 2)]
    source = ranking_batches(data, batch=2, seed=0, pad=0, counts=[2, 4])
    seen = []
    for step in range(source.steps_per_epoch):
        k, records = source.batch_at(step).tokens.shape[1], source.records_at(step)
        assert all(len(data[r][1]) <= k and (k == 2) == (len(data[r][1]) == 2) for r in records)
        seen += records.tolist()
    assert set(seen) == set(range(7)) and source.steps_per_epoch == 4


def test_all_tied_batch_weighs_nothing():
    batch = ranking_batches([([[1], [2]], [1, 1])], batch=2, seed=0, pad=0).batch_at(0)
    np.testing.assert_array_equal(batch.weight, [0, 0])


def test_prompts_are_padded_on_the_left():
    source = SOURCES["prompts"]()
    batch = source.batch_at(3)
    assert batch.tokens.shape == (BATCH, 7)
    for row, record in enumerate(source.records_at(3)):
        size = len(prompts()[record])
        assert batch.mask[row].tolist() == [False] * (7 - size) + [True] * size
        assert batch.tokens[row, 7 - size :].tolist() == prompts()[record]


def test_length_buckets():
    np.testing.assert_array_equal(buckets([3, 9, 4, 10], [4, 10]), [0, 1, 0, 1])
    source = prompt_batches(prompts(), batch=4, seed=0, pad=0, sizes=[2, 4, 7])
    seen = []
    for step in range(source.steps_per_epoch):
        size = source.batch_at(step).tokens.shape[1]
        lengths = [len(prompts()[r]) for r in source.records_at(step)]
        assert all({2: 1, 4: 3, 7: 5}[size] <= n <= size for n in lengths)
        seen.extend(source.records_at(step).tolist())
    assert set(seen) == set(range(N))  # a bucket's last batch is filled up from its own next pass
    again = prompt_batches(prompts(), batch=4, seed=0, pad=0, sizes=[2, 4, 7])
    for step in (17, 3, 9):
        np.testing.assert_array_equal(source.records_at(step), again.records_at(step))


def test_small_data_set_fills_a_large_batch():
    source = prompt_batches([[1], [2]], batch=5, seed=0, pad=0)
    assert source.steps_per_epoch == 1
    assert (
        sorted(np.concatenate([source.records_at(0), source.records_at(1)]).tolist())
        == [0] * 5 + [1] * 5
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: prompt_batches([], batch=2, seed=0, pad=0),
            "no prompts to make batches of; check the data file",
        ),
        (lambda: ranking_batches([], batch=2, seed=0, pad=0), "no rankings to make batches of"),
        (lambda: prompt_batches([[1]], batch=0, seed=0, pad=0), "batch=0 must be at least 1"),
        (
            lambda: prompt_batches([[1] * 9], batch=1, seed=0, pad=0, sizes=[4, 8]),
            "record 0 has 9 tokens.*add a larger one",
        ),
        (
            lambda: prompt_batches([[1]], batch=1, seed=0, pad=0, sizes=[8, 4]),
            r"sizes=\[8, 4\] must ascend",
        ),
        (
            lambda: token_batches(pack([([5], [True])], 4, pad=0), batch=1, seed=0),
            "row 0 has no token to learn",
        ),
    ],
)
def test_nonsense_is_refused(make, message):
    with pytest.raises(DataError, match=message):
        make()
