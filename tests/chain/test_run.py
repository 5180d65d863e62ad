"""What a run does with a stage that is done, half made, or made by another process."""

import json

import pytest

from instruct_jax.chain import identity, run
from instruct_jax.chain.kind import Kind
from instruct_jax.chain.kinds import KINDS
from instruct_jax.chain.read import build_run
from instruct_jax.errors import RunError
from instruct_jax.runtime.folders import finish_stage

TREE = {
    "out": "set by the test",
    "data": {"tokenizer": "none"},
    "text": {"max_prompt": 4, "max_completion": 4},
    "model": {"vocab_size": 8, "context": 8, "width": 4, "layers": 1, "heads": 1},
    "stages": {"pretrain": {}},
}


@pytest.fixture
def config(tmp_path, monkeypatch):
    """A run of one stage whose identity is what the test says."""
    monkeypatch.setattr(identity, "identity", lambda stage: {"settings.steps": 1})
    monkeypatch.setattr(run, "summary", lambda folder: {})
    return build_run({**TREE, "out": str(tmp_path / "run")}, "test")


def stage_does(monkeypatch, work) -> None:
    settings = KINDS["pretrain"].settings
    monkeypatch.setitem(KINDS, "pretrain", Kind(settings=settings, run=work))


def test_a_half_made_stage_is_not_finished_from_other_inputs(config, monkeypatch):
    """What it needs was made again while it was stopped."""

    def stopped(stage):
        raise KeyboardInterrupt

    stage_does(monkeypatch, stopped)
    for _ in range(2):  # the second time from the same inputs: it resumes
        with pytest.raises(KeyboardInterrupt):
            run.run(config, ["pretrain"])
    monkeypatch.setattr(identity, "identity", lambda stage: {"settings.steps": 2})
    with pytest.raises(RunError, match=r"settings\.steps: 1 then, 2 now(.|\n)*--redo pretrain"):
        run.run(config, ["pretrain"])
    stage_does(monkeypatch, lambda stage: {"made": "again"})
    folder = run.run(config, ["pretrain"], redo=["pretrain"])
    assert json.loads((folder / "pretrain" / "done.json").read_text())["output"] == {
        "made": "again"
    }


def test_no_process_does_a_stage_before_all_have_seen_that_it_is_not_done(config, monkeypatch):
    """A slow one would find it done by a fast one, skip it, and meet the others at the barrier of
    another stage.
    """
    seen = []
    done = config.out + "/pretrain/done.json"

    def barrier(name: str) -> None:
        import os

        seen.append((name, os.path.exists(done)))

    monkeypatch.setattr(run, "barrier", barrier)
    stage_does(monkeypatch, lambda stage: seen.append("work") or {})
    run.run(config, ["pretrain"])
    assert seen[1:] == [("pretrain begins", False), "work", ("pretrain", True)]


def test_a_stage_that_is_done_is_skipped_and_says_so(config, monkeypatch, capsys):
    times = []
    stage_does(monkeypatch, lambda stage: times.append(stage.name) or {})
    for _ in range(2):
        run.run(config, ["pretrain"])
    assert times == ["pretrain"]
    assert capsys.readouterr().out == "pretrain is done\n"


def test_the_summary_says_what_the_stages_used(tmp_path):
    """Not what the process uses that only looks at a finished run."""
    rows = [{"name": "sft", "leaves": "policy"}, {"name": "evaluate", "leaves": "findings"}]
    (tmp_path / "graph.json").write_text(json.dumps({"stages": rows}))
    (tmp_path / "config.yaml").write_text("seed: 3\n")
    for name, peak in (("sft", 0.002), ("evaluate", 0.001)):
        (tmp_path / name).mkdir()
        memory = {"host_peak_gib": peak}
        finish_stage(tmp_path / name, {}, kind=name, output={}, left={}, seconds=2, memory=memory)
    found = run.summary(tmp_path)
    assert (found["peak_memory_gib"], found["seed"]) == (0.002, 3)
    assert found["seconds"] == {"sft": 2, "evaluate": 2}
