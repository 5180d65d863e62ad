"""Adapters that peft wrote, and ours that peft reads, on models of every family that fuses or turns
its weights.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is only for tests: pip install torch")
pytest.importorskip("peft", reason="peft is only for tests: pip install peft")
import peft
import torch
import torch_models
import transformers
from flax import linen as nn

from instruct_jax import sharding
from instruct_jax.config import LoraConfig, MeshConfig
from instruct_jax.huggingface.families import family_of, read_config
from instruct_jax.huggingface.peft import PeftAdapter, write_adapter
from instruct_jax.huggingface.weights import WeightsError, read_params
from instruct_jax.models.lm import LanguageModel
from instruct_jax.models.lora import merge, split_adapters

LAYOUT = sharding.Layout(sharding.make_mesh(MeshConfig(data=1), jax.devices()[:1]))
TOKENS = np.random.default_rng(0).integers(0, torch_models.V, (2, 9))
CASES = {
    "gpt2": {"target_modules": ["c_attn", "c_fc", "mlp.c_proj"], "fan_in_fan_out": True},
    "gpt_neox": {"target_modules": ["query_key_value", "dense"], "use_rslora": True},
    "llama 3": {
        "target_modules": "all-linear",
        "alpha_pattern": {"q_proj": 9},
        "rank_pattern": {"up_proj": 5},
    },
    "opt": {"target_modules": ["q_proj", "fc2"]},
}


def make(name, folder, **keys):
    """Returns the model with an adapter of peft, the folder of the base, that of the adapter."""
    model = torch_models.model_of(name)
    torch_models.save(model, folder / "base")
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=3, lora_alpha=7, **CASES[name] | keys))
    torch.manual_seed(1)
    with torch.no_grad():
        for part, weight in adapted.named_parameters():
            if "lora_B" in part:
                weight += 0.3 * torch.randn_like(weight)
    adapted.save_pretrained(folder / "adapter")
    return adapted.eval(), folder / "base", folder / "adapter"


def ours(base, adapter):
    hf = transformers.AutoConfig.from_pretrained(base)
    lm, lora = LanguageModel(read_config(hf)), PeftAdapter(adapter)
    boxed = jax.eval_shape(lm.init, jax.random.key(0))
    params = read_params(base, family_of(hf), lm.config, boxed, LAYOUT, change=lora.change)
    lora.check_used()
    return logits(lm, params)


def logits(lm, params):
    """Of TOKENS."""
    hidden = lm.hidden(params, jnp.array(TOKENS), jnp.ones(TOKENS.shape, jnp.int32))
    rows = lm.logits(params, hidden.reshape(-1, hidden.shape[-1]))
    return np.asarray(rows).reshape(*TOKENS.shape, -1)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("name", CASES)
def test_what_peft_wrote_is_read(name, tmp_path):
    model, base, adapter = make(name, tmp_path)
    expected = torch_models.logits(model, TOKENS, np.ones_like(TOKENS))
    np.testing.assert_allclose(
        ours(base, adapter), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max()
    )


PATTERNS = {
    "one layer": {r"layers\.0\.self_attn\.(q|v)_proj": 64, "q_proj": 9},
    "the first that fits": {"q_proj": 9, r"layers\.0\.self_attn\.q_proj": 64},
    "a whole part of the name": {"proj": 64, "attn.q_proj": 64, "v_pro": 64},
    "the whole name": {r"model\.layers\.\d\.mlp\..*": 64, "^q_proj": 9},
}


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*did not match any targeted module:RuntimeWarning")
@pytest.mark.parametrize("alphas", PATTERNS.values(), ids=PATTERNS)
def test_patterns_are_those_of_peft(alphas, tmp_path):
    """Of the adapter as peft reads it from the folder, where the patterns are sorted."""
    ranks = dict.fromkeys(alphas, 5)
    _, base, adapter = make("llama 3", tmp_path, alpha_pattern=alphas, rank_pattern=ranks)
    model = transformers.AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager")
    model = peft.PeftModel.from_pretrained(model.eval(), adapter)
    expected = torch_models.logits(model, TOKENS, np.ones_like(TOKENS))
    np.testing.assert_allclose(
        ours(base, adapter), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max()
    )


def changed(adapter, **keys):
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
def test_what_cannot_be_read_is_named(tmp_path):
    _, base, adapter = make("llama 3", tmp_path)
    before = json.loads((adapter / "adapter_config.json").read_text())
    unreadable = {
        "use_dora": True,
        "modules_to_save": ["lm_head"],
        "bias": "lora_only",
        "init_lora_weights": "pissa_niter_4",
        "layer_replication": [[0, 2]],
        "target_parameters": ["mlp.experts"],
        "some_new_thing": {"a": 1},
        "peft_type": "IA3",
        "r": 4,
        "alpha_pattern": {"(q_proj": 3},
    }
    for key, value in unreadable.items():
        changed(adapter, **before | {key: value})
        with pytest.raises(WeightsError, match=rf"{key}=|says 4; correct {key}|{key} has"):
            ours(base, adapter)
        (adapter / "adapter_config.json").write_text(json.dumps(before))
    (adapter / "adapter_config.json").write_text("{")
    with pytest.raises(WeightsError, match="not an adapter of peft"):
        ours(base, adapter)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
def test_an_adapter_of_another_model_is_named(tmp_path):
    _, _, adapter = make("llama 3", tmp_path)
    _, base, _ = make("opt", tmp_path / "other")
    with pytest.raises(WeightsError, match=r"model.layers.0.*belongs to no weight"):
        ours(base, adapter)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("name", ["gpt_neox", "qwen3"])  # the end-to-end chain has gpt2
def test_what_we_write_is_read_by_peft_and_by_us(name, tmp_path):
    model = torch_models.model_of(name)
    base, adapter = torch_models.save(model, tmp_path / "base"), tmp_path / "adapter"
    hf = transformers.AutoConfig.from_pretrained(base)
    lora = LoraConfig(rank=2, targets=("q", "k", "v", "out", "up", "down"))
    lm = LanguageModel(read_config(hf), lora=lora)
    whole, _ = split_adapters(jax.eval_shape(lm.init, jax.random.key(0)))
    frozen = read_params(base, family_of(hf), lm.config, whole, LAYOUT)
    _, new = split_adapters(nn.unbox(lm.init(jax.random.key(1))))
    rng = np.random.default_rng(0)
    trained = jax.tree.map(lambda x: x + 0.3 * rng.normal(size=x.shape).astype(x.dtype), new)
    params = merge(frozen, trained)
    adapter.mkdir()
    write_adapter(adapter, family_of(hf), lm.config, lora, params, str(base))
    expected = logits(lm, params)
    assert np.abs(expected - torch_models.logits(model, TOKENS, np.ones_like(TOKENS))).max() > 1e-2
    theirs = torch_models.logits(
        peft.PeftModel.from_pretrained(model, adapter), TOKENS, np.ones_like(TOKENS)
    )
    for found in (theirs, ours(base, adapter)):
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
