"""The strictness of the whole suite, and eight CPU devices to test meshes on.  Runs before anything
imports jax.

Warnings are errors (pyproject.toml).
"""

import functools
import os
import pathlib
import re
from typing import Any

# JAX_PLATFORMS=cuda or tpu: for tests/models/test_attention.py
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["HF_HUB_OFFLINE"] = "1"  # no test asks the hub
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
if os.environ["JAX_PLATFORMS"] == "cpu":
    # most of the suite's time is compiling, and these make it a third; tiny models run fast enough
    flags = pathlib.Path(__file__).with_name("xla_flags.txt").read_text()
    os.environ["XLA_FLAGS"] += " " + " ".join(flags.split())

CACHE = (
    pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache"))
    / "instruct_jax"
    / "tests"
)
os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = str(CACHE / "hypothesis")  # its tables of characters
# what one process compiles, none of the others compiles again: workers, and runs that tests start.
# Safe to delete; the second run of the suite compiles little.
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(CACHE)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "0"

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402

from instruct_jax.runtime import hosts  # noqa: E402

pytest_plugins = ["finished_run"]


# what takes longest comes first, so that no worker has it left at the end
FIRST = ("test_hosts.py", "finished run")
USES_FINISHED = re.compile(r"^def \w+\([^)]*\bfinished\b", re.MULTILINE)


@functools.cache
def unit(path: pathlib.Path) -> str:
    """What one worker takes as a whole: a file, or all files that look at the finished run."""
    text = path.read_text("utf-8")
    shared = USES_FINISHED.search(text) and "def finished(" not in text
    return "finished run" if shared else path.name


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    units = {item.path: unit(item.path) for item in items}
    ranks = {path: FIRST.index(name) if name in FIRST else 9 for path, name in units.items()}
    items.sort(key=lambda item: ranks[item.path])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return unit(config.rootpath / nodeid.partition("::")[0])

    return Scheduling(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_configure(config: pytest.Config) -> None:
    jax.config.update("jax_numpy_rank_promotion", "raise")
    hosts.settle_fake_devices()
    jax.config.update("jax_debug_key_reuse", True)
    # the same examples every time, on machines of any speed; nothing is left in the tree
    slow = hypothesis.HealthCheck.too_slow
    hypothesis.settings.register_profile(
        "suite", derandomize=True, deadline=None, database=None, suppress_health_check=[slow]
    )
    hypothesis.settings.load_profile("suite")
