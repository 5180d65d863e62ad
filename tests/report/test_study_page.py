import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import synthetic

from instruct_jax.report.study import build_study, mean_path


@dataclasses.dataclass(frozen=True)
class ArmRun:
    arm: str
    seed: int
    folder: Path


def row(step, kl, reward, gold):
    return {
        "step": step,
        "kl": kl,
        "reward": reward,
        "gold": gold,
        "reward_se": 0.1,
        "gold_se": 0.2,
    }


def test_means_over_seeds_by_hand():
    paths = [
        [row(0, 0, 0, 0.5), row(10, 1, 1, 0.6), row(20, 2, 2, 0.7)],
        [row(0, 0, 0, 0.5), row(10, 3, 2, 0.8)],
    ]
    first, second = mean_path(paths)  # step 20 is in one of them only
    assert first == {"step": 0, "kl": 0, "reward": 0, "reward_se": 0, "gold": 0.5, "gold_se": 0}
    assert second["kl"] == 2 and second["reward"] == 1.5 and second["gold"] == pytest.approx(0.7)
    assert second["gold_se"] == pytest.approx(np.std([0.6, 0.8], ddof=1) / 2**0.5)
    assert mean_path(paths[:1])[1]["gold_se"] == 0.2  # one seed: over its prompts


def test_a_page_of_arms_over_seeds(tmp_path):
    finished = [
        ArmRun(arm, seed, synthetic.make_run(tmp_path / arm / f"seed_{seed}"))
        for seed in (0, 1)
        for arm in ("kl_0", "kl_0.3")
    ]
    unfinished = ArmRun("kl_1", 0, tmp_path / "kl_1" / "seed_0")
    unfinished.folder.mkdir(parents=True)
    page = build_study(tmp_path, [*finished, unfinished]).read_text()
    for part in (
        "kl_0.3",
        "wins, seed 1",
        "0.66 (0.63 to 0.69)",
        "Reward and score over KL",
        "Not in this run: an evaluation of the arm kl_1",
    ):
        assert part in page, part
    assert (tmp_path / "over-optimization.png").read_bytes().startswith(b"\x89PNG")
    numbers = json.loads((tmp_path / "summary.json").read_text())
    assert numbers["kl_0"]["models"]["ppo"]["1"] == pytest.approx(
        {"win_rate": 0.66, "low": 0.63, "high": 0.69, "gold": 0.72, "kl": 8.7, "nll": 1.42}
    )
    assert [r["step"] for r in numbers["kl_0"]["path"]["ppo"]] == [0, 2, 4, 6, 8, 10]
