"""What a model of Hugging Face is, by the files of its folder."""

import json
from pathlib import Path

import numpy as np
import pytest
from data import wordtok
from safetensors.numpy import save_file
from small import LLAMA

from instruct_jax.chain.read import imported_as
from instruct_jax.chain.settings import DataConfig, RunConfig
from instruct_jax.chain.spec import TokenizerSource, base_and_adapter, hub_config, tokenizer_place
from instruct_jax.errors import ConfigError, DataError


def data_of(config: RunConfig) -> DataConfig:
    assert config.data is not None
    return config.data


def write(path: Path, **keys) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(keys))


@pytest.fixture
def adapter(tmp_path, monkeypatch):
    """A folder `adapter` on a folder `base`, which alone has a tokenizer."""
    monkeypatch.chdir(tmp_path)
    write(Path("base/config.json"), **LLAMA)
    wordtok.words().save_pretrained("base")
    named = {"peft_type": "LORA", "base_model_name_or_path": "base"}
    write(Path("adapter/adapter_config.json"), **named)
    save_file({"x": np.zeros(1, np.float32)}, "adapter/adapter_model.safetensors")
    return Path("adapter/adapter_config.json"), named


@pytest.mark.parametrize("keys", [{"quant_method": "fp8"}, {"load_in_4bit": True}])
def test_a_quantised_model_is_refused_by_its_config(keys, tmp_path):
    write(tmp_path / "config.json", **LLAMA, quantization_config=None)
    assert hub_config(str(tmp_path)).vocab_size == 20
    write(tmp_path / "config.json", **LLAMA, quantization_config=keys)
    with pytest.raises(ConfigError, match=r"config.json: quantization_config .*dequantize\(\)"):
        hub_config(str(tmp_path))


def test_an_adapter_has_the_tokenizer_of_its_base(adapter):
    assert tokenizer_place("adapter") == "base" == tokenizer_place("base")
    assert data_of(imported_as("adapter", "run")).tokenizer == "base"
    given = imported_as("adapter", "run", ["--data.tokenizer", "elsewhere"])
    assert data_of(given).tokenizer == "elsewhere"
    wordtok.words().save_pretrained("adapter")
    assert tokenizer_place("adapter") == "adapter"


def test_its_replies_end_as_those_of_its_base(adapter):
    write(Path("base/generation_config.json"), eos_token_id=[2, 5])
    wordtok.words().save_pretrained("adapter")
    assert TokenizerSource("adapter").listed_ends() == (2, 5)


def test_a_base_without_tokenizer_is_named(adapter):
    for path in Path("base").glob("tokenizer*"):
        path.unlink()
    with pytest.raises(DataError, match="adapter has no tokenizer, and its base base has none"):
        imported_as("adapter", "run")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"base_model_name_or_path": "gone"}, "base_model_name_or_path='gone' is not to be had"),
        ({"base_model_name_or_path": None}, "base_model_name_or_path=None names no model"),
        (
            {"base_model_name_or_path": "a/b", "revision": "v1"},
            "base_model_name_or_path='a/b@v1' is not to be had",
        ),
    ],
)
def test_a_base_that_is_not_there_is_named(change, message, adapter):
    path, named = adapter
    write(path, **named | change)
    with pytest.raises(DataError, match=message):
        base_and_adapter(Path("adapter"))
