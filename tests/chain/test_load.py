"""YAML and overrides to a config; what is refused is in tests/test_bad_input.py."""

import dataclasses

import pytest
import yaml

from instruct_jax.chain.load import load_config
from instruct_jax.chain.settings import RunConfig

TEXT = """
out: runs/a
world: {}
text: {max_prompt: 24, max_completion: 20}
model: &model {context: 192, width: 48}
reward_model: {<<: *model, layers: 2}
pretrain: {length: 96}
sft: {length: 96, optimizer: {clip_norm: null}}
ppo: &ppo
  batch: 64
  minibatch: 32
  optimizer: {learning_rate: 5e-6}
  sampler: {max_tokens: 20}
ppo_ptx:
  <<: *ppo
  batch: 128
  ptx_coef: 2
  ptx_batch: 4
  ptx_length: 96
"""


@pytest.fixture
def path(tmp_path):
    (tmp_path / "a.yaml").write_text(TEXT)
    return tmp_path / "a.yaml"


def test_merge_keys(path):
    config = load_config(RunConfig, path)
    assert config.ppo_ptx is not None and config.reward_model is not None
    assert (config.ppo.batch, config.ppo_ptx.batch, config.ppo_ptx.minibatch) == (64, 128, 32)
    assert (config.reward_model.context, config.reward_model.width, config.reward_model.layers) == (
        192,
        48,
        2,
    )


def test_what_a_section_leaves_out_keeps_the_default_of_its_place(path):
    """PPO's own optimizer defaults hold although the file sets one key of them."""
    optimizer = load_config(RunConfig, path).ppo.optimizer
    assert optimizer == dataclasses.replace(
        RunConfig.__dataclass_fields__["ppo"].default.optimizer, learning_rate=5e-6
    )
    assert optimizer.schedule == "constant" and optimizer.clip_norm is None


def test_numbers_keep_their_types(path):
    config = load_config(RunConfig, path, ["--ppo.kl_coef", "1"])
    assert config.ppo_ptx is not None
    assert (
        isinstance(config.ppo.kl_coef, float)
        and isinstance(config.ppo_ptx.ptx_coef, float)
        and isinstance(config.ppo.batch, int)
    )


@pytest.mark.parametrize(
    "args, key, value",
    [
        (["--seed", "7"], "seed", 7),
        (["--seed=7"], "seed", 7),
        (["--mesh.data", "-1"], "mesh.data", -1),
        (["--out", "3"], "out", "3"),  # text stays text
        (["--out", "a: b"], "out", "a: b"),
        (["--evaluation.temperatures", "[1, 0.5]"], "evaluation.temperatures", (1.0, 0.5)),
        (["--model.kv_heads", "null"], "model.kv_heads", None),
        (["--reward_model", "null"], "reward_model", None),
        (["--ppo_ptx.ptx_coef", "3"], "ppo_ptx.ptx_coef", 3.0),
        (["--ppo.optimizer.learning_rate", "1e-4"], "ppo.optimizer.learning_rate", 1e-4),
        (["--seed", "1", "--seed", "2"], "seed", 2),
    ],
)
def test_overrides(args, key, value, path):
    found = load_config(RunConfig, path, args)
    for name in key.split("."):
        found = getattr(found, name)
    assert found == value and type(found) is type(value)


def test_an_override_does_not_reach_through_an_alias(path):
    config = load_config(RunConfig, path, ["--ppo.optimizer.learning_rate", "1e-3"])
    assert config.ppo_ptx is not None
    assert (config.ppo.optimizer.learning_rate, config.ppo_ptx.optimizer.learning_rate) == (
        1e-3,
        5e-6,
    )


def test_the_config_of_a_run_folder_can_be_loaded_again(path, tmp_path):
    config = load_config(RunConfig, path)
    again = tmp_path / "again.yaml"
    again.write_text(yaml.safe_dump(dataclasses.asdict(config), sort_keys=False))
    assert load_config(RunConfig, again) == config
