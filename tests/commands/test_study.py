"""Runs that begin with another run's stages, and studies made of them."""

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import userfiles

from instruct_jax.chain.settings import ON_REQUEST, STAGES
from instruct_jax.cli import main
from instruct_jax.commands import study

GIVEN = ["pretrain", "sft", "compare", "reward", "select", "ppo_start"]


def write_study(place: Path, **keys) -> Path:
    path = place / "study.yaml"
    # JSON is YAML
    path.write_text(json.dumps({"out": "runs/study", "base": "run.yaml", "arms": {"a": {}}} | keys))
    return path


@pytest.fixture(scope="module")
def studied(finished: Path) -> Path:
    """A study whose one arm begins with all that `finished` learned before PPO, keeps each PPO
    checkpoint, and measures its twin.
    """
    arm = {
        "start": {"folder": str(finished), "stages": GIVEN},
        "ppo.iterations": 2,
        "ppo.save_every": 1,
        "ppo.keep_every": 1,
        "evaluation.others": {"twin": f"{finished}:sft", "twin_base": f"{finished}:pretrain"},
    }
    place = finished.parents[1]
    path = write_study(place, base=str(finished / "config.yaml"), arms={"again": arm})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr(study, "_wait", lambda command, compiled: main(command))
        assert main(["study", "--config", str(path)]) == 0
    return place / "runs" / "study"


def test_given_stages_are_linked_and_not_run_again(studied, finished):
    folder = studied / "again" / "seed_0"
    for stage in GIVEN:
        assert (folder / stage).resolve() == (finished / stage).resolve()
    assert not (folder / "ppo").is_symlink() and not (folder / "evaluate").is_symlink()
    inputs = [
        json.loads((run / "ppo" / "done.json").read_text())["inputs"] for run in (folder, finished)
    ]
    assert inputs[0] == inputs[1]  # the lineage names the same files


def test_the_way_through_the_kept_checkpoints_begins_at_sft(studied):
    evaluation = json.loads(
        (studied / "again" / "seed_0" / "evaluate" / "evaluation.json").read_text()
    )
    rows = evaluation["over_optimisation"]["ppo"]
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert rows[0]["kl"] == 0 and len({row["kl"] for row in rows}) == 3  # three different policies
    assert all(row["reward"] == row["gold"] for row in rows)  # no judge of its own


def test_models_of_other_runs_are_measured_beside_ours(studied):
    evaluation = json.loads(
        (studied / "again" / "seed_0" / "evaluate" / "evaluation.json").read_text()
    )
    assert evaluation["pretrain_nll"]["twin_base"] == evaluation["pretrain_nll"]["base"]
    # its last epoch, or the chosen one
    assert evaluation["pretrain_nll"]["twin"] == pytest.approx(
        evaluation["pretrain_nll"]["sft"], abs=0.1
    )
    assert {"twin", "twin_base"} <= set(evaluation["win_rate_vs_sft"]["1.0"])
    assert set(evaluation["win_rate_vs_others"]) == {"twin", "twin_base"}
    assert {"base", "sft", "ppo"} <= set(evaluation["win_rate_vs_others"]["twin"])
    assert "against twin_base" in (studied / "again" / "seed_0" / "report.html").read_text()


def test_the_study_sums_up_its_arms(studied):
    found = json.loads((studied / "summary.json").read_text())["again"]
    assert found["models"]["ppo"]["0"]["win_rate"] >= 0 and len(found["path"]["ppo"]) == 3
    page = (studied / "study.html").read_text()
    assert "Reward and score over KL" in page and "twin_base" in page


def test_a_finished_study_runs_nothing(studied, monkeypatch, capsys):
    monkeypatch.chdir(studied.parents[1])
    monkeypatch.setattr(study, "_wait", lambda command, compiled: pytest.fail("ran again"))
    assert main(["study", "--config", "study.yaml"]) == 0
    assert "done: runs/study" in capsys.readouterr().out


def test_arms_are_ordinary_commands(tmp_path):
    userfiles.make(tmp_path)
    arms = {
        "a": {"stages": ["pretrain", "sft"]},
        "b": {"ppo.kl_coef": 0.5, "evaluation.others": {"a": "{out}/a/seed_{seed}:sft"}},
    }
    _, runs = study.load_study(write_study(tmp_path, arms=arms, seeds=[3, 4]), [])
    assert [(run.arm, run.seed) for run in runs] == [("a", 3), ("b", 3), ("a", 4), ("b", 4)]
    only = ["--stages", "pretrain,sft", "--out", "runs/study/a/seed_3", "--seed", "3"]
    assert runs[0].command == ["run", "--config", str(tmp_path / "run.yaml"), *only]
    assert runs[3].command[3:7] == [
        "--ppo.kl_coef",
        "0.5",
        "--evaluation.others",
        '{"a": "runs/study/a/seed_4:sft"}',
    ]
    # its config lacks these sections
    assert runs[3].stages == tuple(
        name for name in STAGES if name not in ("ppo_start", "ppo_ptx", *ON_REQUEST)
    )


BAD = {
    "misspelt key of an arm": (
        {"arms": {"a": {"ppo.kl_coeff": 0.1}}},
        ("study.yaml: arms.a: ppo.kl_coeff=0.1", "did you mean ppo.kl_coef?"),
    ),
    "impossible arm": (
        {"arms": {"a": {"ppo.minibatch": 3}}},
        ("arms.a", "section ppo: batch=8 must be a multiple of minibatch=3"),
    ),
    "unknown stage of an arm": (
        {"arms": {"a": {"stages": ["pretrian"]}}},
        ("arms.a", "did you mean pretrain?"),
    ),
    "arm without a stage": (
        {"arms": {"a": {"stages": []}}},
        ("arms.a: stages=[] must name one besides report",),
    ),
    "arm that is no section": ({"arms": {"a": 3}}, ("arms=", "must be a section of names")),
    "no arms": ({"arms": {}}, ("arms and seeds must each name at least one",)),
    "a seed twice": ({"seeds": [1, 1]}, ("seeds=[1, 1] names one twice",)),
    "missing base": ({"base": "nowhere.yaml"}, ("nowhere.yaml: no such config file",)),
    "no name of a folder": ({"arms": {"a/b": {}}}, ("arms.a/b names a folder",)),
}


@pytest.mark.parametrize("keys, message", BAD.values(), ids=BAD)
def test_bad_study(keys, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(userfiles.make(tmp_path))
    monkeypatch.setattr(study, "_wait", lambda command, compiled: pytest.fail("ran"))
    userfiles.refused(
        main, ["study", "--config", write_study(tmp_path, **keys).name], message, capsys
    )


def test_an_arm_that_fails_ends_the_study(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(userfiles.make(tmp_path))
    path = write_study(tmp_path, arms={"a": {}, "b": {}})
    begun = []
    monkeypatch.setattr(study, "_wait", lambda command, compiled: begun.append(command) or 2)
    assert main(["study", "--config", str(path)]) == 2 and len(begun) == 1
    assert "arms.a, seed 0: exit code 2" in capsys.readouterr().err
    monkeypatch.setattr(study, "_wait", lambda command, compiled: 130)
    assert main(["study", "--config", str(path)]) == 130
    # saved and left after SIGTERM: nothing is done
    monkeypatch.setattr(study, "_wait", lambda command, compiled: 0)
    assert main(["study", "--config", str(path)]) == 0
    assert "the same command goes on" in capsys.readouterr().err


CHILD = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs the tests may ignore it
try:
    print("begun", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    time.sleep(1)  # longer than subprocess.run would wait
    print("saved", flush=True)
    sys.exit(130)
"""


def test_a_signal_is_left_to_the_child(tmp_path):
    """Ctrl-C reaches both processes; the study waits until the child has saved and left, and has
    its exit code.
    """
    (tmp_path / "child.py").write_text(CHILD)
    script = (
        "import signal, sys; from pathlib import Path; signal.signal(signal.SIGINT,"
        " signal.default_int_handler); from instruct_jax.pipeline import study; study.PROGRAM ="
        " [sys.executable, 'child.py']; sys.exit(study._wait([], Path('compiled')))"
    )
    env = os.environ | {"PYTHONPATH": str(Path(study.__file__).parents[2])}
    with subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=env,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as parent:
        assert parent.stdout is not None and parent.stdout.readline() == "begun\n"
        os.killpg(parent.pid, signal.SIGINT)
        assert parent.stdout.readline() == "saved\n"
        assert parent.wait(20) == 130


STARTS = {
    "folder without the stage": (
        "--start.folder runs/none",
        ("start.folder=runs/none has not finished the stage pretrain", "run it there"),
    ),
    "no stages": (
        "--start.folder x --start.stages []",
        ("start.stages=[] must name at least one",),
    ),
    "no folder": ("--start.stages [sft]", ("start.folder is missing",)),
    "others without a stage": (
        "--evaluation.others={a:\\ runs/x}",
        ("evaluation.others.a='runs/x' must be FOLDER:STAGE",),
    ),
    "others that are not there": (
        "--evaluation.others={a:\\ runs/x:sft}",
        ("evaluation.others.a=runs/x:sft", "run that first"),
    ),
    "kept but not saved": (
        "--ppo.keep_every 7",
        ("ppo.keep_every=7 must be a multiple of ppo.save_every=50",),
    ),
}


@pytest.mark.parametrize("args, message", STARTS.values(), ids=STARTS)
def test_bad_start(args, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(userfiles.make(tmp_path))
    for verb in ("check", "run"):
        userfiles.refused(main, [verb, "--config", "run.yaml", *shlex.split(args)], message, capsys)
    assert not (tmp_path / "runs").exists()


def test_a_start_of_another_model_is_refused(finished, monkeypatch, capsys):
    monkeypatch.chdir(finished.parents[1])
    base = [
        "run",
        "--config",
        str(finished / "config.yaml"),
        "--out",
        "runs/other",
        "--start.folder",
        str(finished),
    ]
    assert main([*base, "--model.width", "32"]) == 2
    assert "was run with model.width: 16, and here it is 32" in capsys.readouterr().err
    assert main([*base, "--pretrain.batch", "8"]) == 2
    assert "was run with pretrain.batch: 4, and here it is 8" in capsys.readouterr().err
    assert not Path("runs/other").exists()
