"""Every family computes what torch computes: logits, gradients, greedy decoding; and keeps its
weights and config through a round trip.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is only for tests: pip install torch")
import torch
import torch_models
import transformers
from torch_models import CONFIGS, FIRST, V

from instruct_jax import sharding
from instruct_jax.config import MeshConfig
from instruct_jax.errors import ConfigError
from instruct_jax.huggingface import weights
from instruct_jax.huggingface.families import FAMILIES, family_of, read_config, write_config
from instruct_jax.models.heads import ScalarModel
from instruct_jax.models.lm import LanguageModel
from instruct_jax.records import PromptBatch
from instruct_jax.stages.rollout import SamplerConfig, make_rollout

B, L = 3, 14
LAYOUT = sharding.Layout(sharding.make_mesh(MeshConfig(data=1), jax.devices()[:1]))


def boxed(model):
    return jax.eval_shape(model.init, jax.random.key(0))


def ours(folder):
    """(model, parameters, family) of a folder."""
    hf = transformers.AutoConfig.from_pretrained(folder)
    config = read_config(hf)
    lm = LanguageModel(config)
    return lm, weights.read_params(folder, family_of(hf), config, boxed(lm), LAYOUT), family_of(hf)


def batches():
    """Tokens and masks [B, L]: whole, padded on the right, padded on the left."""
    rng = np.random.default_rng(0)
    tokens, at, sizes = rng.integers(0, V, (B, L)), np.arange(L)[None, :], np.array([[L], [9], [4]])
    return tokens, {"right": at < sizes, "left": at >= L - sizes}


def close(a, b, tolerance, what):
    scale = np.abs(b).max()
    assert np.abs(a - b).max() <= tolerance * scale, (
        f"{what}: {np.abs(a - b).max() / scale:.2g} of {scale:.3g}"
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_parity_with_torch(name, tmp_path):
    model = torch_models.model_of(name)
    lm, params, _family = ours(torch_models.save(model, tmp_path / "model"))
    tokens, masks = batches()

    @jax.jit
    def read(params, tokens, segments):
        hidden = lm.hidden(params, tokens, segments)
        return lm.logits(params, hidden.reshape(-1, hidden.shape[-1])).reshape(*tokens.shape, -1)

    for side, mask in masks.items():
        found, expected = (
            read(params, jnp.array(tokens), jnp.array(mask, jnp.int32)),
            torch_models.logits(model, tokens, mask),
        )
        close(np.asarray(found)[mask], expected[mask], 1e-4, f"logits padded on the {side}")

    segments = np.where(np.arange(L) < 6, 1, 2)[None]  # two documents in one row
    packed = np.asarray(
        read(params, jnp.array(tokens), jnp.array(np.repeat(segments, B, 0), jnp.int32))
    )
    apart = [
        torch_models.logits(model, part, np.ones_like(part))
        for part in (tokens[:, :6], tokens[:, 6:])
    ]
    close(packed, np.concatenate(apart, 1), 1e-4, "logits of packed rows")

    def loss(params):
        hidden = lm.hidden(params, jnp.array(tokens), jnp.ones((B, L), jnp.int32))
        return -lm.logprobs(params, hidden[:, :-1], jnp.array(tokens[:, 1:], jnp.int32))[0].mean()

    gradient = jax.jit(jax.grad(loss))(params)
    ids = torch.tensor(tokens)
    model.zero_grad()
    torch.nn.functional.cross_entropy(
        model(ids).logits[:, :-1].reshape(-1, V), ids[:, 1:].reshape(-1)
    ).backward()
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.zeros_like(weight) if weight.grad is None else weight.grad)
    theirs = ours(torch_models.save(model, tmp_path / "gradient"))[1]
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(gradient), jax.tree.leaves(theirs), strict=True
    ):
        if np.abs(b).max() > 1e-6:  # the biases of keys change nothing
            close(np.asarray(a), np.asarray(b), 1e-3, f"gradient of {jax.tree_util.keystr(path)}")


@pytest.mark.parametrize("name", FIRST.values())
def test_greedy_decoding_is_that_of_generate(name, tmp_path):
    model = torch_models.model_of(name)
    lm, params, _ = ours(torch_models.save(model, tmp_path / "model"))
    tokens, masks = batches()
    mask, new = masks["left"], 64
    prompts = PromptBatch(jnp.array(tokens, jnp.int32), jnp.array(mask))
    rollout = jax.jit(
        make_rollout(lm, SamplerConfig(max_tokens=new, temperature=0.0), eos=(V + 1,), pad=0)
    )
    found = rollout(params, prompts, jax.random.key(0)).tokens
    config = transformers.GenerationConfig(
        max_new_tokens=new, do_sample=False, pad_token_id=0, eos_token_id=None
    )
    ids, seen = torch.tensor(tokens), torch.tensor(mask, dtype=torch.long)
    expected = model.generate(ids, attention_mask=seen, generation_config=config)[:, L:]
    np.testing.assert_array_equal(found, expected.numpy())


@pytest.mark.parametrize("name", CONFIGS)
def test_the_config_survives(name):
    config = read_config(torch_models.config_of(name))
    again = read_config(transformers.AutoConfig.for_model(**write_config(config)))
    assert again == config


@pytest.mark.parametrize("name", FIRST.values())
def test_the_weights_survive(name, tmp_path):
    """import(export(x)) is x, bit for bit, and torch reads what we write."""
    lm, params, family = ours(
        torch_models.save(torch_models.model_of(name), tmp_path / "model", max_shard_size="20KB")
    )
    out = tmp_path / "out"
    out.mkdir()
    weights.write_params(out, family, lm.config, params, shard_bytes=20_000)
    assert len(list(out.glob("*.safetensors"))) > 2
    again = weights.read_params(out, family, lm.config, boxed(lm), LAYOUT)
    jax.tree.map(np.testing.assert_array_equal, again, params)
    transformers.AutoConfig.for_model(**write_config(lm.config)).save_pretrained(out)
    loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    theirs, info = loaded
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    original = torch_models.model_of(name).state_dict()
    for key, value in theirs.state_dict().items():
        torch.testing.assert_close(value, original[key], rtol=0, atol=0)


@pytest.mark.parametrize("name", ["gpt_neox", "gemma3", "olmo2"])
def test_eight_devices_compute_what_one_does(name, tmp_path):
    """Born on a mesh of fsdp, tensor and context; logits, and a token that is decoded."""
    folder = torch_models.save(torch_models.model_of(name), tmp_path / "model")
    config = read_config(transformers.AutoConfig.from_pretrained(folder), vocab_multiple=8)
    tokens, masks = batches()
    tokens, mask = jnp.array(tokens[:2]), jnp.array(masks["left"][:2])
    found = []
    for mesh in (MeshConfig(data=1), MeshConfig(data=1, fsdp=2, tensor=2, context=2)):
        layout = sharding.Layout(
            sharding.make_mesh(mesh, jax.devices()[: 8 if mesh.tensor == 2 else 1])
        )
        lm = LanguageModel(config, layout)
        params = weights.read_params(
            folder, FAMILIES[str(config.family)], config, boxed(lm), layout
        )

        @jax.jit
        def read(params, lm=lm):
            hidden = lm.hidden(params, tokens, mask.astype(jnp.int32))
            last, cache = lm.prefill(params, PromptBatch(tokens.astype(jnp.int32), mask), L + 2)
            token = lm.logits(params, last).argmax(-1).astype(jnp.int32)
            return lm.logits(params, hidden.reshape(-1, hidden.shape[-1])), lm.logits(
                params, lm.decode(params, cache, token)[0]
            )

        found.append(jax.tree.map(np.asarray, read(params)))
    for a, b in zip(*found, strict=True):
        close(a[: len(b)], b, 1e-5, "a mesh")


def test_every_family_is_tested():
    assert set(FIRST) == set(FAMILIES)


@pytest.mark.parametrize("name", FIRST.values())
def test_reward_models(name, tmp_path):
    model = torch_models.model_of(name, head=True)
    folder = torch_models.save(model, tmp_path / "model")
    hf = transformers.AutoConfig.from_pretrained(folder)
    scalar = ScalarModel(LanguageModel(read_config(hf)))
    params = weights.read_params(
        folder, family_of(hf), scalar.lm.config, boxed(scalar), LAYOUT, head=True
    )
    tokens, masks = batches()
    tokens = np.where(masks["right"], np.maximum(tokens, 1), 0)  # 0 is PAD
    found = scalar.score(params, jnp.array(tokens), jnp.array(masks["right"]))
    close(
        np.asarray(found), torch_models.logits(model, tokens, masks["right"])[:, 0], 1e-4, "rewards"
    )


def test_half_precision_is_read_as_it_is(tmp_path):
    for dtype in (torch.bfloat16, torch.float16):
        model = torch_models.model_of("llama").to(dtype)
        _, params, _ = ours(torch_models.save(model, tmp_path / str(dtype)))
        assert {x.dtype for x in jax.tree.leaves(params)} == {np.dtype(np.float32)}
        np.testing.assert_array_equal(
            params["embedding"], model.model.embed_tokens.weight.detach().float().numpy()
        )


def test_a_padded_vocabulary_is_cut_again(tmp_path):
    folder = torch_models.save(torch_models.model_of("llama"), tmp_path / "model")
    hf = transformers.AutoConfig.from_pretrained(folder)
    config = read_config(hf, vocab_multiple=8)
    lm = LanguageModel(config)
    params = weights.read_params(folder, family_of(hf), config, boxed(lm), LAYOUT)
    assert params["embedding"].shape[0] == 104 and not np.asarray(params["embedding"][V:]).any()
    out = tmp_path / "out"
    out.mkdir()
    weights.write_params(out, family_of(hf), config, params)
    assert ours_shape(out, "model.embed_tokens.weight") == (V, 24)


def ours_shape(folder, name):
    with weights.Tensors(folder, FAMILIES["llama"]) as tensors:
        return tensors.shape(name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.pop("model.layers.1.mlp.up_proj.weight"),
            "model.layers.1.mlp.up_proj.weight is missing",
        ),
        (lambda t: t.update(extra=torch.ones(2)), "extra has no place"),
        (
            lambda t: t.update({"model.norm.weight": torch.ones(5)}),
            r"model.norm.weight has the shape \[5\], the config asks for \[24\]",
        ),
        (
            lambda t: t.update({"model.norm.weight": torch.ones(24, dtype=torch.int64)}),
            "model.norm.weight has the type I64",
        ),
    ],
)
def test_what_does_not_fit_is_named(change, message, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = torch_models.save(torch_models.model_of("llama"), tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(weights.WeightsError, match=message):
        ours(folder)


def test_what_the_decoder_lacks_is_refused():
    for family, keys, message in (
        ("opt", {"word_embed_proj_dim": 12, "hidden_size": 24}, "word_embed_proj_dim=12"),
        ("gpt2", {"activation_function": "tanh"}, "'tanh'"),
        ("bert", {}, "model_type='bert'"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            "rope_type='dynamic'",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            read_config(transformers.AutoConfig.for_model(family, **keys))
