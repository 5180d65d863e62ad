"""Plans: the programs of a run with the shapes of a run, and numbers that can be checked by hand or
by another compiler.
"""

import dataclasses
import importlib.util
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny

from instruct_jax import optim, sharding
from instruct_jax.chain import train
from instruct_jax.chain.load import load_config
from instruct_jax.chain.settings import RunConfig
from instruct_jax.chain.task import open_task
from instruct_jax.chain.workspace import Workspace
from instruct_jax.cli import main
from instruct_jax.config import MESH
from instruct_jax.models.lm import LanguageModel
from instruct_jax.plan import plan
from instruct_jax.plan import topology as chips
from instruct_jax.plan.costs import Costs, Work
from instruct_jax.plan.programs import Planner
from instruct_jax.stages import pretrain

ROOT = Path(__file__).parents[2]
SMOKE = str(ROOT / "configs/quickstart_smoke.yaml")
SPLIT = "--mesh.data 2 --mesh.fsdp 2 --mesh.tensor 2".split()
KEYS = {
    "stage", "step", "topology", "devices", "parameters", "flops", "memory", "elsewhere", "arguments", "temporaries", "peak", "fits",
    "largest", "collectives", "sent", "traffic", "intensity", "compile_seconds",
}  # fmt: skip


def planned(capsys, *args: str) -> tuple[int, list[dict]]:
    code = main(["plan", "--config", SMOKE, "--json", *args])
    return code, json.loads(capsys.readouterr().out)["steps"]


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    """The plan of PPO-ptx and SFT on eight fake devices, by the verb."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("empty"))
        rows = plan.plan(
            load_config(RunConfig, SMOKE, SPLIT), ("sft", "ppo_ptx"), chips.parse_topology("cpu:8")
        )
        assert not list(Path().iterdir())
    return rows


def test_every_step_has_its_row(split):
    assert [(row["stage"], row["step"]) for row in split] == [
        ("sft", "step"), ("ppo_ptx", "rollout"), ("ppo_ptx", "experience"), ("ppo_ptx", "update")
    ]  # fmt: skip
    for row in split:
        assert set(row) == KEYS  # nothing is known of how fast a fake device is
        assert row["fits"] and row["devices"] == 8 and 0 < row["peak"] < 2**30
        assert row["peak"] == row["elsewhere"] + row["arguments"] + row["temporaries"]
        assert row["collectives"] and row["sent"] > 0


def test_what_waits_is_the_rest_of_the_state(split):
    """Weights, two moments, average; reference and reward model: 24 P + 20 S bytes without
    gradients, as in scale.md, over four parts.
    """
    rows = {row["step"]: row for row in split if row["stage"] == "ppo_ptx"}
    policy, scalar = (
        rows["rollout"]["parameters"],
        rows["update"]["parameters"] - rows["rollout"]["parameters"],
    )
    whole = (12 + 4 + 4) * policy + (12 + 4) * scalar
    # norms and biases are not split
    assert rows["rollout"]["elsewhere"] == pytest.approx(whole / 4, rel=0.2)
    assert rows["update"]["elsewhere"] == pytest.approx((4 * policy + 4 * scalar) / 4, rel=0.2)
    assert rows["experience"]["elsewhere"] == pytest.approx(
        rows["rollout"]["elsewhere"] - rows["update"]["elsewhere"] - policy - scalar, rel=0.2
    )


def test_stand_ins_are_what_a_run_has(finished, monkeypatch):
    """Shapes, types and places of the state, the batches and the sampler's weights."""
    monkeypatch.chdir(finished.parents[1])
    config = load_config(
        RunConfig, finished / "config.yaml", ["--mesh.fsdp", "2", "--mesh.tensor", "2"]
    )
    ws = Workspace(config, finished, open_task(config, finished))
    planner = Planner(config, jax.devices())
    programs = {(one.stage, one.step): one for one in planner.programs(config.stages)}
    reached = {}
    monkeypatch.setattr(
        train,
        "train",
        lambda step, state, batch_at, **options: (
            reached.update(state=state, batch=batch_at(0)) or state
        ),
    )
    monkeypatch.setattr(sharding, "ahead_of_time", lambda step, state, base, examples: step)
    show = lambda tree: jax.tree.map(lambda x: (x.shape, str(x.dtype), str(x.sharding.spec)), tree)  # noqa: E731
    for stage, run in {"pretrain": train.pretrain, "sft": train.sft}.items():
        monkeypatch.setattr(Workspace, "nll", lambda self, params, rows: 0.0)
        run(ws)
        assert show((reached["state"], {}, reached["batch"])) == show(
            programs[stage, "step"].arguments
        ), stage
    train.ppo(ws, "ppo")
    (weights, prompts, _), (state, _, _, ptx, _) = (
        programs["ppo", "rollout"].arguments,
        programs["ppo", "update"].arguments,
    )
    assert show(reached["state"]) == show(state)
    assert show(reached["batch"]) == show((prompts, ptx))
    assert show(ws.for_sampling(ws.policy_of("sft"))) == show(weights)


@pytest.mark.parametrize("config", tiny.CONFIGS.values(), ids=tiny.CONFIGS)
def test_the_arithmetic_agrees_with_a_compiler(config):
    """One layer and one chunk of logits, as a compiler counts what is in a loop once; it also
    counts norms, masks and softmax.
    """
    config = dataclasses.replace(
        config,
        layers=1,
        context=64,
        width=64,
        mlp_width=256,
        head_width=16,
        vocab_size=512,
        logprob_chunk=4096,
    )
    lm, rows, length = LanguageModel(config), 16, 64
    costs = Costs(config, dict.fromkeys(MESH, 1), fused=False)
    batch = tiny.token_batch(rows, length)
    params = tiny.params(config)

    def flops(run) -> float:
        return jax.jit(run).lower(params).compile().cost_analysis()["flops"]

    loss = lambda params: pretrain.make_loss(lm, "x")(params, batch, jax.random.key(0))[0]  # noqa: E731
    assert flops(loss) == pytest.approx(
        costs.forward(rows, length, rows * length).computed, rel=0.15
    )
    assert flops(jax.grad(loss)) == pytest.approx(
        costs.training(rows, length, rows * length).computed, rel=0.15
    )


def test_costs_by_hand():
    config = dataclasses.replace(
        tiny.GPT, width=16, heads=2, layers=3, vocab_size=32, dtype="bfloat16"
    )
    one = Costs(config, dict.fromkeys(MESH, 1), fused=True)
    weights = 16 * (4 * 16 + 2 * 64)  # q, k, v, out; up, down
    ahead = one.forward(5, 7)
    # a query sees (7 + 1) / 2 keys
    assert ahead.flops == ahead.computed == 2 * weights * 3 * 35 + 4 * 3 * 16 * 35 * 4
    assert one.training(5, 7, 0).flops == 3 * ahead.flops
    # logits are made again
    assert one.training(5, 7, 35).computed == 3 * ahead.flops + 4 * 2 * 32 * 16 * 35
    remat = one._replace(model=dataclasses.replace(config, remat="full"))
    assert remat.training(5, 7, 0).computed == 4 * ahead.flops
    assert one.learning(1000, parts=2, steps=3) == Work(0, 0, 3 * 1000 * (28 + 16))
    decoding = one.decoding(5, prompt=6, tokens=2)
    # the tokens see 7 and 8 keys
    assert decoding.flops == 2 * 5 * 2 * (weights * 3 + 32 * 16) + 4 * 3 * 16 * 5 * (7 + 8)
    cache = 2 * 3 * 16 * 8 * 5 * 2
    assert decoding.traffic == 2 * ((weights * 3 + 32 * 16) * 2 + cache + 3 * 4 * 32 * 5)
    half = one._replace(sizes=dict.fromkeys(MESH, 1) | {"fsdp": 2})
    assert (
        half.decoding(5, 6, 2).traffic < decoding.traffic
        and half.decoding(5, 6, 2).flops == decoding.flops
    )


def test_what_does_not_fit_is_named(monkeypatch, capsys):
    """A device of 100 kB: exit code 3."""
    monkeypatch.setitem(chips.CHIPS, "cpu", dataclasses.replace(chips.CHIPS["cpu"], memory=1e5))
    assert main(["plan", "--config", SMOKE, "--topology", "cpu:1", "--stages", "reward"]) == 3
    shown = capsys.readouterr().out
    assert "reward  step  0.000" in shown and "  NO  " in shown
    assert "reward step does not fit: " in shown and "of 9.31e-05" in shown
    named = shown.partition("The largest parts, GiB:")[2].split("\n")
    assert [line.split()[1] for line in named[1:4]] == ["temporaries", "Adam", "weights"]


def test_what_a_compiler_refuses():
    found = plan._refused("RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (58.20G) exceeds "
                          "available HBM (15.75G).", 7)  # fmt: skip
    assert found["arguments"] == 7 and found["temporaries"] == pytest.approx(58.2 * 2**30)
    text = (
        "RESOURCE_EXHAUSTED: Used 21.5G of 15.75G hbm.\n    1. Size: 4.50G\n       Operator:"
        ' op_name="jit(f)/dot"\n'
    )
    found = plan._refused(text, 2**30)
    assert found["temporaries"] == 20.5 * 2**30 and found["arrays"] == [
        {"what": "jit(f)/dot", "bytes": 4.5 * 2**30}
    ]
    assert "temporaries" not in plan._refused("RESOURCE_EXHAUSTED: something new", 7)


def test_bad_plans(capsys):
    for args, message in {
        "--topology v5p:4": "must be the shape of a slice",
        "--topology cpu:6": "devices are not a multiple of 4",
        "--topology cpu:4 --stages zebra": "--stages zebra is unknown",
        "--topology cpu:4 --stages compare,report": (
            "--stages compare,report have no steps to compile"
        ),
        "--topology cpu:4 --sft.batch 6": "sft.batch",
    }.items():
        assert (
            main(
                ["plan", "--config", SMOKE, "--mesh.data", "-1", "--mesh.fsdp", "4", *args.split()]
            )
            == 2
        )
        assert message in (said := capsys.readouterr()).err and not said.out


def test_a_broken_compiler_is_told(monkeypatch, capsys):
    monkeypatch.setattr(plan.sys, "executable", "false")
    assert main(["plan", "--config", SMOKE, "--topology", "cpu:1", "--stages", "sft"]) == 1
    assert "cpu:1: the compiler stopped with code 1" in capsys.readouterr().err


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="needs the TPU compiler: pip install '.[tpu]'",
)
def test_the_compiler_of_tpus(capsys):
    """SFT and PPO with splash attention on sixteen chips that are not here; 8 x 2 has to split a
    side of 4 x 4.
    """
    args = (
        "--stages sft,ppo --mesh.data 1 --mesh.fsdp 8 --mesh.tensor 2 --model.dtype bfloat16"
        " --ppo.batch 32".split()
    )
    code, rows = planned(capsys, "--topology", "v5e:4x4", *args)
    assert code == 0 and [row["step"] for row in rows] == [
        "step",
        "rollout",
        "experience",
        "update",
    ]
    for row in rows:
        assert set(row) == KEYS | {"seconds", "bound", "needs", "mfu"}
        assert row["memory"] == 15.75 * 2**30 and 0 < row["mfu"] <= 1
        assert row["seconds"] == max(row["needs"].values()) == row["needs"][row["bound"]]
    # of tokens, layers, and sums of each layer
    assert rows[1]["collectives"]["all-reduce"]["times"] > 19 * 2 * 2


def test_the_state_is_laid_out_as_theirs():
    """abstract twin: what sharding.create_state makes"""
    config = load_config(RunConfig, SMOKE, SPLIT)
    planner = Planner(config, jax.devices())
    tx, key = optim.make_optimizer(config.sft.optimizer, 10), jax.random.key(0)
    params = sharding.create_sharded(planner.models.policy.init, planner.layout, key)
    real = sharding.create_state(planner.layout, planner.policy_weights, params, tx.init, key)
    arguments = next(planner.programs(("sft",))).arguments
    for a, b in zip(jax.tree.leaves(real), jax.tree.leaves(arguments[0]), strict=True):
        assert (a.shape, a.dtype, a.sharding) == (b.shape, b.dtype, b.sharding)
    assert plan.on_device(real.params) == np.sum(
        [x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(real.params)]
    )
