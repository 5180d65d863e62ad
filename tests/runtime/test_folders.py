import json
import os
from pathlib import Path

import pytest
import yaml

from instruct_jax.errors import RunError
from instruct_jax.runtime.folders import (
    begin_stage,
    check_run,
    file_hash,
    finish_stage,
    locked,
    open_run,
    require_local,
    stage_done,
    write_atomic,
)
from instruct_jax.runtime.metrics import cut_after

CONFIG = {"seed": 1, "model": {"width": 8, "layers": 2}, "sizes": (1, 2), "lr": 1e-5}


def test_new_run_explains_itself_and_later_starts_resume(tmp_path):
    folder = tmp_path / "runs" / "a"
    assert open_run(folder, CONFIG) is False
    assert yaml.safe_load((folder / "config.yaml").read_text()) == CONFIG | {"sizes": [1, 2]}
    first_start = (folder / "run.json").read_bytes()
    about = json.loads(first_start)
    assert about["versions"]["jax"]
    assert about["command"]

    newest = {"seed": 1, "lr": 1e-3}
    assert open_run(folder, newest) is True
    assert yaml.safe_load((folder / "config.yaml").read_text()) == newest
    assert (folder / "run.json").read_bytes() == first_start
    assert sorted(path.name for path in folder.iterdir()) == ["config.yaml", "run.json"]


def test_check_run_writes_nothing(tmp_path):
    assert check_run(tmp_path / "runs" / "a") is False
    assert list(tmp_path.iterdir()) == []
    open_run(tmp_path / "a", CONFIG)
    assert check_run(tmp_path / "a") is True


def test_one_command_at_a_time_works_in_a_folder(tmp_path):
    folder = tmp_path / "runs" / "a"
    with locked(folder):
        refused = pytest.raises(RunError, match="runs/a is in use: another command runs there")
        with refused, locked(folder):
            pytest.fail("two at once")
        with locked(tmp_path / "runs" / "b"):
            pass
    with locked(folder):
        assert list(folder.iterdir()) == []


@pytest.mark.parametrize("path", ["gs://bucket/a", Path("gs://bucket/a"), "GS:///bucket/a"])
def test_an_address_is_no_run_folder(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    message = r"(?i)out=gs://bucket/a is no folder on this machine.*local path.*mount"
    with pytest.raises(RunError, match=message):
        require_local(path, "out")
    with pytest.raises(RunError, match=message):
        open_run(Path(path), CONFIG)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", ["runs/a", "/runs/a", "a:b", "C:/runs", "runs/a:/b", Path("a")])
def test_local_paths_pass(path):
    require_local(path, "out")


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("...")
    with pytest.raises(RunError, match="not a run folder"):
        open_run(tmp_path, CONFIG)


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path, monkeypatch):
    open_run(tmp_path / "a", CONFIG)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(
        RunError,
        match="a is read-only for this user: let it be written to, or continue with a copy",
    ):
        open_run(tmp_path / "a", CONFIG)
    with pytest.raises(RunError, match="b cannot be made, .* is no folder that you may write to"):
        open_run(tmp_path / "b", CONFIG)


def test_a_run_killed_while_it_was_made_is_made_again(tmp_path):
    for name in ("run.json", "run.json.partial", "config.yaml.partial"):
        (tmp_path / name).write_text("{}")
    assert open_run(tmp_path, CONFIG) is False
    assert json.loads((tmp_path / "run.json").read_text())["command"]


def test_stage_is_done_only_with_the_same_inputs(tmp_path):
    data = tmp_path / "data.jsonl"
    data.write_text("{}\n")
    digest = "sha256:ca3d163bab055381827226140568f3bef7eaac187cebd76878e0b63e9e442356"
    assert file_hash(data) == digest
    inputs = {"settings.epochs": 4, "settings.layers": (1, 2), "data.demonstrations": digest}
    folder = tmp_path / "sft"
    assert stage_done(folder, inputs) is None
    begin_stage(folder, inputs)
    assert stage_done(folder, inputs) is None
    finish_stage(
        folder, inputs, kind="sft", output={"step": 3}, left={"w": 7}, seconds=1.5, memory={}
    )
    done = stage_done(folder, inputs)
    assert done is not None
    assert (done["kind"], done["output"], done["seconds"]) == ("sft", {"step": 3}, 1.5)
    assert done["left"] == {"w": 7}
    assert done["inputs"] == inputs | {"settings.layers": [1, 2]}


@pytest.mark.parametrize("finished", [False, True])
def test_other_inputs_are_refused_with_both_values_and_three_ways_out(tmp_path, finished):
    folder = tmp_path / "runs" / "sft"
    then = {"settings.epochs": 4, "data.texts": "sha256:" + "ab" * 32, "tokenizer": "gpt2"}
    begin_stage(folder, then)
    if finished:
        finish_stage(folder, then, kind="sft", output=None, left={}, seconds=0, memory={})
    now = {"settings.epochs": 5, "data.texts": "sha256:" + "cd" * 32, "start": "x", "more": 1.5}
    with pytest.raises(RunError) as raised:
        if finished:
            stage_done(folder, now)
        else:
            begin_stage(folder, now)
    assert str(raised.value).splitlines() == [
        f"the stage sft in {folder.parent} was made from something else:",
        "  settings.epochs: 4 then, 5 now",
        '  data.texts: "sha256:abababababab" then, "sha256:cdcdcdcdcdcd" now',
        '  tokenizer: "gpt2" then, absent now',
        "  ... and 2 more",
        "Give the changed stage another name, make it again with --redo sft (which also makes again"
        " what was made from it), or choose another out.",
    ]


def test_values_of_another_type_are_other_inputs(tmp_path):
    begin_stage(tmp_path, {"lr": 1})
    with pytest.raises(RunError, match=r"lr: 1 then, 1\.0 now"):
        begin_stage(tmp_path, {"lr": 1.0})


def test_atomic_write_replaces_all_or_nothing(tmp_path):
    path = tmp_path / "x"
    write_atomic(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomic(path, "\ud800")
    assert path.read_text() == "old"


@pytest.mark.parametrize("text", ['{"inputs": {', "[1, 2]", "7", "\x00\x00"])
def test_damaged_notes_are_named_with_the_fix(tmp_path, text):
    (tmp_path / "done.json").write_text(text)
    with pytest.raises(
        RunError,
        match=(
            r"done\.json is damaged .*restore it from a copy, or remove .* to make that stage again"
        ),
    ):
        stage_done(tmp_path, {})
    (tmp_path / "inputs.json").write_text(text)
    with pytest.raises(RunError, match=r"inputs\.json is damaged"):
        begin_stage(tmp_path, {})
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n' + text + '\n{"step": 3}\n')
    with pytest.raises(
        RunError, match=r"metrics\.jsonl is damaged .*remove .* to make that stage again"
    ):
        cut_after(tmp_path / "metrics.jsonl", 5)
