"""Strict dtype promotion for the ops: no accidental upcast, no float64.  Not for the whole suite: it breaks optax's adamw."""

import jax
import pytest


@pytest.fixture(autouse=True)
def strict_dtypes():
    with jax.numpy_dtype_promotion("strict"):
        yield
