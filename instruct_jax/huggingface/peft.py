"""Adapter folders of peft: ours written for it, and its own read and added to the weights.

A folder is adapter_config.json and adapter_model.safetensors with, for each module, lora_A.weight
[rank, in] and lora_B.weight [out, rank].
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from instruct_jax import sharding
from instruct_jax.config import LoraConfig, ModelConfig
from instruct_jax.errors import shorten
from instruct_jax.huggingface.families import Family, Weight, sizes_of
from instruct_jax.huggingface.weights import WeightsError
from instruct_jax.records import Params
from instruct_jax.runtime.digests import named_leaves
from instruct_jax.runtime.hosts import is_main

CONFIG, WEIGHTS, PREFIX = "adapter_config.json", "adapter_model.safetensors", "base_model.model."
# keys of an adapter's config that are read, or that say nothing about what it computes; any other
# one that is set is refused
KNOWN = frozenset(
    """
    alpha_pattern auto_mapping base_model_name_or_path bias corda_config ensure_weight_tying
    eva_config exclude_modules fan_in_fan_out inference_mode init_lora_weights layers_pattern
    layers_to_transform loftq_config lora_alpha lora_dropout lora_ga_config megatron_config
    megatron_core peft_type peft_version qalora_group_size r rank_pattern revision runtime_config
    target_modules task_type use_rslora
    """.split()
)
# ways to begin that change the weights of the base too, and an adapter has only its own
CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
Pair = tuple[np.ndarray, np.ndarray]  # A and B


def write_adapter(
    folder: Path,
    family: Family,
    config: ModelConfig,
    lora: LoraConfig,
    params: Params,
    base: str | None,
) -> None:
    """Writes the adapters among the parameters of a policy.

    `base` names the model that they belong to.  Where peft has one module for queries, keys and
    values, its rank is three times ours: the three adapters lie beside each other in A and on the
    diagonal of B.
    """
    arrays = named_leaves(params)
    sizes = sizes_of(config) | {"r": lora.rank}
    tensors: dict[str, np.ndarray] = {}
    ranks: dict[str, int] = {}  # end of the module's name -> rank
    for weight in family.weights(arrays):
        names = [ours.replace(".kernel", "_lora") for ours in weight.ours]
        has_adapter = any(f"{name}.a" in arrays for name in names)
        if not has_adapter or not weight.name.endswith(".weight"):
            continue
        module = weight.name.removesuffix(".weight")
        ranks[module.partition("{}.")[2]] = len(names) * lora.rank
        for layer in range(config.layers):
            pairs = [_of_layer(arrays, name, layer) for name in names]
            a, b = _joined(weight, pairs, sizes)
            tensors[f"{PREFIX}{module.format(layer)}.lora_A.weight"] = a
            tensors[f"{PREFIX}{module.format(layer)}.lora_B.weight"] = b
    rank_pattern, alpha_pattern = {}, {}
    for name, rank in ranks.items():
        if rank != lora.rank:
            rank_pattern[name] = rank
            alpha_pattern[name] = lora.alpha * rank / lora.rank
    keys = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": list(ranks),
        "rank_pattern": rank_pattern,
        "alpha_pattern": alpha_pattern,
        "fan_in_fan_out": family.name == "gpt2",
        "bias": "none",
        "inference_mode": True,
    }
    if is_main():
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        (folder / CONFIG).write_text(json.dumps(keys, indent=2) + "\n", encoding="utf-8")


def _of_layer(arrays: Mapping[str, Any], name: str, layer: int) -> Pair | None:
    """Our a [in ..., rank] and b [rank, out ...] of one layer; None without an adapter."""
    if f"{name}.a" not in arrays:
        return None
    a, b = arrays[f"{name}.a"], arrays[f"{name}.b"]
    return sharding.fetch(a[layer]), sharding.fetch(b[layer])


def _joined(weight: Weight, pairs: list[Pair | None], sizes: Mapping[str, int]) -> Pair:
    """lora_A [rank, in] and lora_B [out, rank] of one module of theirs."""
    rank = sizes["r"]
    total = len(pairs) * rank
    reads, writes = _axes(weight)
    a = np.zeros((total, math.prod(sizes[axis] for axis in reads)), np.float32)
    b = np.zeros((*(sizes[axis] for axis in writes), total), np.float32)
    written = [sizes[axis] for axis in writes if axis != "3"]
    for i, pair in enumerate(pairs):
        if pair is None:
            continue
        our_a, our_b = pair
        columns = slice(i * rank, (i + 1) * rank)
        a[columns] = our_a.reshape(-1, rank).T
        own = b  # a view of what this adapter writes
        if "3" in writes:
            own = np.moveaxis(b, writes.index("3"), 0)[i]
        own[..., columns] = np.moveaxis(our_b.reshape(rank, *written), 0, -1)
    return a, b.reshape(-1, total)


def _axes(weight: Weight) -> tuple[list[str], list[str]]:
    """The axes of their tensor that the module reads, and those that it writes."""
    first, second = (group.split() for group in weight.layout)
    return (first, second) if _reads_first(weight) else (second, first)


def _reads_first(weight: Weight) -> bool:
    """Whether their tensor is [in, out], as in GPT-2."""
    return weight.layout[0].split()[0] == weight.axes[0]


def _unsupported(config: Mapping[str, Any]) -> list[str]:
    """What an adapter's config asks for that cannot be read, as KEY=VALUE."""
    keys = [key for key, value in config.items() if value and key not in KNOWN]
    if config.get("peft_type") != "LORA":
        keys.append("peft_type")
    if config.get("bias") not in (None, "none"):
        keys.append("bias")
    if str(config.get("init_lora_weights")).startswith(CHANGE_THE_BASE):
        keys.append("init_lora_weights")
    return [f"{key}={shorten(config.get(key))}" for key in keys]


class PeftAdapter:
    """An adapter folder of peft, to be added to the weights of its base.

    WeightsError where it cannot be read.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        try:
            self.config = dict(json.loads((folder / CONFIG).read_text(encoding="utf-8")))
            self._file = safe_open(folder / WEIGHTS, "numpy")
        except Exception as error:  # safetensors raises its own
            raise WeightsError(
                f"{folder}: not an adapter of peft ({error}); give a folder with {CONFIG} and"
                f" {WEIGHTS}"
            ) from error
        unsupported = _unsupported(self.config)
        if unsupported:
            raise WeightsError(
                f"{folder / CONFIG}: {', '.join(unsupported)} cannot be read; merge the adapter"
                " with peft (merge_and_unload) and give the result"
            )
        self._unused = set(self._file.keys())

    def change(self, weight: Weight, name: str) -> np.ndarray | None:
        """What the adapter adds to the tensor of this name; None where it adds nothing."""
        module = name.removesuffix(".weight")
        a, b = f"{PREFIX}{module}.lora_A.weight", f"{PREFIX}{module}.lora_B.weight"
        if not name.endswith(".weight") or a not in self._unused:
            return None
        self._unused -= {a, b}
        lora_a = self._file.get_tensor(a).astype(np.float32)
        lora_b = self._file.get_tensor(b).astype(np.float32)
        rank = len(lora_a)
        wanted = self._of_module("rank_pattern", module, self.config["r"])
        if rank != wanted:
            raise WeightsError(
                f"{self.folder}: {a} has rank {rank}, and {CONFIG} says {wanted}; correct r or"
                " rank_pattern, or save the adapter again"
            )
        if self.config.get("use_rslora"):
            rank = rank**0.5
        alpha = self._of_module("alpha_pattern", module, self.config["lora_alpha"])
        scale = np.float32(alpha / rank)
        product = lora_b @ lora_a * scale  # [out, in]
        return product.T if _reads_first(weight) else product

    def _of_module(self, patterns: str, module: str, otherwise: float) -> float:
        """What the first pattern that fits a module says.

        As peft has it, a pattern is a regular expression for the name of the module, or for the end
        of it behind a dot.
        """
        for pattern, value in (self.config.get(patterns) or {}).items():
            try:
                fits = re.match(rf"(.*\.)?({pattern})$", module)
            except re.error as error:
                raise WeightsError(
                    f"{self.folder / CONFIG}: {patterns} has {pattern!r}, which is no regular"
                    f" expression ({error}); correct it"
                ) from error
            if fits:
                return value
        return otherwise

    def check_used(self) -> None:
        """WeightsError where a part of the adapter was added to no weight."""
        if self._unused:
            raise WeightsError(
                f"{self.folder}: {min(self._unused)} belongs to no weight of the base model"
                f" ({len(self._unused)} such)"
            )
