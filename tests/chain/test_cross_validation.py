"""Reward models across groups of labelers."""

import json
from typing import Any

import numpy as np
import pytest
import userfiles
import yaml

from instruct_jax.chain import reward
from instruct_jax.chain.cross_validation import labeler_groups
from instruct_jax.chain.read import build_run
from instruct_jax.chain.run import run
from instruct_jax.errors import ConfigError


def rankings_of(**counts):
    return [
        {"prompt": f"{who} {i}", "labeler_id": who}
        for who, count in counts.items()
        for i in range(count)
    ]


def test_groups_have_about_as_many_rankings_each():
    groups = labeler_groups(rankings_of(a=50, b=30, c=25, d=20, e=19, f=5), 3, seed=0)
    assert sorted(who for group in groups for who in group) == list("abcdef")
    sizes = {"a": 50, "b": 30, "c": 25, "d": 20, "e": 19, "f": 5}
    assert sorted(sum(sizes[who] for who in group) for group in groups) == [49, 50, 50]


@pytest.mark.parametrize("records, says", [
    (rankings_of(a=3, b=3), "the rankings name 2 labelers"),
    ([*rankings_of(a=3, b=3, c=3), {"prompt": "x"}], "1 of 10 name none"),
])  # fmt: skip
def test_groups_need_labelers(records, says):
    with pytest.raises(ConfigError, match=says):
        labeler_groups(records, 3, seed=0)


def test_cross_validation(finished, monkeypatch):
    """Each model learns from all but its group, and is measured on both sides; `across` and
    `within` divide the held-out pairs.
    """
    place = finished.parents[1]
    monkeypatch.chdir(place)
    records = [json.loads(line) for line in (place / "ranks.jsonl").read_text().splitlines()]
    who = ("ann", "bob", "cid")
    named = [{**record, "labeler_id": who[i % 3]} for i, record in enumerate(records)]
    userfiles.write(place / "named.jsonl", named)
    tree: Any = yaml.safe_load(userfiles.CONFIG) | {"out": "runs/groups"}
    tree["data"] |= {"rankings": ["named.jsonl"], "held_out": 0.25}
    tree["stages"] = {"cross_validation": {"start": "runs/a:sft", "groups": 2, "batch": 4}}
    seen = []
    original = reward.training_on

    def spy(stage, records, name=None):
        seen.append(records)
        return original(stage, records, name)

    monkeypatch.setattr(reward, "training_on", spy)
    config = build_run(tree, "test")
    folder = run(config, ("cross_validation",))
    output = json.loads((folder / "cross_validation" / "done.json").read_text())["output"]
    assert len(output["folds"]) == len(seen) == 2
    for fold, learned in zip(output["folds"], seen, strict=True):
        assert learned
        assert not set(fold["labelers"]) & {r["labeler_id"] for r in learned}
        assert fold["within"]["pairs"] + fold["across"]["pairs"] > 0
        assert fold["across"]["pairs"] > 0
    across = [fold["across"]["accuracy"] for fold in output["folds"]]
    assert output["across"]["mean"] == pytest.approx(np.mean(across))
