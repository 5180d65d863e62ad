"""The configs that come with the code, where neither their models, nor their data, nor a network
are.
"""

import dataclasses
import json
import re
from pathlib import Path

import pytest
import yaml
from transformers import AutoConfig

from instruct_jax.chain.load import load_config
from instruct_jax.chain.read import load_run
from instruct_jax.chain.spec import FREE
from instruct_jax.cleaning.clean import CleanConfig
from instruct_jax.cli import main
from instruct_jax.huggingface.families import read_config

FOLDER = Path(__file__).parents[1] / "configs"
ALL = sorted(FOLDER.glob("*.yaml"))
RUNS = [path for path in ALL if path.stem != "clean"]
LLAMA = {
    "model_type": "llama",
    "hidden_act": "silu",
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
}
ROPE = {
    "rope_type": "llama3",
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
}
SETS = {  # prefix of a public data set -> its folder
    "novels": "gutenberg",
    "wikitext": "wikitext2",
    "self_instruct": "self_instruct_seed",
    "oasst": "oasst_en100",
    "hh": "hh_rlhf_harmless_test",
}
PUBLISHED = {  # what config.json of the hub says about the shape
    "gpt2_hh": {
        "model_type": "gpt2",
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "n_ctx": 1024,
        "n_embd": 768,
        "n_head": 12,
        "n_layer": 12,
        "n_positions": 1024,
        "vocab_size": 50257,
    },
    "pythia_1b_tldr": {
        "model_type": "gpt_neox",
        "hidden_act": "gelu",
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": 2048,
        "num_attention_heads": 8,
        "num_hidden_layers": 16,
        "rotary_emb_base": 10000,
        "rotary_pct": 0.25,
        "tie_word_embeddings": False,
        "use_parallel_residual": True,
        "vocab_size": 50304,
    },
    "llama_3.2_1b_ultrafeedback": LLAMA
    | {
        "head_dim": 64,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "rope_scaling": ROPE | {"factor": 32.0},
        "tie_word_embeddings": True,
    },
    "qwen3_0.6b_hh": {
        "model_type": "qwen3",
        "attention_bias": False,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "max_position_embeddings": 40960,
        "max_window_layers": 28,
        "num_attention_heads": 16,
        "num_hidden_layers": 28,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-6,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "vocab_size": 151936,
    },
    "llama_3.1_8b_lora": LLAMA
    | {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "rope_scaling": ROPE | {"factor": 8.0},
        "tie_word_embeddings": False,
    },
}


@pytest.fixture(autouse=True)
def nothing_is_here(tmp_path, monkeypatch):
    def unreachable(*args, **options):
        raise OSError("no network")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_every_config_can_be_checked(path, tmp_path, capsys):
    assert main(["check", "--config", str(path)]) == 0
    shown = capsys.readouterr().out
    tree = yaml.safe_load(path.read_text())
    if "arms" in tree:  # a study: the commands of its runs
        assert all(line.startswith("instruct-jax run --config ") for line in shown.splitlines())
    else:
        assert "\nmodel of " in shown and "parameters" in shown and "per device" in shown
        assert ("data" in tree) == ("not found, so the data part is skipped" in shown)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_the_first_comment_gives_command_and_hardware(path):
    comment = path.read_text().split("\nout:")[0].splitlines()
    assert comment[0].startswith(("# instruct-jax ", "# bash "))
    assert f"configs/{path.name}" in comment[0]
    assert any(line.startswith("# Hardware: ") for line in comment[1:])


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_lines_have_100_columns(path):
    assert max(len(line) for line in path.read_text().splitlines()) <= 100


@pytest.mark.parametrize("name", ["real_small", "clean"])
def test_public_data_have_a_source(name):
    """The comment says for each folder that the config reads where its files are from."""
    path = FOLDER / f"{name}.yaml"
    comment, config = path.read_text().split("\nout:")
    read = {SETS[prefix] for prefix in re.findall(r"(\w+):data/public", config)}
    read |= set(re.findall(r"data/public/(\w+)", config))
    known = FOLDER.joinpath("real_small.yaml").read_text().split("\nout:")[0] + comment
    described = set(re.findall(r"^#   (\w+)/\S+", known, re.MULTILINE))
    assert read and read <= described
    assert "do not come with the code" in comment and "from GitHub" in comment


def test_no_other_config_names_data_of_ours():
    for path in ALL:
        if path.stem not in ("real_small", "clean"):
            assert "data/public" not in path.read_text() and "../" not in path.read_text()


def test_the_config_of_data_clean():
    config = load_config(CleanConfig, FOLDER / "clean.yaml")
    assert config.overlap is not None and len(config.overlap.files) == 2


@pytest.mark.parametrize("name", PUBLISHED)
def test_models_of_the_hub_are_written_as_they_are(name, tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED[name]))
    theirs = read_config(AutoConfig.from_pretrained(tmp_path))
    config = load_run(FOLDER / f"{name}.yaml")
    ours = {key: getattr(config.model, key) for key in FREE}
    assert dataclasses.replace(theirs, **ours) == config.model
    data = config.data
    assert data is not None and data.pad_token and data.eos_token
    assert main(["check", "--config", str(FOLDER / f"{name}.yaml")]) == 0
    lost = capsys.readouterr().out.partition("would stop here):\n")[2].split()
    assert lost[0] == config.base
    assert {*data.demonstrations, *data.rankings, *data.prompts} <= set(lost)


@pytest.mark.parametrize(
    "name, parameters",
    {"1.3b": 1_517_219_840, "6b": 6_658_596_864, "175b": 174_604_836_864}.items(),
)
def test_the_papers_sizes(name, parameters, capsys):
    """Reward model and value function are 6B for every policy (paper 3.5, C.2, C.4)."""
    assert main(["check", "--config", str(FOLDER / f"instructgpt_{name}.yaml")]) == 0
    shown = capsys.readouterr().out
    sizes = {}
    for line in shown.partition("\nmodel of ")[2].partition("\n\n")[0].splitlines()[1:]:
        stages, count, *_ = re.split(r"  +", line)
        for stage in stages.split(", "):
            sizes[stage] = int(count.replace(",", ""))
    of_policy = {"pretrain", "sft", "select", "ppo_start", "ppo", "ppo_ptx"}
    assert {stage for stage, size in sizes.items() if size == parameters} >= of_policy
    assert sizes["reward"] == 6_658_596_864
    if name != "6b":
        assert sizes["pretrain_6b"] == sizes["sft_6b"] == sizes["reward"]
    assert "256,000 episodes" in shown and "8 updates of 64 + 8 x 512 x 2048 of text" in shown


@pytest.mark.parametrize("name", ["1.3b", "6b", "175b"])
def test_the_reward_model_of_the_paper_starts_from_an_sft_model_of_its_size(name):
    stages = load_run(FOLDER / f"instructgpt_{name}.yaml").stages
    own = "sft" if name == "6b" else "sft_6b"
    used = {stage: stages[stage].uses() for stage in stages}
    assert used["reward"] == {"start": own}
    assert name == "6b" or used["sft_6b"] == {"start": "pretrain_6b"}
    assert used["ppo"] == used["ppo_ptx"] == {"start": "ppo_start", "reward": "reward"}
    assert used["select"] == {"start": "sft", "reward": "reward"}


def test_adapters_share_one_base(capsys):
    assert main(["check", "--config", str(FOLDER / "llama_3.1_8b_lora.yaml")]) == 0
    shown = capsys.readouterr().out
    assert "18.4 GiB" in shown
    assert "frozen base; of what is trained on it policy" in shown
