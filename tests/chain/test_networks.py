"""The host loops over a model on the mesh."""

import types
from typing import Any

from instruct_jax.chain.networks import rows_at_a_time


def network(parts: int, sample_batch: int = 256) -> Any:
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
