"""Runs that use the stages of another run, and studies made of them."""

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import userfiles

from instruct_jax.cli import main
from instruct_jax.commands import study

GIVEN = ("pretrain", "sft", "reward", "select", "ppo_start")


def write_study(place: Path, **keys) -> Path:
    path = place / "study.yaml"
    tree = {"out": "runs/study", "base": "run.yaml", "arms": {"a": {}}} | keys
    path.write_text(json.dumps(tree))  # JSON is YAML
    return path


def read(path: Path) -> dict:
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def studied(finished: Path) -> Path:
    """A study whose one arm makes PPO from the stages of `finished`, keeps each checkpoint of it,
    and measures other policies of that run beside it.
    """
    models = {
        "base": "base",
        "select": f"{finished}:select",
        "ppo": "ppo",
        "twin": f"{finished}:sft",
        "twin_base": f"{finished}:pretrain",
    }
    arm = dict.fromkeys(GIVEN) | {
        "base": f"{finished}:pretrain",
        "ppo.start": f"{finished}:ppo_start",
        "ppo.reward": f"{finished}:reward",
        "ppo.iterations": 2,
        "ppo.save_every": 1,
        "ppo.keep_every": 1,
        "evaluate.models": models,
        "evaluate.reward": f"{finished}:reward",
    }
    place = finished.parents[1]
    path = write_study(place, base=str(finished / "config.yaml"), arms={"again": arm})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr(study, "_wait", lambda command, compiled: main(command))
        assert main(["study", "--config", str(path)]) == 0
    return place / "runs" / "study"


@pytest.fixture
def evaluation(studied) -> dict:
    return read(studied / "again" / "seed_0" / "evaluate" / "evaluation.json")


def test_stages_of_another_run_are_used_and_not_made_again(studied, finished):
    folder = studied / "again" / "seed_0"
    assert {path.parent.name for path in folder.glob("*/done.json")} == {"ppo", "evaluate"}
    ours, theirs = (read(run / "ppo" / "done.json")["inputs"] for run in (folder, finished))
    for key in ("uses.start", "uses.reward"):
        assert ours[key] == theirs[key]  # the lineage names the same files


def test_the_path_through_the_kept_checkpoints_starts_at_the_baseline(evaluation):
    rows = evaluation["over_optimization"]["ppo"]
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert rows[0]["kl"] == 0 and len({row["kl"] for row in rows}) == 3  # three different policies
    assert all(row["reward"] == row["gold"] for row in rows)  # no judge of its own


def test_models_of_other_runs_are_measured_beside_ours(studied, evaluation):
    nll = evaluation["pretrain_nll"]
    assert nll["twin_base"] == nll["base"]
    # its last epoch, or the chosen one
    assert nll["twin"] == pytest.approx(nll["select"], abs=0.1)
    assert {"twin", "twin_base"} <= set(evaluation["win_rate"]["1.0"])
    against = evaluation["win_rate_vs"]
    assert {"base", "select", "twin", "twin_base"} <= set(against)
    assert {"ppo", "best_of_n"} <= set(against["twin"])
    assert "against twin_base" in (studied / "again" / "seed_0" / "report.html").read_text()


def test_the_study_sums_up_its_arms(studied):
    found = read(studied / "summary.json")["again"]
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
        "b": {
            "ppo.kl_coef": 0.5,
            "evaluate.models": {"select": "select", "a": "{out}/a/seed_{seed}:sft"},
        },
    }
    _, runs = study.load_study(write_study(tmp_path, arms=arms, seeds=[3, 4]), [])
    assert [(run.arm, run.seed) for run in runs] == [("a", 3), ("b", 3), ("a", 4), ("b", 4)]
    only = ["--stages", "pretrain,sft", "--out", "runs/study/a/seed_3", "--seed", "3"]
    assert runs[0].command == ["run", "--config", str(tmp_path / "run.yaml"), *only]
    named = {"select": "select", "a": "runs/study/a/seed_4:sft"}
    own = ["--ppo.kl_coef", "0.5", "--evaluate.models", json.dumps(named)]
    assert runs[3].command[-4:] == own
    assert runs[3].stages == ("pretrain", "sft", "reward", "select", "ppo", "evaluate")


BAD = {
    "misspelt key of an arm": (
        {"arms": {"a": {"ppo.kl_coeff": 0.1}}},
        ("study.yaml: arms.a: stages.ppo.kl_coeff=0.1", "did you mean stages.ppo.kl_coef?"),
    ),
    "impossible arm": (
        {"arms": {"a": {"ppo.minibatch": 3}}},
        ("arms.a", "section stages.ppo: batch=8 must be a multiple of minibatch=3"),
    ),
    "unknown stage of an arm": (
        {"arms": {"a": {"stages": ["pretrian"]}}},
        ("arms.a", "did you mean pretrain?"),
    ),
    "arm without a stage": (
        {"arms": {"a": {"stages": []}}},
        ("arms.a: stages=[] must name at least one",),
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
    assert "the same command resumes it" in capsys.readouterr().err


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
        " signal.default_int_handler); from instruct_jax.commands import study; study.PROGRAM ="
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


PLACES = {
    "base without the stage": (
        "--pretrain null --base runs/none:pretrain --data.tokenizer tok",
        ("runs/none:pretrain", "runs/none has not finished a stage pretrain", "run it there first"),
    ),
    "model without a stage": (
        "--evaluate.models [select,./runs/x]",
        ("stages.evaluate.models../runs/x=./runs/x", "no RUN:STAGE"),
    ),
    "model that is not there": (
        "--evaluate.models.select select --evaluate.models.a runs/x:sft",
        ("stages.evaluate.models.a=runs/x:sft", "run it there first"),
    ),
    "kept but not saved": (
        "--ppo.keep_every 7",
        ("keep_every=7 must be a multiple of save_every=50",),
    ),
}


@pytest.mark.parametrize("args, message", PLACES.values(), ids=PLACES)
def test_bad_places(args, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(userfiles.make(tmp_path))
    for verb in ("check", "run"):
        userfiles.refused(main, [verb, "--config", "run.yaml", *shlex.split(args)], message, capsys)
    assert not (tmp_path / "runs").exists()


def test_a_base_of_another_shape_is_refused(finished, monkeypatch, capsys):
    monkeypatch.chdir(finished.parents[1])
    argv = ["run", "--config", str(finished / "config.yaml"), "--out", "runs/other"]
    argv += ["--pretrain", "null", "--base", f"{finished}:pretrain", "--model.width", "32"]
    assert main(argv) == 2
    assert f"model.width=32, but {finished}:pretrain has 16" in capsys.readouterr().err
    assert not Path("runs/other").exists()


def test_an_edited_stage_is_refused(finished, monkeypatch, capsys):
    monkeypatch.chdir(finished.parents[1])
    before = (finished / "config.yaml").read_bytes()
    argv = ["run", "--config", str(finished / "config.yaml"), "--pretrain.batch", "8"]
    assert main(argv) == 2
    message = capsys.readouterr().err
    assert "settings.batch: 4 then, 8 now" in message and "--redo pretrain" in message
    assert (finished / "config.yaml").read_bytes() == before
