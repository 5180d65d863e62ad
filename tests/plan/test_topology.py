"""Topologies as a user writes them, and the process that compiles for them."""

import importlib.util

import pytest

from instruct_jax.errors import ConfigError
from instruct_jax.plan.topology import GIB, check_compiler, parse_topology


def test_topologies():
    slice = parse_topology("v5p:4x4x8")
    assert (slice.kind, slice.devices, slice.memory / GIB) == ("v5p", 128, 95.74)
    assert parse_topology("v6e:1x1").devices == 1
    # a job is as fast as its slowest link
    assert [parse_topology(f"h100:{n}").links for n in (8, 16)] == [450e9, 50e9]
    assert parse_topology("cpu:8").memory == parse_topology("cpu:1").memory / 8


BAD = {
    "zebra:8": "'zebra' is unknown; use one of v5e, v5p, v6e, a100",
    "v5p": "'' must be the shape of a slice with 3 sides, such as v5p:4x4x4",
    "v5p:4x4": "'4x4' must be the shape of a slice with 3 sides",
    "v5e:4x4x4": "'4x4x4' must be the shape of a slice with 2 sides, such as v5e:4x4",
    "v6e:3x4": "the first two sides must be even",
    "h100:many": "'many' must be a number of devices, such as h100:8",
    "cpu:0": "'0' must be a number of devices",
}


@pytest.mark.parametrize("text, message", BAD.items(), ids=BAD)
def test_bad_topologies(text, message):
    with pytest.raises(ConfigError) as error:
        parse_topology(text)
    assert str(error.value).startswith(f"--topology {text}: ") and message in str(error.value)


def test_without_the_compiler(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    check_compiler(parse_topology("h100:8"))
    with pytest.raises(
        ConfigError, match=r"v5e:4x4 needs the TPU compiler.*pip install '\.\[tpu\]'"
    ):
        check_compiler(parse_topology("v5e:4x4"))
