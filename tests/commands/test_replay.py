"""A step with NaN or Inf ends the run, is not applied, and comes out the same again from what the
run kept of it.
"""

import dataclasses
import math
import shutil

import jax
import numpy as np
import pytest
from userfiles import OVERRIDES

from instruct_jax.chain.context import Run
from instruct_jax.chain.kinds import KINDS
from instruct_jax.chain.read import load_run
from instruct_jax.cli import main
from instruct_jax.commands.replay import find, replay
from instruct_jax.data import batches
from instruct_jax.runtime.checkpoints import Checkpoints
from instruct_jax.runtime.loop import freed


@pytest.fixture
def stopped(request, finished, place, tmp_path, monkeypatch, capfd):
    """(run folder, stage, message) of a run whose third batch of text rows weighs NaN."""
    stage, good = request.param, batches.token_batches

    def token_batches(*args, **options):
        source = good(*args, **options)

        def batch_at(step, rows=None):
            batch = source.batch_at(step, rows)
            if step != 2:
                return batch
            return dataclasses.replace(batch, weight=batch.weight * np.float32("nan"))

        return dataclasses.replace(source, batch_at=batch_at)

    monkeypatch.chdir(place)
    ignored = shutil.ignore_patterns(stage, "evaluate")
    shutil.copytree(finished, tmp_path / "run", ignore=ignored)
    command = ["run", "--config", "run.yaml", *OVERRIDES, "--out", str(tmp_path / "run")]
    command += ["--ppo.save_every", "1", "--ppo.iterations", "3", "--stages", stage]
    with monkeypatch.context() as patch:
        patch.setattr(batches, "token_batches", token_batches)
        assert main(command) == 1
    return tmp_path / "run", stage, capfd.readouterr().err


def restored(run, name, folder):
    stage = Run(load_run(run / "config.yaml"), run).stage(name)
    make = KINDS[stage.settings.kind].training
    assert make is not None
    training = make(stage)
    with Checkpoints(folder, fingerprints=training.fingerprints) as checkpoints:
        return checkpoints.restore(freed(training.state))


@pytest.mark.parametrize("stopped", ["sft", "ppo"], indirect=True)
def test_it_stops_and_comes_out_the_same_again(stopped, capfd):
    run, stage, message = stopped
    # an iteration has two updates
    step, name = {"sft": (3, "sft/nll"), "ppo": (2, "ptx/nll")}[stage]
    place = run / stage / f"nonfinite_step_{step}"
    assert f"{stage} step {step}: " in message
    assert f"{name} is nan" in message
    assert f"instruct-jax replay {place}" in message
    before = dataclasses.replace(restored(run, stage, place / "state"), key=None)
    assert int(before.step) == step - 1
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(before))
    if stage == "ppo":  # which was saved after each iteration
        saved = restored(run, stage, run / stage / "checkpoints")
        jax.tree.map(np.testing.assert_array_equal, before, dataclasses.replace(saved, key=None))

    files = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert main(["replay", str(run)]) == 1
    shown = capfd.readouterr().out
    assert f"{name} nan" in shown and "not finite again: " in shown
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == files

    with np.load(place / "batch.npz") as arrays:
        mended = {key: np.nan_to_num(arrays[key], nan=0.01) for key in arrays}
    np.savez(place / "batch.npz", **mended)
    assert main(["replay", str(place)]) == 0
    assert "all metrics are finite now" in capfd.readouterr().out
    assert all(math.isfinite(value) for value in replay(place)[1].values())


def test_what_is_no_step_is_refused(tmp_path, capsys):
    assert main(["replay", str(tmp_path)]) == 2
    assert "here is none; name one STAGE/nonfinite_step_N" in capsys.readouterr().err
    for stage in ("sft", "ppo"):
        (tmp_path / stage / "nonfinite_step_3").mkdir(parents=True)
        (tmp_path / stage / "nonfinite_step_3" / "batch.npz").touch()
    assert main(["replay", str(tmp_path)]) == 2
    assert "ppo/nonfinite_step_3, " in capsys.readouterr().err
    assert find(tmp_path / "sft" / "nonfinite_step_3").parent.name == "sft"
