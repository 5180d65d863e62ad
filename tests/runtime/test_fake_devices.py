"""A CPU that plays several devices has more threads than devices: with as many, all can wait in
different collectives for ever.
"""

import os

import jax

from instruct_jax.runtime import hosts


def test_there_are_threads_to_spare():
    assert jax.device_count() == 8 and len(os.listdir("/proc/self/task")) > 4 * 8


def test_only_for_fake_devices(monkeypatch):
    monkeypatch.delenv("NPROC", raising=False)
    monkeypatch.setenv("XLA_FLAGS", "")
    hosts.settle_fake_devices()
    assert "NPROC" not in os.environ
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=4")
    hosts.settle_fake_devices()
    assert os.environ["NPROC"] == "32"
    monkeypatch.setenv("NPROC", "5")  # the user's own
    hosts.settle_fake_devices()
    assert os.environ["NPROC"] == "5"
