"""Which files of a folder are its model, and that importing holds one tensor at a time."""

import json
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from safetensors.numpy import save_file

from instruct_jax.config import ModelConfig
from instruct_jax.huggingface.families import FAMILIES, sizes_of
from instruct_jax.huggingface.weights import QUANTISED, Tensors, WeightsError

KEYS = {
    "family": "llama",
    "vocab_size": 50_000,
    "context": 64,
    "width": 1024,
    "layers": 24,
    "heads": 8,
    "mlp_width": 4096,
    "positions": "rotary",
    "norm": "rmsnorm",
    "activation": "silu",
    "gated": True,
    "bias": False,
    "tied": True,
}
CONFIG = ModelConfig(**KEYS)
IMPORT = """
    import dataclasses, json, sys, threading, time
    import flax.linen as nn
    import jax
    from pathlib import Path
    from instruct_jax import sharding
    from instruct_jax.config import MeshConfig, ModelConfig
    from instruct_jax.huggingface.families import FAMILIES
    from instruct_jax.models.lm import LanguageModel
    from instruct_jax.huggingface.weights import read_params

    def held():
        # bytes of this process alone; pages of files can be dropped at any time
        for line in open("/proc/self/status"):
            if line.startswith("RssAnon"):
                return int(line.split()[1]) * 1024

    config = ModelConfig(**json.loads(sys.argv[2]))
    lm = LanguageModel(config)
    layout = sharding.Layout(sharding.make_mesh(MeshConfig(data=1)))
    boxed = jax.eval_shape(lm.init, jax.random.key(0))
    peak, before = [0], held()
    def watch():
        while True:
            peak[0] = max(peak[0], held())
            time.sleep(0.002)
    threading.Thread(target=watch, daemon=True).start()
    params = read_params(Path(sys.argv[1]), FAMILIES["llama"], config, boxed, layout)
    jax.block_until_ready(params)
    size = sum(x.nbytes for x in jax.tree.leaves(params))
    print(json.dumps({"more": peak[0] - before, "parameters": size}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_model_of_many_shards_needs_one_tensor_of_host_memory(tmp_path):
    """The devices are in host memory here, so the size of their arrays is subtracted.  The rest is
    less than the largest tensor plus 1 GiB.
    """
    import flax.linen as nn
    import jax

    from instruct_jax.models.lm import LanguageModel
    from instruct_jax.runtime.digests import named_leaves

    names = named_leaves(nn.unbox(jax.eval_shape(LanguageModel(CONFIG).init, jax.random.key(0))))
    index, largest, total, sizes = {}, 0, 0, sizes_of(CONFIG)
    for weight in FAMILIES["llama"].weights(names):
        for layer in range(CONFIG.layers) if "{}" in weight.name else [None]:
            name, shape = weight.name.format(layer), weight.shape(sizes)
            file = f"model-{len(index):05}.safetensors"
            save_file({name: np.zeros(shape, np.float32)}, tmp_path / file)
            index[name] = file
            size = 4 * int(np.prod(shape))
            largest, total = max(largest, size), total + size
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    assert total > 1.5 * 2**30  # or a whole copy would go unseen
    argv = [sys.executable, "-c", textwrap.dedent(IMPORT), str(tmp_path), json.dumps(KEYS)]
    found = json.loads(subprocess.run(argv, check=True, capture_output=True, text=True).stdout)
    assert found["parameters"] == total
    assert found["more"] - found["parameters"] < largest + 2**30


# --- model.safetensors beside an index ---

ONE = {"model.a": np.ones(2, np.float32), "model.b": np.zeros(3, np.float32)}
INDEX = "model.safetensors.index.json"


def sharded(folder, tensors):
    """Each tensor in a file of its own, and the index."""
    files = {}
    for number, (name, tensor) in enumerate(tensors.items()):
        files[name] = f"model-{number}.safetensors"
        save_file({name: tensor}, folder / files[name])
    (folder / INDEX).write_text(json.dumps({"weight_map": files}))


def read(folder):
    with Tensors(folder, FAMILIES["llama"]) as tensors:
        return {name: tensors.read(name).tolist() for name in tensors.names()}


EXPECTED = {name: tensor.tolist() for name, tensor in ONE.items()}


def test_a_stale_index_is_passed_over_as_in_transformers(tmp_path):
    sharded(tmp_path, {"model.old": np.ones(1, np.float32), **ONE})
    assert set(read(tmp_path)) == {"model.old", *ONE}
    (tmp_path / "model-0.safetensors").unlink()
    save_file(ONE, tmp_path / "model.safetensors")
    assert read(tmp_path) == EXPECTED
    save_file({"model.other": np.ones(1, np.float32)}, tmp_path / "model-0.safetensors")
    assert read(tmp_path) == EXPECTED


def test_what_an_index_alone_names_must_be_there(tmp_path):
    sharded(tmp_path, ONE)
    save_file({"model.c": np.ones(1, np.float32)}, tmp_path / "model-1.safetensors")
    with pytest.raises(WeightsError, match="model.b in model-1.safetensors is missing"):
        read(tmp_path)
    (tmp_path / "model-0.safetensors").unlink()
    with pytest.raises(WeightsError, match="the file model-0.safetensors is missing"):
        read(tmp_path)


def test_an_index_of_the_one_file_is_read(tmp_path):
    save_file(ONE, tmp_path / "model.safetensors")
    files = dict.fromkeys(ONE, "model.safetensors")
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": files}))
    assert read(tmp_path) == EXPECTED


def test_the_same_model_twice_is_read(tmp_path):
    sharded(tmp_path, ONE)
    save_file(ONE, tmp_path / "model.safetensors")
    assert read(tmp_path) == EXPECTED


@pytest.mark.parametrize(
    "other", [{"model.a": np.ones(2, np.float32)}, ONE | {"model.b": ONE["model.b"] + 1}]
)
def test_two_whole_models_are_both_named(other, tmp_path):
    sharded(tmp_path, other)
    save_file(ONE, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=f"model.safetensors and the files of {INDEX}"):
        read(tmp_path)


@pytest.mark.parametrize(
    "name",
    """
    qweight qzeros scales g_idx weight_scale weight_scale_inv weight_packed SCB weight.absmax
    weight.quant_map weight.nested_absmax weight.quant_state.bitsandbytes__nf4
    """.split(),
)
def test_tensors_of_quantised_weights_are_known(name):
    assert QUANTISED.search(f"model.layers.0.mlp.up_proj.{name}")


def test_no_family_has_a_tensor_that_looks_quantised():
    for family in FAMILIES.values():
        for theirs, _, _ in family.rows:
            for end in ("weight", "bias"):
                assert not QUANTISED.search(f"{family.prefix}{theirs}.{end}")
