"""Importing holds one tensor at a time on the host."""

import json
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from safetensors.numpy import save_file

from instruct_jax.config import ModelConfig
from instruct_jax.huggingface.families import FAMILIES, sizes_of

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
