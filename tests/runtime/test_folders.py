import json
import os

import pytest
import yaml

from instruct_jax.errors import RunError
from instruct_jax.runtime.folders import (
    begin_stage,
    file_hash,
    finish_stage,
    open_run,
    stage_done,
    write_atomic,
)
from instruct_jax.runtime.metrics import cut_after

CONFIG = {"seed": 1, "model": {"width": 8, "layers": 2}, "sizes": (1, 2), "lr": 1e-5}


def test_new_run_explains_itself_and_the_same_config_goes_on(tmp_path):
    folder = tmp_path / "runs" / "a"
    assert open_run(folder, CONFIG) is False
    assert yaml.safe_load((folder / "config.yaml").read_text()) == CONFIG | {"sizes": [1, 2]}
    about = json.loads((folder / "run.json").read_text())
    assert about["versions"]["jax"]
    assert about["command"]
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert open_run(folder, CONFIG) is True
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_another_config_is_refused_with_both_values(tmp_path):
    open_run(tmp_path / "a", CONFIG)
    other = CONFIG | {"model": {"width": 16, "layers": 2}, "new": None}
    with pytest.raises(
        RunError,
        match=(
            r"(?s)config.yaml.*model\.width: 8 there, 16 now.*new: absent there, null now.*choose"
            r" another run"
        ),
    ):
        open_run(tmp_path / "a", other)


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("...")
    with pytest.raises(RunError, match="not a run folder"):
        open_run(tmp_path, CONFIG)


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path, monkeypatch):
    open_run(tmp_path / "a", CONFIG)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(
        RunError, match="a is read-only for this user: let it be written to, or go on with a copy"
    ):
        open_run(tmp_path / "a", CONFIG)
    with pytest.raises(RunError, match="b cannot be made, .* is no folder that you may write to"):
        open_run(tmp_path / "b", CONFIG)


def test_a_run_killed_while_it_was_made_is_made_again(tmp_path):
    for name in ("run.json", "run.json.partial", "config.yaml.partial"):
        (tmp_path / name).write_text("{}")
    assert open_run(tmp_path, CONFIG) is False


def test_stage_is_done_only_with_the_same_inputs(tmp_path):
    data = tmp_path / "data.jsonl"
    data.write_text("{}\n")
    inputs = {"data": file_hash(data)}
    assert (
        inputs["data"] == "sha256:ca3d163bab055381827226140568f3bef7eaac187cebd76878e0b63e9e442356"
    )
    assert stage_done(tmp_path, inputs) is None
    finish_stage(tmp_path, inputs, output={"step": 3}, seconds=1.5)
    done = stage_done(tmp_path, inputs)
    assert done is not None
    assert (done["output"], done["seconds"]) == ({"step": 3}, 1.5)
    data.write_text("{}\n{}\n")
    with pytest.raises(
        RunError,
        match=(
            r"done\.json: the input data changed, \"sha256:ca3d.* then, \"sha256:.* now\.  Remove"
        ),
    ):
        stage_done(tmp_path, {"data": file_hash(data)})


def test_atomic_write_replaces_all_or_nothing(tmp_path):
    path = tmp_path / "x"
    write_atomic(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomic(path, "\ud800")
    assert path.read_text() == "old"


@pytest.mark.parametrize("text", ['{"inputs": {', "[1, 2]", "7", "\x00\x00"])
def test_damaged_notes_are_named_with_the_repair(tmp_path, text):
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
