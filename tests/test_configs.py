"""The configs that come with the code, on a machine without their models, their data and a network."""

import dataclasses
import json
from pathlib import Path

import pytest
from transformers import AutoConfig

from instruct_jax.chain.base_model import FREE, load_run
from instruct_jax.cli import main
from instruct_jax.huggingface.families import read_config

FOLDER = Path(__file__).parents[1] / "configs"
RUNS = [
    path
    for path in sorted(FOLDER.glob("*.yaml"))
    if not path.read_text().startswith("# instruct-jax data ")
]
LLAMA = {"model_type": "llama", "hidden_act": "silu", "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
         "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 500000.0}  # fmt: skip
ROPE = {
    "rope_type": "llama3",
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
}
PUBLISHED = {  # what config.json of the hub says about the shape
    "gpt2_hh": {"model_type": "gpt2", "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "n_ctx": 1024, "n_embd": 768,
                "n_head": 12, "n_layer": 12, "n_positions": 1024, "vocab_size": 50257},
    "pythia_1b_tldr": {"model_type": "gpt_neox", "hidden_act": "gelu", "hidden_size": 2048, "intermediate_size": 8192,
                       "layer_norm_eps": 1e-5, "max_position_embeddings": 2048, "num_attention_heads": 8, "num_hidden_layers": 16,
                       "rotary_emb_base": 10000, "rotary_pct": 0.25, "tie_word_embeddings": False, "use_parallel_residual": True,
                       "vocab_size": 50304},
    "llama_3.2_1b_ultrafeedback": LLAMA | {"head_dim": 64, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
                                           "rope_scaling": ROPE | {"factor": 32.0}, "tie_word_embeddings": True},
    "qwen3_0.6b_hh": {"model_type": "qwen3", "attention_bias": False, "head_dim": 128, "hidden_act": "silu", "hidden_size": 1024,
                      "intermediate_size": 3072, "max_position_embeddings": 40960, "max_window_layers": 28, "num_attention_heads": 16,
                      "num_hidden_layers": 28, "num_key_value_heads": 8, "rms_norm_eps": 1e-6, "rope_scaling": None,
                      "rope_theta": 1000000, "sliding_window": None, "tie_word_embeddings": True, "use_sliding_window": False,
                      "vocab_size": 151936},
    "llama_3.1_8b_lora": LLAMA | {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
                                  "rope_scaling": ROPE | {"factor": 8.0}, "tie_word_embeddings": False},
}  # fmt: skip


@pytest.fixture(autouse=True)
def nothing_is_here(tmp_path, monkeypatch):
    def unreachable(*args, **options):
        raise OSError("no network")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_every_config_can_be_checked(path, tmp_path, capsys):
    """Its first comment gives the command and the hardware."""
    assert main(["check", "--config", str(path)]) == 0
    shown = capsys.readouterr().out
    if "\narms:" in path.read_text():  # a study: the commands of its runs
        assert all(line.startswith("instruct-jax run --config ") for line in shown.splitlines())
    else:
        assert "policy " in shown and "parameters" in shown and "per device" in shown
        assert ("\nfiles:" in path.read_text()) == (
            "not found, so the data part is skipped" in shown
        )
    first, *rest = path.read_text().split("\nout:")[0].splitlines()
    assert first.startswith(("# instruct-jax ", "# bash ")) and f"configs/{path.name}" in first
    assert any(line.startswith("# Hardware: ") for line in rest) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", PUBLISHED)
def test_models_of_the_hub_are_written_as_they_are(name, tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED[name]))
    theirs, config = (
        read_config(AutoConfig.from_pretrained(tmp_path)),
        load_run(FOLDER / f"{name}.yaml"),
    )
    assert (
        dataclasses.replace(theirs, **{key: getattr(config.model, key) for key in FREE})
        == config.model
    )
    assert (
        config.base is not None
        and config.files is not None
        and config.files.pad_token
        and config.files.eos_token
    )
    assert main(["check", "--config", str(FOLDER / f"{name}.yaml")]) == 0
    lost = capsys.readouterr().out.partition("would stop here):\n")[2].split()
    assert lost[0] == config.base and {
        *config.files.demonstrations,
        *config.files.rankings,
        *config.files.prompts,
    } <= set(lost)


@pytest.mark.parametrize(
    "name, parameters",
    {"1.3b": "1,517,219,840", "6b": "6,658,596,864", "175b": "174,604,836,864"}.items(),
)
def test_the_papers_sizes(name, parameters, capsys):
    assert main(["check", "--config", str(FOLDER / f"instructgpt_{name}.yaml")]) == 0
    shown = capsys.readouterr().out
    assert (
        f"policy         {parameters} parameters" in shown
        and "reward model   6,658,600,961 parameters" in shown
    )
    assert "256,000 episodes" in shown and "8 updates of 64 + 8 x 512 x 2048 of text" in shown


def test_adapters_share_one_base(capsys):
    assert main(["check", "--config", str(FOLDER / "llama_3.1_8b_lora.yaml")]) == 0
    assert (
        "18.4 GiB" in (shown := capsys.readouterr().out)
        and "frozen base; of what is trained on it policy" in shown
    )
