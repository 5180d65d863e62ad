"""The whole chain on files: no gold judge, rankings as given, several sources of records."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import userfiles
from userfiles import OVERRIDES

from instruct_jax.chain.identity import stage_hash
from instruct_jax.chain.read import load_run
from instruct_jax.chain.task import open_task
from instruct_jax.cli import main
from instruct_jax.data.public_sets import ADAPTERS

REAL = Path(__file__).parents[2] / "configs" / "real_small.yaml"
ROOT = os.environ.get("INSTRUCT_JAX_DATA", "")


def read(path: Path):
    return json.loads(path.read_text())


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_stage_is_done(finished):
    for stage in load_run(finished / "config.yaml").stages:
        assert (finished / stage / "done.json").exists(), stage
    for stage in ("pretrain", "sft", "reward", "ppo"):
        sessions = rows(finished / stage / "sessions.jsonl")
        assert [s["recompiles_after_warmup"] for s in sessions] == [0], stage


def test_ppo_starts_from_a_model_of_its_own(finished):
    """Its KL is taken to that start, so the first iteration has none; win rates are still against
    the selected SFT epoch.
    """
    assert rows(finished / "ppo" / "metrics.jsonl")[0]["ppo/kl"] == 0
    inputs = read(finished / "ppo" / "done.json")["inputs"]
    assert {"uses.start", "uses.reward"} == {key for key in inputs if key.startswith("uses.")}
    assert inputs["uses.start"] == stage_hash(finished / "ppo_start")
    evaluation = read(finished / "evaluate" / "evaluation.json")
    assert {"select_control", "ppo_start", "ppo"} <= set(evaluation["win_rate"]["1.0"])
    assert evaluation["pretrain_nll"]["ppo_start"] != evaluation["pretrain_nll"]["select"]


def test_trivial_baselines_stand_beside_what_they_are_for(finished):
    summary, reward = read(finished / "summary.json"), read(finished / "reward" / "done.json")
    assert 1 < summary["nll_unigram"] < 3  # 10 words: log 10 is 2.3
    config = load_run(finished / "config.yaml")
    with contextlib.chdir(finished.parents[1]):
        given = open_task(config).rankings
    assert given is not None and given.held_out_prompts
    pairs = []
    for record in given.held_out_prompts:
        for i, better in enumerate(record["completions"]):
            for worse in record["completions"][i + 1 :]:
                pairs.append(np.sign(len(better) - len(worse)))
    longer = summary["reward_models"]["reward"]["accuracy_longer"]
    assert longer == pytest.approx((np.mean(pairs) + 1) / 2)
    assert set(reward["output"]["per_labeler"]) <= {"of 2", "of 3"}


def test_sigterm_outside_of_training(finished, place, tmp_path):
    """It ends with code 0 and says how to go on; what was half done is done again."""
    shutil.copytree(
        finished, tmp_path / "run", ignore=shutil.ignore_patterns("evaluate", "report.html")
    )
    command = [sys.executable, "-m", "instruct_jax", "run", "--config", "run.yaml", *OVERRIDES]
    command += ["--out", str(tmp_path / "run")]
    env = userfiles.environment()
    process = subprocess.Popen(command, cwd=place, stderr=subprocess.PIPE, text=True, env=env)
    while not (tmp_path / "run" / "evaluate" / "inputs.json").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 0, said
    assert (
        said.endswith(
            "stopped by SIGTERM; run the same command again to resume from the last checkpoint\n"
        )
        and "Traceback" not in said
    )
    assert not (tmp_path / "run" / "evaluate" / "done.json").exists()


def test_the_report_says_who_judges(finished):
    page = (finished / "report.html").read_text()
    assert read(finished / "evaluate" / "evaluation.json")["judge"] == "reward model"
    assert "The judge is the reward model" in page
    assert "trivial baseline" in page and "preferring the longer reply" in page


CONFIG = ["check", "--config", "run.yaml"]
BAD = {
    "unknown adapter": (
        ["--data.prompts", "[oast:data]"],
        ("oast:data: oast is no known data set", "did you mean oasst?"),
    ),
    "like no other": (
        ["--data.prompts", "[zebra:data]"],
        ("zebra is no known data set", "use one of oasst, hh"),
    ),
    "of another kind": (
        ["--data.texts", "[hh:tok]"],
        ("hh:tok: hh has no texts, only", "another data set"),
    ),
    "folder without the data set": (
        ["--data.prompts", "[oasst:tok]"],
        ("tok/oasst_en100: no such folder", "download the data set there"),
    ),
}


@pytest.mark.parametrize("args, message", BAD.values(), ids=BAD)
def test_bad_adapter(args, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(userfiles.make(tmp_path))
    userfiles.refused(main, [*CONFIG, *args], message, capsys)


def test_missing_folder_is_only_reported_by_check(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(userfiles.make(tmp_path))
    nowhere = ["--data.prompts", "[oasst:nowhere]"]
    assert main([*CONFIG, *nowhere]) == 0
    assert (
        "data           not found" in (shown := capsys.readouterr().out)
        and "  oasst:nowhere" in shown
    )
    assert main(["run", *CONFIG[1:], *nowhere]) == 2
    assert "nowhere/oasst_en100: no such folder" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.skipif(not ROOT, reason="real data: set INSTRUCT_JAX_DATA to the folder that holds it")
def test_the_config_of_the_real_data(tmp_path, monkeypatch, capsys):
    """The novels take long to read as text; wikitext alone tells as much."""
    monkeypatch.chdir(tmp_path)
    paths = {
        kind: [f"{name}:{ROOT}" for name in ADAPTERS if kind in ADAPTERS[name]]
        for kind in ("demonstrations", "rankings", "prompts")
    }
    places = {"tokenizer": f"{ROOT}/gpt2_bpe", "texts": [f"wikitext:{ROOT}"], **paths}
    given = [
        part
        for key, value in places.items()
        for part in (f"--data.{key}", json.dumps(value).strip('"'))
    ]
    assert main(["check", "--config", str(REAL), *given]) == 0
    shown = capsys.readouterr().out
    assert (
        "50,258 ids of 50,258 in the model" in shown
        and "2,325 rankings of 4,727 completions" in shown
    )
    assert "427 demonstrations" in shown and "732 prompts" in shown
    assert not list(tmp_path.iterdir())
