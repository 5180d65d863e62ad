"""Plans by the command: what fits, what is sent, and what is said of the rest."""

import dataclasses
import importlib.util
import json
import re
from pathlib import Path

import pytest

from instruct_jax.chain.read import load_run
from instruct_jax.cli import main
from instruct_jax.plan import plan
from instruct_jax.plan import topology as chips

SMALL = str(Path(__file__).with_name("small.yaml"))
SMOKE = str(Path(__file__).parents[2] / "configs/quickstart_smoke.yaml")
SPLIT = "--mesh.fsdp 2 --mesh.tensor 2 --model.layers 1 --model.width 64".split()
KEYS = {
    "stage",
    "step",
    "topology",
    "devices",
    "parameters",
    "flops",
    "memory",
    "elsewhere",
    "arguments",
    "temporaries",
    "peak",
    "fits",
    "largest",
    "collectives",
    "sent",
    "traffic",
    "intensity",
    "compile_seconds",
}


@pytest.fixture(scope="module")
def split():
    """The plan of PPO on four fake devices."""
    config = load_run(SMALL, SPLIT)
    return plan.plan(config, ("ppo",), chips.parse_topology("cpu:4"))


def test_every_step_has_its_row(split):
    steps = [(row["stage"], row["step"]) for row in split]
    assert steps == [("ppo", "rollout"), ("ppo", "experience"), ("ppo", "update")]
    for row in split:
        assert set(row) == KEYS  # nothing is known of how fast a fake device is
        assert row["fits"] and row["devices"] == 4 and 0 < row["peak"] < 2**30
        assert row["peak"] == row["elsewhere"] + row["arguments"] + row["temporaries"]
        assert row["collectives"] and row["sent"] > 0


def test_what_waits_is_the_rest_of_the_state(split):
    """Weights, two moments, average; reference and reward model: 24 P + 20 S bytes without
    gradients, as in scale.md, over four parts.
    """
    rows = {row["step"]: row for row in split}
    policy = rows["rollout"]["parameters"]
    scalar = rows["update"]["parameters"] - policy
    waiting = {step: row["elsewhere"] for step, row in rows.items()}
    # norms and biases are not split
    states = (12 + 4 + 4) * policy + (12 + 4) * scalar
    assert waiting["rollout"] == pytest.approx(states / 4, rel=0.2)
    assert waiting["update"] == pytest.approx((4 * policy + 4 * scalar) / 4, rel=0.2)
    rest = waiting["rollout"] - waiting["update"] - policy - scalar
    assert waiting["experience"] == pytest.approx(rest, rel=0.2)


def test_what_does_not_fit_is_named(monkeypatch, capsys):
    """A device of 10 kB: exit code 3."""
    monkeypatch.setitem(chips.CHIPS, "cpu", dataclasses.replace(chips.CHIPS["cpu"], memory=1e4))
    assert main(["plan", "--config", SMALL, "--topology", "cpu:1", "--stages", "reward"]) == 3
    shown = capsys.readouterr().out
    assert re.search(r"^reward  step  .* NO ", shown, re.MULTILINE)
    assert "reward step does not fit: " in shown and "of 9.31e-06" in shown
    named = shown.partition("The largest parts, GiB:")[2].split("\n")
    assert [line.split()[1] for line in named[1:4]] == ["temporaries", "Adam", "weights"]


def test_what_a_compiler_refuses():
    row = plan._refused(
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO"
        " temporaries (58.20G) exceeds available HBM (15.75G).",
        7,
    )
    assert row["arguments"] == 7 and row["temporaries"] == pytest.approx(58.2 * 2**30)
    text = (
        "RESOURCE_EXHAUSTED: Used 21.5G of 15.75G hbm.\n    1. Size: 4.50G\n       Operator:"
        ' op_name="jit(f)/dot"\n'
    )
    row = plan._refused(text, 2**30)
    assert row["temporaries"] == 20.5 * 2**30
    assert row["arrays"] == [{"what": "jit(f)/dot", "bytes": 4.5 * 2**30}]
    assert "temporaries" not in plan._refused("RESOURCE_EXHAUSTED: something new", 7)


BAD = {
    "--topology v5p:4": "must be the shape of a slice",
    "--topology cpu:6": "devices are not a multiple of 4",
    "--topology cpu:4 --stages zebra": "--stages zebra is no stage of this config",
    "--topology cpu:4 --stages evaluate": "--stages evaluate has no steps to compile",
    "--topology cpu:4 --sft.batch 6": "sft.batch",
    "--topology cpu:4 --sft.length 99": "stages.sft.length=99 exceeds model.context=16",
}


@pytest.mark.parametrize("text, message", BAD.items(), ids=BAD)
def test_bad_plans(text, message, capsys):
    mesh = ["--mesh.data", "-1", "--mesh.fsdp", "4"]
    assert main(["plan", "--config", SMALL, *mesh, *text.split()]) == 2
    shown = capsys.readouterr()
    assert message in shown.err and not shown.out


def test_the_mesh_divides_the_model_of_a_stage(capsys):
    """Also where a size of the mesh is known only with the devices."""
    model = "{vocab_size: 20, context: 16, width: 18, heads: 2}"
    own = ["--mesh.fsdp", "-1", "--stages.wide.kind", "pretrain", "--wide.model", model]
    assert main(["plan", "--config", SMALL, "--topology", "cpu:4", *own]) == 2
    message = "mesh.fsdp=4 does not divide stages.wide.model.width=18; change one of them"
    assert message in capsys.readouterr().err


def test_a_broken_compiler_is_told(monkeypatch, capsys):
    monkeypatch.setattr(plan.sys, "executable", "false")
    assert main(["plan", "--config", SMALL, "--topology", "cpu:1", "--stages", "sft"]) == 1
    assert "cpu:1: the compiler stopped with code 1" in capsys.readouterr().err


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="needs the TPU compiler: pip install '.[tpu]'",
)
def test_the_compiler_of_tpus(capsys):
    """PPO with splash attention on sixteen chips that are not here; 8 x 2 has to split a side of
    4 x 4.
    """
    sizes = "--mesh.fsdp 8 --mesh.tensor 2 --model.dtype bfloat16 --ppo.batch 32".split()
    sizes += ["--model.layers", "1"]
    stages = ["--topology", "v5e:4x4", "--stages", "ppo"]
    code = main(["plan", "--config", SMOKE, "--json", *stages, *sizes])
    rows = json.loads(capsys.readouterr().out)["steps"]
    steps = [row["step"] for row in rows]
    assert code == 0 and steps == ["rollout", "experience", "update"]
    for row in rows:
        assert set(row) == KEYS | {"seconds", "bound", "needs", "mfu"}
        assert row["memory"] == 15.75 * 2**30 and 0 < row["mfu"] <= 1
        assert row["seconds"] == max(row["needs"].values()) == row["needs"][row["bound"]]
    # of tokens and of sums of the one layer
    assert rows[0]["collectives"]["all-reduce"]["times"] > 19 * 2
