"""A stage is what it was made from: what is done is skipped, what changed is named, and what only
says how may change.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import small
import userfiles

from instruct_jax.chain import identity, parameters, ppo
from instruct_jax.chain.context import Run
from instruct_jax.chain.graph import Place
from instruct_jax.chain.read import build_run, load_run
from instruct_jax.cli import main
from instruct_jax.feedback import accounts, store
from instruct_jax.feedback.tasks import Reply
from instruct_jax.runtime.folders import finish_stage, locked
from instruct_jax.runtime.metrics import MetricsFile
from instruct_jax.runtime.signals import Interrupted

SFT = small.SFT | {"epochs": 3}
PPO = small.PPO | {"iterations": 3, "save_every": 1}
STAGES = {
    "sft": SFT,
    "aside": {"kind": "sft", **small.SFT, "epochs": 1},
    "reward": {"start": "sft", **small.REWARD},
    "ppo": {"start": "sft", "reward": "reward", **PPO},
}
# dies by SIGKILL after the third step of SFT, in its second epoch
DRIVER = """
import os, signal, sys
from instruct_jax.cli import main
from instruct_jax.runtime.metrics import MetricsFile
from instruct_jax.runtime.signals import Interrupted
write = MetricsFile.write
def write_or_die(self, step, metrics):
    write(self, step, metrics)
    if step == 3:
        os.kill(os.getpid(), signal.SIGKILL)
MetricsFile.write = write_or_die
main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with the files, and runs/a with all its stages."""
    folder = small.make_files(tmp_path_factory.mktemp("identity"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        small.base_run()
        small.run(small.config("a", STAGES))
    return folder


@pytest.fixture
def place(finished, tmp_path, monkeypatch):
    """A copy of it, to work in."""
    shutil.copytree(finished, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    identity._fingerprint.cache_clear()  # of a tokenizer that lay at the same relative path
    return tmp_path / "copy"


def config(**changes):
    """The config of runs/a with other settings of some stages; None takes a stage out."""
    stages = STAGES | changes
    return small.config("a", {name: stage for name, stage in stages.items() if stage is not None})


def notes(run: Path) -> dict[str, str]:
    return {path.parent.name: path.read_text() for path in run.glob("*/done.json")}


def learned(run: Path, stage: str) -> dict:
    """The parameters that a stage left."""
    opened = Run(load_run(run / "config.yaml"), run)
    return jax.device_get(parameters.policy(opened, Place(None, stage)).params)


def same(a, b) -> bool:
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, a, b)))


def test_what_is_done_is_skipped_and_said(place, capsys):
    before = notes(Path("runs/a"))
    small.run(config())
    said = capsys.readouterr().out
    assert [line for line in said.splitlines() if line.endswith("is done")] == [
        f"{name} is done" for name in STAGES
    ]
    assert notes(Path("runs/a")) == before


def other_demonstrations():
    userfiles.write(Path("demos.jsonl"), small.demonstrations(seed=9))


def other_rankings():
    userfiles.write(Path("ranks.jsonl"), small.rankings(seed=9, count=16))


def other_tokenizer():
    """a and b change places."""
    path = Path("tok/tokenizer.json")
    tree = json.loads(path.read_text())
    vocabulary = tree["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    path.write_text(json.dumps(tree))


def nothing():
    pass


CHANGED = {
    "demonstrations": (other_demonstrations, {}, [], "sft", ("data.demonstrations", "demos.jsonl")),
    "rankings": (other_rankings, {}, [], "reward", ("data.rankings", "ranks.jsonl")),
    "tokenizer": (other_tokenizer, {}, [], "sft", ("tokenizer",)),
    "upstream": (
        nothing,
        {"sft": SFT | {"epochs": 4}},
        ["--stages", "ppo"],
        "sft",
        ("settings.epochs: 3 then, 4 now",),
    ),
    "seed": (nothing, {"reward": STAGES["reward"] | {"seed": 5}}, [], "reward", ("seed: 0 then",)),
    "text": (nothing, {}, ["--text.completion_prefix", " "], "sft", ("text.completion_prefix",)),
}


@pytest.mark.parametrize("what", CHANGED)
def test_what_changed_is_named(what, place, capsys):
    """Before anything is computed, and with the three ways out."""
    change, stages, options, stage, parts = CHANGED[what]
    before = notes(Path("runs/a"))
    change()
    assert small.command(config(**stages), *options) == 2
    said = capsys.readouterr().err
    assert f"the stage {stage} in runs/a was made from something else" in said
    for part in (*parts, " then, ", " now"):
        assert part in said
    for way in ("another name", f"--redo {stage}", "another out"):
        assert way in said
    assert notes(Path("runs/a")) == before


def test_redo_makes_a_stage_again_and_what_was_made_from_it(place, capsys):
    run, before = Path("runs/a"), notes(Path("runs/a"))
    small.run(config(sft=SFT | {"epochs": 2}), "--redo", "sft")
    after = notes(run)
    assert [name for name in after if after[name] == before[name]] == ["aside"]
    assert small.note(run, "sft")["inputs"]["settings.epochs"] == 2
    assert len(small.metrics(run, "sft")) == 2 * len(small.metrics(run, "aside"))
    # ... and now it is done
    assert small.command(config(sft=SFT | {"epochs": 2}), "--stages", "ppo") == 0
    assert "ppo is done" in capsys.readouterr().out
    assert notes(run) == after


def test_a_run_that_is_at_work_is_left_alone(place, capsys):
    before = Path("runs/a/config.yaml").read_text()
    with locked(Path("runs/a")):
        assert small.command(config(sft=SFT | {"epochs": 2}), "--redo", "sft") == 2
    assert "runs/a is in use" in capsys.readouterr().err
    assert Path("runs/a/config.yaml").read_text() == before
    assert Path("runs/a/sft/done.json").exists()


def test_a_finished_stage_that_is_no_longer_named_is_still_there(place, capsys):
    """And one that is not finished is not."""
    shutil.rmtree("runs/a/aside")
    further = {"again": {"kind": "sft", "start": "sft", **small.SFT}}
    small.run(config(aside=None, reward=None, ppo=None, **further))
    kept = load_run("runs/a/config.yaml").stages
    assert set(kept) == {"sft", "again", "reward", "ppo"}
    assert main(["export", "runs/a:ppo", "--out", "ppo_folder"]) == 0
    capsys.readouterr()
    small.run(config(again=None))
    assert capsys.readouterr().out.count("is done") == 3  # aside is made again
    assert "again" in load_run("runs/a/config.yaml").stages


def test_a_stage_that_is_made_again_bit_for_bit_is_the_same(place, capsys):
    """What was made from it stays: the way out where its note is damaged."""
    before = notes(Path("runs/a"))
    shutil.rmtree("runs/a/sft")
    small.run(config())
    after = notes(Path("runs/a"))
    assert {name for name in before if before[name] != after[name]} == {"sft"}
    note = json.loads((Path("runs/a") / "sft" / "done.json").read_text())
    assert note["left"]
    inputs = small.note(Path("runs/a"), "ppo")["inputs"]
    assert inputs["uses.start"] == identity.stage_hash(Path("runs/a/sft"))


def test_a_finished_stage_is_what_it_left(tmp_path):
    """And not when it was made; rankings that somebody corrects are others."""

    def made(left: dict[str, int], seconds: float) -> str:
        finish_stage(
            tmp_path, {"seed": 0}, kind="sft", output={}, left=left, seconds=seconds, memory={}
        )
        return identity.stage_hash(tmp_path)

    first = made({"params.w": 1}, seconds=1)
    assert made({"params.w": 1}, seconds=2) == first
    assert made({"params.w": 2}, seconds=1) != first
    rankings = tmp_path / "train.jsonl"
    rankings.write_text('{"ranks": [1, 2]}\n')
    ranked = made({}, seconds=1)
    rankings.write_text('{"ranks": [2, 1]}\n')
    assert made({}, seconds=1) != ranked


def test_a_redo_that_was_stopped_resumes(place, monkeypatch, capsys):
    """The same command resumes; given again when all is done, it makes all again."""

    def stopped(*_):
        raise Interrupted("stopped", 130)

    run, argv = Path("runs/a"), ("--redo", "sft")
    before = notes(run)
    with monkeypatch.context() as patch:
        patch.setattr(ppo, "train", stopped)
        assert small.command(config(), *argv) == 130
    half = notes(run)
    assert half["sft"] != before["sft"] and half["reward"] != before["reward"]
    assert "ppo" not in half
    small.run(config(), *argv)
    done = notes(run)
    assert (done["sft"], done["reward"]) == (half["sft"], half["reward"]) and "ppo" in done
    small.run(config(), *argv)
    assert notes(run)["sft"] != done["sft"]


def test_a_redo_that_was_stopped_takes_other_settings(place, monkeypatch):
    def stopped(*_):
        raise Interrupted("stopped", 130)

    with monkeypatch.context() as patch:
        patch.setattr(ppo, "train", stopped)
        assert small.command(config(), "--redo", "sft") == 130
    small.run(config(sft=SFT | {"epochs": 2}), "--redo", "sft")
    assert small.note(Path("runs/a"), "sft")["inputs"]["settings.epochs"] == 2


HOW = [
    ("--model.remat", "full"),
    ("--model.logprob_chunk", "8"),
    ("--sample_batch", "4"),
    ("--sft.micro_batches", "2"),
    ("--aside.micro_batches", "2"),
    ("--reward.micro_batches", "2"),
    ("--reward.save_every", "7"),
    ("--ppo.micro_batches", "2"),
    ("--ppo.save_every", "2"),
    ("--mesh.data", "2"),
]


def test_how_it_is_computed_may_change(place, capsys):
    before = notes(Path("runs/a"))
    Path("moved").mkdir()
    Path("demos.jsonl").rename("moved/demos.jsonl")  # the same records in another place
    options = [("--data.demonstrations", "[moved/demos.jsonl]"), *HOW]
    small.run(config(), *(part for pair in options for part in pair))
    assert "ppo is done" in capsys.readouterr().out
    assert notes(Path("runs/a")) == before


def test_what_a_run_says_of_models_of_other_runs(place):
    """How they are computed is its own; how they are asked too, where it trains them."""
    text = {"max_prompt": 6, "max_completion": 6, "completion_prefix": " "}
    stages = {"more": {"kind": "sft", "start": "runs/base:sft", **SFT}}
    model = {"remat": "full", "logprob_chunk": 8}
    run = Run(build_run(small.config("b", stages, model=model, text=text), "test"), Path("runs/b"))
    places = {"theirs": Place("runs/base", "sft"), "base": run.place("base", "base")}
    specs = {name: run.spec(place) for name, place in places.items()}
    specs["more"] = run.stage("more").spec
    for name, spec in specs.items():
        assert (spec.model.remat, spec.model.logprob_chunk) == ("full", 8)
        assert spec.model.width == small.MODEL["width"]
        assert spec.text.completion_prefix == ("" if name == "theirs" else " ")


def test_killed_in_the_middle_of_sft(place, tmp_path, monkeypatch, capsys):
    """Changed records are noticed; the same ones give bitwise what an undisturbed run gives; and
    it resumes on other devices, with less memory.
    """
    now = config(aside=None, reward=None, ppo=None)
    whole = learned(Path("runs/a"), "sft")
    losses = [row["sft/nll"] for row in small.metrics(Path("runs/a"), "sft")]
    shutil.rmtree("runs/a")
    assert small.command(now, verb="check") == 0
    command = [sys.executable, "-c", DRIVER, "run", "--config", "a.yaml"]
    cache = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    killed = subprocess.run(command, env=os.environ | {"JAX_COMPILATION_CACHE_DIR": cache})
    assert killed.returncode == -signal.SIGKILL
    assert not Path("runs/a/sft/done.json").exists()
    shutil.copytree(place, tmp_path / "mesh")
    records = Path("demos.jsonl").read_bytes()
    other_demonstrations()
    capsys.readouterr()
    for verb in ("check", "run"):
        assert small.command(now, verb=verb) == 2
        said = capsys.readouterr().err
        assert "the stage sft in runs/a was made from something else" in said
        assert "data.demonstrations" in said and "demos.jsonl" in said
    Path("demos.jsonl").write_bytes(records)
    small.run(now, "--sample_batch", "4")
    assert [row["step"] for row in small.metrics(Path("runs/a"), "sft")] == [1, 2, 3, 4, 5, 6]
    assert same(learned(Path("runs/a"), "sft"), whole)
    monkeypatch.chdir(tmp_path / "mesh")
    options = ["--sft.micro_batches", "2", "--mesh.data", "2", "--model.remat", "full"]
    small.run(now, *options, "--model.logprob_chunk", "8")
    found = [row["sft/nll"] for row in small.metrics(Path("runs/a"), "sft")]
    assert found == pytest.approx(losses, rel=1e-4)


class Killed(BaseException):
    """Ends a run at once, as a signal would."""


def test_killed_in_the_middle_of_ppo(place, monkeypatch):
    """How often it saves may change; the result is bitwise the same."""
    run = Path("runs/a")
    rows, whole = small.metrics(run, "ppo"), learned(run, "ppo")
    shutil.rmtree(run / "ppo")
    write = MetricsFile.write

    def write_or_die(self, step, metrics):
        write(self, step, metrics)
        if step == 2:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(MetricsFile, "write", write_or_die)
        with pytest.raises(Killed):
            small.command(config())
    assert not (run / "ppo" / "done.json").exists()
    small.run(config(), "--ppo.save_every", "3", "--sample_batch", "4")
    assert small.metrics(run, "ppo") == rows
    assert same(learned(run, "ppo"), whole)


def test_labels_of_its_own_samples(place, capsys):
    """SFT -> sample -> label -> export -> reward -> PPO in one run folder (docs/labeling.md), also
    where people label replies to the prompts of the demonstrations.
    """
    run = Path("runs/labels")
    before = small.config("labels", {"sft": small.SFT})
    before["data"]["rankings"] = []
    small.run(before)
    done = notes(run)
    shown = [json.loads(line) for line in Path("demos.jsonl").read_text().splitlines()]
    userfiles.write(Path("asked.jsonl"), [{"prompt": record["prompt"]} for record in shown])
    asked = ["--prompts", "asked.jsonl", "--completions", "2", "--max_tokens", "6"]
    assert main(["sample", f"{run}:sft", *asked, "--out", "samples.jsonl"]) == 0
    # an untrained model says nothing now and then, which nobody can rank
    add = ["--samples", "samples.jsonl", "--store", "labels.db", "--on_bad_record", "skip"]
    assert main(["label", "add", *add]) == 0
    with contextlib.closing(store.open_store("labels.db")) as db:
        accounts.invite(db, "ann", "training", admin=False, now=time.time())
        reply = Reply(ranks=[1, 2], likert=[6, 2], flags=[{}, {}], notes=["", ""])
        while (task := store.lease(db, "ann", 0, 60)) is not None:
            store.submit(db, task, "ann", task, reply, shown=[0, 1], seconds=9, now=5)
    assert main(["label", "export", "--store", "labels.db", "--out", "labels"]) == 0
    reward, ppo = {"start": "sft", **small.REWARD}, {"start": "sft", **small.PPO}
    after = small.config("labels", {"sft": small.SFT, "reward": reward, "ppo": ppo})
    after["data"]["rankings"] = ["labels/rankings.jsonl"]
    capsys.readouterr()
    small.run(after)
    assert "sft is done" in capsys.readouterr().out
    assert notes(run)["sft"] == done["sft"] and set(notes(run)) == {"sft", "reward", "ppo"}
    assert small.note(run, "reward")["output"]["rankings"] > 0


def test_a_further_stage_and_other_prompts(place, capsys):
    """Both are ordinary: all that was done stays as it is."""
    before = notes(Path("runs/a"))
    userfiles.write(Path("more.jsonl"), small.prompts(seed=8, count=24))
    evaluate = {"kind": "evaluate", "models": ["base", "sft"], **small.EVALUATE}
    further = {
        "again": {"kind": "sft", "start": "sft", **small.SFT},
        "evaluate": evaluate,
        "elsewhere": {"data": {"prompts": ["more.jsonl"]}, **evaluate},
    }
    small.run(config(**further))
    after = notes(Path("runs/a"))
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == set(further)
    asked = []
    for stage in ("evaluate", "elsewhere"):
        rows = (Path("runs/a") / stage / "completions.jsonl").read_text().splitlines()
        asked.append({json.loads(row)["prompt"] for row in rows})
        assert "more.jsonl" in small.note(Path("runs/a"), "elsewhere")["inputs"]["data.prompts"]
    here, elsewhere = ({r["prompt"] for r in small.prompts(s, n)} for s, n in ((3, 16), (8, 24)))
    assert asked[0] <= here and asked[1] <= elsewhere and asked[0] != asked[1]
