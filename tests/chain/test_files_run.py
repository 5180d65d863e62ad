"""The whole chain on files: no gold judge, rankings as given, several sources of records."""

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

from instruct_jax.chain.settings import ON_REQUEST, STAGES
from instruct_jax.chain.task import hold_out, hold_out_texts
from instruct_jax.cli import main
from instruct_jax.data.public_sets import ADAPTERS

REAL = Path(__file__).parents[2] / "configs" / "real_small.yaml"
ROOT = os.environ.get("INSTRUCT_JAX_DATA", "")


def read(path: Path):
    return json.loads(path.read_text())


def test_every_stage_is_done(finished):
    stages = [name for name in STAGES if name not in ("ppo_ptx", "report", *ON_REQUEST)]
    assert [name for name in stages if (finished / name / "done.json").exists()] == stages
    for stage in ("pretrain", "sft", "reward", "ppo"):
        sessions = [
            json.loads(line)
            for line in (finished / stage / "sessions.jsonl").read_text().splitlines()
        ]
        assert [s["recompiles_after_warmup"] for s in sessions] == [0], stage


def test_ppo_starts_from_a_model_of_its_own(finished):
    """Its KL is taken to that start, so the first iteration has none; win rates are still against
    SFT.
    """
    first = json.loads((finished / "ppo" / "metrics.jsonl").read_text().splitlines()[0])
    assert first["ppo/kl"] == 0
    assert set(read(finished / "ppo" / "done.json")["inputs"]) == {"select", "reward", "ppo_start"}
    evaluation = read(finished / "evaluate" / "evaluation.json")
    assert {"sft_control", "ppo_start", "ppo"} <= set(evaluation["win_rate_vs_sft"]["1.0"])
    assert evaluation["pretrain_nll"]["ppo_start"] != evaluation["pretrain_nll"]["sft"]


def test_trivial_baselines_stand_beside_what_they_are_for(finished):
    evaluation, summary = (
        read(finished / "evaluate" / "evaluation.json"),
        read(finished / "summary.json"),
    )
    # 10 words: log 10 is 2.3
    assert evaluation["nll_unigram"] == summary["nll_unigram"] and 1 < summary["nll_unigram"] < 3
    held_out = [
        json.loads(line)
        for line in (finished / "compare" / "held_out_prompts.jsonl").read_text().splitlines()
    ]
    pairs = [
        np.sign(len(better) - len(worse))
        for record in held_out
        for i, better in enumerate(record["completions"])
        for worse in record["completions"][i + 1 :]
    ]
    assert len(held_out) == 4
    assert summary["reward_model"]["accuracy_longer"] == pytest.approx((np.mean(pairs) + 1) / 2)
    assert set(evaluation["reward_model"]["per_labeler"]) <= {"of 2", "of 3"}


def test_sigterm_outside_of_training(finished, place, tmp_path):
    """It ends with code 0 and says how to go on; what was half done is done again."""
    shutil.copytree(
        finished, tmp_path / "run", ignore=shutil.ignore_patterns("evaluate", "report.html")
    )
    command = [
        sys.executable,
        "-m",
        "instruct_jax",
        "run",
        "--config",
        "run.yaml",
        *OVERRIDES,
        "--out",
        str(tmp_path / "run"),
    ]
    process = subprocess.Popen(
        command, cwd=place, stderr=subprocess.PIPE, text=True, env=os.environ | {"XLA_FLAGS": ""}
    )
    while not (tmp_path / "run" / "evaluate" / "inputs.json").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 0, said
    assert (
        said.endswith(
            "stopped by SIGTERM; run the same command again to go on from the last checkpoint\n"
        )
        and "Traceback" not in said
    )
    assert not (tmp_path / "run" / "evaluate" / "done.json").exists()


def test_the_report_says_who_judges(finished):
    page = (finished / "report.html").read_text()
    assert read(finished / "evaluate" / "evaluation.json")["judge"] == "reward model"
    assert "The judge is the reward model that PPO was trained on" in page
    assert "trivial baseline" in page and "preferring the longer reply" in page


def test_conversations_are_held_out_whole_and_of_every_kind():
    def records(kind: str) -> list[dict]:
        return [
            {"prompt": [{"role": "user", "content": f"question {i}"}], "id": f"{kind} {i} {k}"}
            for i in range(100)
            for k in range(3)
        ]

    def questions(part: list[dict]) -> set[str]:
        return {record["prompt"][0]["content"] for record in part}

    train, held_out = hold_out(records("rankings"), 0.2, seed=0)
    assert (len(train), len(held_out)) == (240, 60)
    assert not questions(train) & questions(held_out)
    assert questions(hold_out(records("prompts"), 0.1, seed=0)[1]) < questions(held_out)
    assert questions(hold_out(records("prompts"), 0.2, seed=1)[1]) != questions(held_out)
    assert hold_out(records("prompts")[:1], 0.2, seed=0)[1] == []
    # 61 of 300: no conversation is cut
    assert not set.intersection(*map(questions, hold_out(records("rankings"), 0.205, seed=0)))


def test_what_is_named_twice_weighs_twice_and_is_measured_once():
    once = [{"prompt": f"question {i}", "completion": "x"} for i in range(10)]
    train, held_out = hold_out(once * 2, 0.3, seed=0)
    assert len(train) == 14 and len(held_out) == 3
    assert all(train.count(record) == 2 for record in train)
    assert not any(record in train for record in held_out)


def test_the_end_of_a_long_text_is_held_out():
    text = "".join(f"line {i}\n" for i in range(20_000))
    [train], [held_out] = hold_out_texts([{"text": text, "id": "one"}], 0.1, seed=0)
    assert train["text"] + held_out["text"] == text and train["text"].endswith("\n")
    assert len(held_out["text"]) == pytest.approx(0.1 * len(text), abs=20)
    assert held_out["id"] == "one"


CONFIG = ["check", "--config", "run.yaml"]
BAD = {
    "unknown adapter": (
        ["--files.prompts", "[oast:data]"],
        ("oast:data: oast is no known data set", "did you mean oasst?"),
    ),
    "like no other": (
        ["--files.prompts", "[zebra:data]"],
        ("zebra is no known data set", "use one of oasst, hh"),
    ),
    "of another kind": (
        ["--files.texts", "[hh:tok]"],
        ("hh:tok: hh has no texts, only", "another data set"),
    ),
    "folder without the data set": (
        ["--files.prompts", "[oasst:tok]"],
        ("tok/oasst_en100: no such folder", "download the data set there"),
    ),
}


@pytest.mark.parametrize("args, message", BAD.values(), ids=BAD)
def test_bad_adapter(args, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(userfiles.make(tmp_path))
    userfiles.refused(main, [*CONFIG, *args], message, capsys)


def test_missing_folder_is_only_reported_by_check(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(userfiles.make(tmp_path))
    nowhere = ["--files.prompts", "[oasst:nowhere]"]
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
        for part in (f"--files.{key}", json.dumps(value).strip('"'))
    ]
    assert main(["check", "--config", str(REAL), *given]) == 0
    shown = capsys.readouterr().out
    assert (
        "50,258 ids of 50,258 in the model" in shown
        and "2,325 rankings of 4,727 completions" in shown
    )
    assert "427 demonstrations" in shown and "732 prompts" in shown
    assert not list(tmp_path.iterdir())
