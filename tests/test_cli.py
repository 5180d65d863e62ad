"""The commands as a user calls them."""

import errno
import importlib.metadata
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import pytest
import userfiles

from instruct_jax.cli import Terminated, main
from instruct_jax.errors import NonFiniteError
from instruct_jax.runtime.folders import open_run
from instruct_jax.runtime.signals import Interrupted

ROOT = Path(__file__).parents[1]


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return userfiles.make(tmp_path)


def fake_run(monkeypatch: pytest.MonkeyPatch, run: Callable[..., object]) -> None:
    """Puts `run(config, stages, redo)` in the place of the chain."""
    monkeypatch.setattr("instruct_jax.chain.run.run", run)


def process(*args: str) -> subprocess.CompletedProcess:
    """A process of its own, on a machine where no device can be started."""
    environment = os.environ | {"JAX_PLATFORMS": "none", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "instruct_jax", *args],
        capture_output=True,
        text=True,
        env=environment,
    )


def test_the_good_config_runs(place, monkeypatch, capsys):
    begun = []

    def run(config, stages, redo):
        begun.append((config.out, stages, redo))
        return Path(config.out)

    fake_run(monkeypatch, run)
    words = ["--stages", "pretrain, sft", "--redo", "sft"]
    assert main(["run", "--config", "run.yaml", *words]) == 0
    assert begun == [("runs/a", ["pretrain", "sft"], ["sft"])]
    assert capsys.readouterr() == ("done: runs/a\n", "")
    assert main(["run", "--config", "run.yaml"]) == 0
    assert capsys.readouterr().out == "done: runs/a, see runs/a/report.html\n"


def test_check_shows_what_the_files_make(place, capsys):
    """4 demonstrations of 6 tokens are 2 rows of 16, a batch of 4; 3 of 4 rankings are left to
    learn from.
    """
    stages = "pretrain,sft,reward,select,ppo,evaluate"
    assert main(["check", "--config", "run.yaml", "--stages", stages, "--sft.batch", "1"]) == 0
    shown = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    table = shown[shown.index("stage kind steps batch tokens uses") :]
    assert table[1:8] == [
        "pretrain pretrain 1 4 x 16 64 -",
        "sft sft 2 (1 epoch) 1 x 16 32 start pretrain",
        "reward reward about 1 (1 epoch) 4 prompts x 3 x 12 - start sft",
        "select select - 1 epoch x 11 prompts - start sft, reward reward",
        "ppo ppo 1 8 x (6 + 6), 2 updates of 4 8 episodes, at most 48 sampled start select,"
        " reward reward",
        "evaluate evaluate - 1 prompt - models.base pretrain, models.select select,"
        " models.ppo ppo, reward reward",
        "",
    ]
    models = shown.index("model of parameters trained shape")
    assert shown[models + 1].startswith("pretrain, sft, reward, select, ppo 3,888 all 1 layer,")
    assert {
        "tokenizer 17 ids of 20 in the model",
        "4 demonstrations, 2 rows in sft",
        "4 rankings of 12 completions",
    } <= set(shown)


def test_check_names_what_is_used_from_outside(place, capsys):
    words = ["--ppo.reward", "owner/scorer", "--evaluate.reward", "owner/scorer"]
    stages = ["pretrain", "sft", "reward", "select", "ppo", "evaluate"]
    assert main(["check", "--config", "run.yaml", "--stages", ",".join(stages), *words]) == 0
    shown = capsys.readouterr().out
    assert "start select, reward owner/scorer" in shown
    assert "would stop here):\n  owner/scorer\n" in shown


@pytest.mark.parametrize("rule", ["drop", "truncate_left", "truncate_right"])
def test_long_prompts_are_counted(rule, place, capsys):
    userfiles.write(
        place / "prompts.jsonl", [*userfiles.DATA["prompts.jsonl"], {"prompt": "a " * 10}]
    )
    assert main(["check", "--config", "run.yaml", "--text.on_long", rule]) == 0
    shown = capsys.readouterr().out
    assert (
        f"prompts.jsonl: {12 if rule == 'drop' else 13} records; too long: 1 prompts, 0 completions"
        f" (on_long={rule})" in shown
    )


def test_bad_records_are_skipped_and_listed(place, capsys):
    tied = {"prompt": "a", "completions": ["b", "c", "d"], "ranks": [1, 1, 1]}
    userfiles.write(place / "ranks.jsonl", [*userfiles.DATA["ranks.jsonl"], tied])
    assert main(["check", "--config", "run.yaml", "--data.on_bad_record", "skip"]) == 0
    shown = capsys.readouterr().out
    assert (
        "4 rankings of 12 completions" in shown
        and "ranks.jsonl:5: ranks=[1, 1, 1] is one tie" in shown
    )


ENDS = {
    "not finite": (NonFiniteError("ppo step 3: ppo/kl is nan"), 1, "error: ppo step 3"),
    "Ctrl-C outside of a stage": (
        KeyboardInterrupt(),
        130,
        "stopped by Ctrl-C; run the same command again",
    ),
    "Ctrl-C": (Interrupted("ppo was stopped by Ctrl-C", 130), 130, "ppo was stopped"),
    "disk full": (
        OSError(errno.ENOSPC, "No space left on device", "runs/a/x"),
        2,
        "error: cannot write runs/a/x: No space left on device.",
    ),
    "read-only": (
        PermissionError(errno.EACCES, "Permission denied", "runs/a"),
        2,
        "error: cannot write runs/a: Permission denied.",
    ),
    "SIGTERM outside of a stage": (
        Terminated(),
        0,
        "stopped by SIGTERM; run the same command again",
    ),
    "out of memory": (
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\n..."),
        1,
        "error: a device is out of memory (RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.)."
        "  Raise micro_batches of the stage",
    ),
    "machine taken away": (Interrupted("ppo was stopped by SIGTERM", 0), 0, "ppo was stopped"),
}


@pytest.mark.parametrize("error, code, message", ENDS.values(), ids=ENDS)
def test_other_ends(error, code, message, place, monkeypatch, capsys):
    def run(config, stages, redo):
        raise error

    fake_run(monkeypatch, run)
    assert main(["run", "--config", "run.yaml"]) == code
    shown = capsys.readouterr().err
    assert shown.startswith(message) and shown.count("\n") == 1


@pytest.mark.parametrize("option", ["--config", "--stages", "--redo"])
def test_an_option_that_is_given_twice(option, place, capsys):
    value = "run.yaml" if option == "--config" else "sft"
    argv = ["run", "--config", "run.yaml", option, value, option, value]
    userfiles.refused(main, argv, (f"{option} is given twice",), capsys)


def test_import_replaces_no_run(place, capsys):
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 20}
    userfiles.write(place / "theirs" / "config.json", json.dumps(config).encode())
    open_run(place / "runs" / "a", {"stages": {"sft": {}, "ppo": {}}})
    argv = ["import", "theirs", "--out", "runs/a"]
    message = "--out runs/a is a run with the stages sft, ppo; choose a new folder"
    userfiles.refused(main, argv, (message,), capsys)


def test_sigterm_is_heard_during_a_run_only(place, monkeypatch, capsys):
    before = signal.getsignal(signal.SIGTERM)
    fake_run(monkeypatch, lambda config, stages, redo: os.kill(os.getpid(), signal.SIGTERM))
    assert main(["run", "--config", "run.yaml"]) == 0
    assert capsys.readouterr().err.startswith("stopped by SIGTERM; run the same command again")
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_bug_keeps_its_traceback(place, monkeypatch):
    fake_run(monkeypatch, lambda config, stages, redo: {}["a bug"])
    with pytest.raises(KeyError):
        main(["run", "--config", "run.yaml"])


def test_bad_input_in_a_process(place):
    found = process("run", "--config", "run.yaml", "--data.prompts", "[nowhere.jsonl]")
    assert found.returncode == 2 and not found.stdout
    assert (
        found.stderr.startswith("error: nowhere.jsonl: no such file")
        and found.stderr.count("\n") == 1
    )


def test_check_in_a_process(place):
    """No device, nothing written, nothing but the text."""
    before = sorted(place.rglob("*"))
    found = process("check", "--config", "run.yaml")
    assert found.returncode == 0 and not found.stderr
    assert "run folder     runs/a (new)" in found.stdout
    assert sorted(place.rglob("*")) == before


@pytest.mark.alone
@pytest.mark.parametrize(
    "args", [["--help"], ["run", "--help"], ["replay", "--help"]], ids=" ".join
)
def test_help_is_quick(args):
    """It imports nothing heavy; 1 s leaves room for a busy machine."""
    code = (
        "import sys, instruct_jax.cli as c; c.main(sys.argv[1:]); print(sorted({'jax', 'numpy',"
        " 'yaml'} & set(sys.modules)))"
    )
    started = time.monotonic()
    found = subprocess.run(
        [sys.executable, "-c", code, *args],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert "usage: instruct-jax" in found.stdout and found.stdout.endswith("[]\n")
    assert time.monotonic() - started < 1


def test_version(capsys):
    assert main(["--version"]) == 0
    ours, jax = importlib.metadata.version("instruct-jax"), importlib.metadata.version("jax")
    python = platform.python_version()
    assert capsys.readouterr().out == f"instruct-jax {ours} (jax {jax}, python {python})\n"


def test_a_study_is_no_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    study = str(ROOT / "configs" / "over_optimisation.yaml")
    assert main(["run", "--config", study]) == 2
    assert f"use instruct-jax study --config {study}" in capsys.readouterr().err
