"""What only the tests of the ops need."""

import importlib
import warnings

import jax
import pytest


@pytest.fixture(autouse=True)
def strict_dtypes():
    """No accidental upcast, no float64.

    Not for the whole suite: strict promotion breaks optax's adamw.
    """
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture(scope="session")
def rlax():
    """An independent implementation to compare with.

    It imports tensorflow_probability, which uses names that newer JAX drops.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module("rlax")
        except (ImportError, AttributeError) as error:
            pytest.skip(f"rlax does not import here: {error}")
