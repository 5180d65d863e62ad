"""Adapter folders of peft: ours written for it, its own read and added to the weights that they
belong to.

A folder is adapter_config.json and adapter_model.safetensors with, for each module, lora_A.weight
[rank, in] and lora_B.weight [out, rank].
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from instruct_jax import sharding
from instruct_jax.config import LoraConfig, ModelConfig
from instruct_jax.huggingface.families import Family, Weight, sizes_of
from instruct_jax.huggingface.weights import WeightsError
from instruct_jax.records import Params
from instruct_jax.runtime.digests import named_leaves
from instruct_jax.runtime.hosts import is_main

CONFIG, WEIGHTS, PREFIX = "adapter_config.json", "adapter_model.safetensors", "base_model.model."


def write_adapter(
    folder: Path,
    family: Family,
    config: ModelConfig,
    lora: LoraConfig,
    params: Params,
    base: str | None,
) -> None:
    """The adapters among the parameters of a policy.  Where peft has one module for queries, keys
    and values, its rank is three times ours: the three adapters lie beside each other in A and on
    the diagonal of B.
    """
    arrays, sizes = named_leaves(params), sizes_of(config) | {"r": lora.rank}
    tensors: dict[str, np.ndarray] = {}
    targets: dict[str, int] = {}  # end of the module's name -> rank
    for weight in family.weights(arrays):
        names = [ours.replace(".kernel", "_lora") for ours in weight.ours]
        if not any(f"{name}.a" in arrays for name in names) or not weight.name.endswith(".weight"):
            continue
        module = weight.name.removesuffix(".weight")
        targets[module.partition("{}.")[2]] = len(names) * lora.rank
        for layer in range(config.layers):
            a, b = _beside(weight, [_of_layer(arrays, name, layer) for name in names], sizes)
            tensors[f"{PREFIX}{module.format(layer)}.lora_A.weight"] = a
            tensors[f"{PREFIX}{module.format(layer)}.lora_B.weight"] = b
    about = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": list(targets),
        "rank_pattern": {name: rank for name, rank in targets.items() if rank != lora.rank},
        "alpha_pattern": {
            name: lora.alpha * rank / lora.rank
            for name, rank in targets.items()
            if rank != lora.rank
        },
        "fan_in_fan_out": family.name == "gpt2",
        "bias": "none",
        "inference_mode": True,
    }
    if is_main():
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        (folder / CONFIG).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


Pair = tuple[np.ndarray, np.ndarray]


def _of_layer(arrays: Mapping[str, Any], name: str, layer: int) -> Pair | None:
    """a [in ..., rank] and b [rank, out ...] of one layer; None where the projection has no
    adapter.
    """
    return (
        (sharding.fetch(arrays[f"{name}.a"][layer]), sharding.fetch(arrays[f"{name}.b"][layer]))
        if f"{name}.a" in arrays
        else None
    )


def _beside(weight: Weight, pairs: list[Pair | None], sizes: Mapping[str, int]) -> Pair:
    """lora_A [rank, in] and lora_B [out, rank] of one module."""
    rank, read, out = sizes["r"], _axes(weight, written=False), _axes(weight, written=True)
    own = [axis for axis in out if axis != "3"]
    a = np.zeros((len(pairs) * rank, int(np.prod([sizes[axis] for axis in read]))), np.float32)
    b = np.zeros((*(sizes[axis] for axis in out), len(pairs) * rank), np.float32)
    for i, pair in enumerate(pairs):
        if pair is not None:
            part = slice(i * rank, (i + 1) * rank)
            a[part] = pair[0].reshape(-1, rank).T
            place = np.moveaxis(b, out.index("3"), 0)[i] if "3" in out else b
            place[..., part] = np.moveaxis(
                pair[1].reshape(rank, *(sizes[axis] for axis in own)), 0, -1
            )
    return a, b.reshape(-1, len(pairs) * rank)


def _axes(weight: Weight, *, written: bool) -> list[str]:
    """Of the tensor there: those that the module reads, or writes."""
    return weight.layout[1 - _first(weight) if written else _first(weight)].split()


def _first(weight: Weight) -> int:
    """Which of the two groups of the layout is read."""
    return 0 if weight.layout[0].split()[0] == weight.axes[0] else 1


class Added:
    """What the adapters of a folder add to the weights of their base."""

    def __init__(self, folder: Path):
        self.folder = folder
        try:
            self.about = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
            self._file = safe_open(folder / WEIGHTS, "numpy")
        except Exception as error:  # safetensors raises its own
            raise WeightsError(
                f"{folder}: not an adapter of peft ({error}); give a folder with {CONFIG} and"
                f" {WEIGHTS}"
            ) from error
        odd = [
            key
            for key in (
                "use_dora",
                "lora_bias",
                "modules_to_save",
                "use_qalora",
                "trainable_token_indices",
            )
            if self.about.get(key)
        ]
        if self.about.get("peft_type") != "LORA" or odd:
            found = odd or [f"peft_type={self.about.get('peft_type')!r}"]
            raise WeightsError(
                f"{folder / CONFIG}: {', '.join(found)} cannot be read; merge the adapter with peft"
                " and give the result"
            )
        self.left = set(self._file.keys())

    def to(self, weight: Weight, name: str) -> np.ndarray | None:
        """What is added to the tensor of this name; None where it has no adapter."""
        module = name.removesuffix(".weight")
        a, b = (f"{PREFIX}{module}.lora_{part}.weight" for part in "AB")
        if not name.endswith(".weight") or a not in self.left:
            return None
        self.left -= {a, b}
        low, high = (self._file.get_tensor(part).astype(np.float32) for part in (a, b))
        rank, patterns = len(low), self.about.get("alpha_pattern") or {}
        alpha = next(
            (value for end, value in patterns.items() if module.endswith(end)),
            self.about["lora_alpha"],
        )
        change = (
            high @ low * np.float32(alpha / (rank**0.5 if self.about.get("use_rslora") else rank))
        )
        return change.T if _first(weight) == 0 else change

    def check_used(self) -> None:
        if self.left:
            raise WeightsError(
                f"{self.folder}: {min(self.left)} belongs to no weight of the base model"
                f" ({len(self.left)} such)"
            )
