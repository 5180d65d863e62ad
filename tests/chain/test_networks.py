"""The host loops over a model on the mesh."""

import types

from data import wordtok

from instruct_jax.chain.networks import rows_at_a_time, unknown_ids


def network(parts: int, sample_batch: int = 256):
    sampling = types.SimpleNamespace(parts=lambda axis: parts)
    models = types.SimpleNamespace(sampling=sampling)
    return types.SimpleNamespace(models=models, sample_batch=sample_batch)


def test_few_rows_share_few_programs():
    """Powers of two for each device, so that 40 and 60 prompts run the same compiled function."""
    one = network(1)
    assert [rows_at_a_time(one, n) for n in (0, 1, 2, 3, 40, 60, 64)] == [1, 1, 2, 4, 64, 64, 64]
    assert [rows_at_a_time(one, n) for n in (200, 256, 1000)] == [256] * 3
    eight = network(8)
    assert [rows_at_a_time(eight, n) for n in (1, 9, 40, 60)] == [8, 16, 64, 64]


def test_never_more_than_sample_batch():
    assert rows_at_a_time(network(1, sample_batch=48), 40) == 48


def test_the_ids_that_a_tokenizer_does_not_have():
    words = wordtok.words()
    assert unknown_ids(words, 17) == ()
    assert unknown_ids(words, 20) == (17, 18, 19)
    gap = types.SimpleNamespace(get_vocab=lambda: {"a": 0, "b": 3})
    assert unknown_ids(gap, 5) == (1, 2, 4)
