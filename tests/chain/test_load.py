"""YAML and overrides to a config; what is refused is in tests/test_bad_input.py."""

import dataclasses
import json
from typing import Any

import pytest
import yaml

from instruct_jax.chain.kinds import KINDS
from instruct_jax.chain.read import load_run

TEXT = """
out: runs/a
world: {}
text: {max_prompt: 24, max_completion: 20}
model: &model {context: 192, width: 48}
stages:
  pretrain: {length: 96}
  large: {kind: pretrain, length: 96, model: {<<: *model, layers: 2}}
  sft: {length: 96, optimizer: {clip_norm: null}}
  reward: {start: sft}
  ppo: &ppo
    start: sft
    batch: 64
    minibatch: 32
    optimizer: {learning_rate: 5e-6}
    sampler: {max_tokens: 20}
  ppo_ptx:
    <<: *ppo
    kind: ppo
    batch: 128
    ptx_coef: 2
    ptx_batch: 4
    ptx_length: 96
  evaluate: {models: [base, sft], temperatures: [1.0]}
"""


@pytest.fixture
def path(tmp_path):
    (tmp_path / "a.yaml").write_text(TEXT)
    return tmp_path / "a.yaml"


def test_merge_keys(path):
    stages: Any = load_run(path).stages
    ppo, ptx, large = stages["ppo"], stages["ppo_ptx"], stages["large"].model
    assert (ppo.batch, ptx.batch, ptx.minibatch) == (64, 128, 32)
    assert (large.context, large.width, large.layers) == (192, 48, 2)


def test_a_stage_has_the_settings_of_its_kind(path):
    stages = load_run(path).stages
    kinds = {name: settings.kind for name, settings in stages.items()}
    assert kinds["ppo_ptx"] == kinds["ppo"] == "ppo" and kinds["large"] == "pretrain"
    for name, settings in stages.items():
        assert type(settings) is KINDS[kinds[name]].settings, name


def test_what_a_section_leaves_out_keeps_the_default_of_its_place(path):
    """PPO's own optimizer defaults hold although the file sets one key of them."""
    settings: Any = load_run(path).stages["ppo"]
    own = type(settings)(kind="ppo").optimizer
    assert settings.optimizer == dataclasses.replace(own, learning_rate=5e-6)
    assert settings.optimizer.schedule == "constant" and settings.optimizer.clip_norm is None


def test_numbers_keep_their_types(path):
    stages: Any = load_run(path, ["--ppo.kl_coef", "1"]).stages
    assert isinstance(stages["ppo"].kl_coef, float)
    assert isinstance(stages["ppo_ptx"].ptx_coef, float)
    assert isinstance(stages["ppo"].batch, int)


@pytest.mark.parametrize(
    "args, key, value",
    [
        (["--seed", "7"], "seed", 7),
        (["--seed=7"], "seed", 7),
        (["--mesh.data", "-1"], "mesh.data", -1),
        (["--out", "3"], "out", "3"),  # text stays text
        (["--out", "a: b"], "out", "a: b"),
        (["--evaluate.temperatures", "[1, 0.5]"], "stages.evaluate.temperatures", (1.0, 0.5)),
        (["--model.kv_heads", "null"], "model.kv_heads", None),
        (["--large.model", "null"], "stages.large.model", None),
        (["--ppo_ptx.ptx_coef", "3"], "stages.ppo_ptx.ptx_coef", 3.0),
        (["--stages.ppo_ptx.ptx_coef", "3"], "stages.ppo_ptx.ptx_coef", 3.0),
        (["--ppo.start", "base"], "stages.ppo.start", "base"),
        (["--ppo.optimizer.learning_rate", "1e-4"], "stages.ppo.optimizer.learning_rate", 1e-4),
        (["--seed", "1", "--seed", "2"], "seed", 2),
    ],
)
def test_overrides(args, key, value, path):
    found: Any = load_run(path, args)
    for name in key.split("."):
        found = found[name] if isinstance(found, dict) else getattr(found, name)
    assert found == value and type(found) is type(value)


def test_a_stage_that_is_null_is_left_out(path):
    assert "ppo_ptx" not in load_run(path, ["--ppo_ptx", "null"]).stages


def test_an_override_does_not_reach_through_an_alias(path):
    stages: Any = load_run(path, ["--ppo.optimizer.learning_rate", "1e-3"]).stages
    assert stages["ppo"].optimizer.learning_rate == 1e-3
    assert stages["ppo_ptx"].optimizer.learning_rate == 5e-6


def test_the_config_of_a_run_folder_can_be_loaded_again(path, tmp_path):
    config = load_run(path)
    again = tmp_path / "again.yaml"
    again.write_text(yaml.safe_dump(json.loads(json.dumps(dataclasses.asdict(config)))))
    assert load_run(again) == config
