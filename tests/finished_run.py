"""One finished run on files, which tests of several folders look at and start from.

tests/conftest.py makes its fixtures known to all of them.
"""

from pathlib import Path

import numpy as np
import pytest
import userfiles


def words(rng, least: int, most: int) -> str:
    return " ".join(rng.choice(list("abcdefghij"), rng.integers(least, most + 1)))


def ranking(rng, k: int) -> dict:
    completions = []
    while len(completions) < k:
        text = words(rng, 1, 4)
        if text not in completions:
            completions.append(text)
    return {
        "prompt": words(rng, 1, 4),
        "completions": completions,
        "ranks": list(range(1, k + 1)),
    }


@pytest.fixture(scope="session")
def place(tmp_path_factory) -> Path:
    """Files of a user: pairs and K = 3, prompts as text and as messages, one of them too long."""
    place, rng = userfiles.make(tmp_path_factory.mktemp("files")), np.random.default_rng(0)
    turns = [
        {"role": "user", "content": "a " * 9},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    files = {
        "texts.jsonl": [{"text": words(rng, 3, 30)} for _ in range(20)],
        "demos.jsonl": [
            {"prompt": words(rng, 2, 4), "completion": words(rng, 1, 4)} for _ in range(12)
        ],
        "ranks.jsonl": [{**ranking(rng, k), "source": f"of {k}"} for k in (2, 3) * 8],
        "prompts.jsonl": [{"prompt": turns}, *({"prompt": words(rng, 1, 12)} for _ in range(15))],
    }
    for name, records in files.items():
        userfiles.write(place / name, records)
    return place


@pytest.fixture(scope="session")
def finished(place) -> Path:
    """A run folder after all stages."""
    from instruct_jax.chain.read import load_run
    from instruct_jax.chain.run import run

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        return place / run(load_run("run.yaml", userfiles.OVERRIDES))
