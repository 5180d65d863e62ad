"""Reads safetensors of Hugging Face folders into sharded arrays, and writes them.

What is missing, left over or of another shape is refused.  The host never holds more than one
tensor of a file: each device gets its own part of it, and a stack of layers grows on the devices.
"""

import contextlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from instruct_jax import sharding
from instruct_jax.config import ModelConfig
from instruct_jax.errors import InstructError
from instruct_jax.huggingface.families import BUFFERS, UNQUANTISED, Family, Weight, sizes_of
from instruct_jax.records import Params
from instruct_jax.runtime.digests import named_leaves
from instruct_jax.runtime.hosts import is_main

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
# tensors of GPTQ, AWQ, fp8, compressed-tensors and bitsandbytes, beside or in place of a weight
QUANTISED = re.compile(
    r"\.(qweight|qzeros|scales|g_idx|weight_scale(_inv)?|weight_packed|weight_shape|SCB"
    r"|weight_format|weight\.(absmax|quant_map|nested_\w+|quant_state\..*))$"
)
# the ends of the names of the token embedding
TABLES = ("embed_tokens.weight", "wte.weight", "embed_in.weight")
# (weight, name of the tensor) -> what is added to the tensor; None = nothing
Change = Callable[[Weight, str], np.ndarray | None]
Shape = tuple[int, ...]


class WeightsError(InstructError, ValueError):
    """A folder of weights is not what its config says.  The message names the tensor."""


class Tensors:
    """The tensors of a folder by name, each read when it is needed."""

    def __init__(self, folder: Path, family: Family):
        self.folder = folder
        self._open = contextlib.ExitStack()
        self._files: dict[Path, Any] = {}
        # full name -> (name in the file, file)
        self._tensors: dict[str, tuple[str, Any]] = {}
        index = _index(folder)
        # a folder of a base model, such as that of GPT-2, leaves the prefix out
        has_prefix = any(name.startswith(family.prefix) for name in index)
        heads = (f"{family.head}.", "score.")
        for name, path in index.items():
            if BUFFERS.search(name):
                continue
            full = name
            if not has_prefix and not name.startswith(heads):
                full = family.prefix + name
            self._tensors[full] = name, self._file(path)

    def __enter__(self) -> "Tensors":
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def names(self) -> set[str]:
        """The full names of all tensors."""
        return set(self._tensors)

    def shape(self, name: str) -> Shape:
        """The shape of a tensor, which is not read for it."""
        in_file, file = self._tensors[name]
        return tuple(file.get_slice(in_file).get_shape())

    def read(self, name: str) -> np.ndarray:
        """The tensor, in the dtype of the file; WeightsError where that is no float."""
        in_file, file = self._tensors[name]
        dtype = file.get_slice(in_file).get_dtype()
        if dtype not in DTYPES:
            raise WeightsError(
                f"{self.folder}: {in_file} has the type {dtype}; save the model as one of"
                f" {', '.join(DTYPES.values())}"
            )
        return file.get_tensor(in_file)

    def _file(self, path: Path) -> Any:
        """The open file."""
        if path not in self._files:
            try:
                self._files[path] = self._open.enter_context(safe_open(path, "numpy"))
            except (SafetensorError, OSError) as error:
                raise WeightsError(
                    f"{path}: cannot be read ({error}); download or copy it again"
                ) from error
        return self._files[path]


def _index(folder: Path) -> dict[str, Path]:
    """Name of a tensor -> its file.

    As in transformers, model.safetensors comes before an index, which may be left from another
    model.  WeightsError where both are whole and differ.
    """
    single = folder / SINGLE
    index = folder / INDEX
    if not index.is_file():
        if not single.is_file():
            raise WeightsError(
                f"{folder}: has no {SINGLE} and no {INDEX}; save the model with"
                " save_pretrained(folder)"
            )
        return dict.fromkeys(_names(single), single)
    shards = _shards_of(index)
    missing = _missing(shards)
    if not single.is_file():
        if missing is not None:
            raise WeightsError(f"{index}: {missing} is missing; download or copy the folder again")
        return shards
    whole = dict.fromkeys(_names(single), single)
    if missing is None and not _are_equal(shards, whole):
        raise WeightsError(
            f"{folder}: {SINGLE} and the files of {INDEX} are two different models; remove one of"
            " them"
        )
    return whole


def _shards_of(index: Path) -> dict[str, Path]:
    """Name of a tensor -> its file, as the index says."""
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return {name: index.parent / file for name, file in weight_map.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{index}: broken ({error}); download or copy it again") from error


def _names(path: Path) -> set[str]:
    """The names of the tensors in a file."""
    try:
        with safe_open(path, "numpy") as file:
            return set(file.keys())
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"{path}: cannot be read ({error}); download or copy it again"
        ) from error


def _missing(shards: Mapping[str, Path]) -> str | None:
    """What an index names that is not there; None where all is."""
    by_path: dict[Path, set[str]] = {}
    for name, path in shards.items():
        by_path.setdefault(path, set()).add(name)
    for path, names in sorted(by_path.items()):
        if not path.is_file():
            return f"the file {path.name}"
        gone = names - _names(path)
        if gone:
            return f"{min(gone)} in {path.name}"
    return None


def _are_equal(a: Mapping[str, Path], b: Mapping[str, Path]) -> bool:
    """Do both hold the same tensors?  One of them is read at a time."""
    if set(a) != set(b):
        return False
    for name in a:
        with safe_open(a[name], "numpy") as one, safe_open(b[name], "numpy") as other:
            if not np.array_equal(one.get_tensor(name), other.get_tensor(name)):
                return False
    return True


class Tensor(NamedTuple):
    """One tensor of a model."""

    name: str
    weight: Weight
    layer: int | None  # None: it is in no layer


def _tensors(weights: list[Weight], layers: int) -> Iterator[Tensor]:
    """All tensors of a model with so many layers."""
    for weight in weights:
        if "{}" not in weight.name:
            yield Tensor(weight.name, weight, None)
            continue
        for layer in range(layers):
            yield Tensor(weight.name.format(layer), weight, layer)


def read_params(
    folder: Path,
    family: Family,
    config: ModelConfig,
    boxed: Params,
    layout: sharding.Layout,
    *,
    head: bool = False,
    vocabulary: int | None = None,
    change: Change | None = None,
) -> Params:
    """The float32 parameters of a folder, in the layout of the mesh.

    boxed: the abstract parameters with axis metadata, of the language model or, with `head`, of the
    scalar model.  `vocabulary`: rows of their embeddings, where config.vocab_size asks for more;
    each new row is the mean of theirs.  `change` tells what is added to each tensor.  WeightsError
    names a tensor that is missing, left over or of another shape.
    """
    backbone = boxed["backbone"] if head else boxed
    abstract = named_leaves(sharding.abstract(backbone, layout))
    sizes = sizes_of(config)
    if vocabulary is not None:
        sizes["V"] = vocabulary
    arrays: dict[str, jax.Array] = {}
    with Tensors(folder, family) as tensors:
        expected = list(_tensors(family.weights(abstract), config.layers))
        shapes = {name: weight.shape(sizes) for name, weight, _ in expected}
        _check_names(tensors, family, shapes, config, head)
        for name, weight, layer in expected:
            tensor = tensors.read(name)
            difference = None if change is None else change(weight, name)
            if difference is not None:
                tensor = tensor.astype(np.float32) + difference
            parts = weight.unpack(tensor, sizes)
            for ours, part in zip(weight.ours, parts, strict=True):
                if weight.axes[0] == "V":
                    part = _with_rows(part, config.vocab_size)
                if layer is None:
                    arrays[ours] = _on_devices(part, abstract[ours])
                    continue
                stacked, index = _place(abstract, ours, layer)
                if stacked not in arrays:
                    arrays[stacked] = _zeros(abstract[stacked])
                arrays[stacked] = _with_layer(arrays[stacked], part, index)
        missing = sorted(set(abstract) - set(arrays))
        if missing:
            raise WeightsError(
                f"{folder}: the family {family.name} has no weight for {missing[0]}; its config"
                " says otherwise"
            )
        params = _like(backbone, arrays)
        if not head:
            return params
        return {"backbone": params, "head": _read_head(tensors, boxed["head"], layout)}


def _with_rows(table: np.ndarray, rows: int) -> np.ndarray:
    """The table [V, D] with new rows behind its own, each the mean of these."""
    new = rows - len(table)
    if new == 0:
        return table
    table = table.astype(np.float32)
    mean = table.mean(axis=0, keepdims=True)
    return np.concatenate([table, np.repeat(mean, new, axis=0)])


def _place(arrays: Mapping[str, Any], ours: str, layer: int) -> tuple[str, int]:
    """The array that holds a layer's part of `ours`, and the index of the part in it.

    The lowest layers may be kept in an array of their own.
    """
    lower = f"lower_{ours}"
    if lower not in arrays:
        return ours, layer
    first = arrays[lower].shape[0]
    return (lower, layer) if layer < first else (ours, layer - first)


def _check_names(
    tensors: Tensors,
    family: Family,
    shapes: Mapping[str, Shape],
    config: ModelConfig,
    head: bool,
) -> None:
    """WeightsError unless all tensors are there, in their shapes, and no others."""
    quantised = sorted(name for name in tensors.names() if QUANTISED.search(name))
    if quantised:
        raise WeightsError(
            f"{tensors.folder}: {quantised[0]} belongs to quantised weights, which cannot be read;"
            f" {UNQUANTISED}"
        )
    unembedding = f"{family.head}.weight"
    if not head and "score.weight" in tensors:
        raise WeightsError(
            f"{tensors.folder}: score.weight is the head of a model for sequence classification,"
            " and a language model is needed; give the one that it was made from, or use this one"
            " for rewards"
        )
    allowed = {"score.bias"}
    if config.tied or head:
        allowed.add(unembedding)
    required = dict(shapes)
    if head:
        required["score.weight"] = (1, config.width)
    for name, shape in required.items():
        if name not in tensors:
            raise WeightsError(f"{tensors.folder}: {name} is missing; the config asks for it")
        if tensors.shape(name) != shape:
            raise WeightsError(
                f"{tensors.folder}: {name} has the shape {list(tensors.shape(name))}, the config"
                f" asks for {list(shape)}"
            )
    surplus = sorted(tensors.names() - set(required) - allowed)
    if surplus:
        raise WeightsError(
            f"{tensors.folder}: {surplus[0]} has no place in a {family.name} model of this config"
            f" ({len(surplus)} such)"
        )
    if config.tied and not head and unembedding in tensors:
        table = next(name for name in required if name.endswith(TABLES))
        if not np.array_equal(tensors.read(unembedding), tensors.read(table)):
            raise WeightsError(
                f"{tensors.folder}: {unembedding} is not {table}, but the config says"
                " tie_word_embeddings=true; correct it"
            )


def _read_head(tensors: Tensors, boxed: Params, layout: sharding.Layout) -> Params:
    """The scalar head; its bias is 0 where the folder has none."""
    abstract = sharding.abstract(boxed, layout)
    kernel = tensors.read("score.weight")[0]
    bias = np.zeros((), np.float32)
    if "score.bias" in tensors:
        bias = tensors.read("score.bias").reshape(())
    return {
        "kernel": _on_devices(kernel, abstract["kernel"]),
        "bias": _on_devices(bias, abstract["bias"]),
    }


def _placed(view: np.ndarray, shape: Shape, where: NamedSharding) -> jax.Array:
    """The array on the devices, with zeros behind its end where the shape is larger."""

    def part(index: Any) -> np.ndarray:
        x = view[index]
        padding = []
        for axis, size in enumerate(shape):
            wanted = len(range(*index[axis].indices(size)))
            padding.append((0, wanted - x.shape[axis]))
        if any(missing for _, missing in padding):
            x = np.pad(x, padding)
        return np.asarray(x, order="C")

    return jax.make_array_from_callback(shape, where, part)


def _on_devices(view: np.ndarray, like: jax.ShapeDtypeStruct) -> jax.Array:
    """The array in the shape, dtype and sharding of `like`."""
    placed = _placed(view, like.shape, like.sharding)
    return jax.jit(lambda x: x.astype(like.dtype), out_shardings=like.sharding)(placed)


def _zeros(like: jax.ShapeDtypeStruct) -> jax.Array:
    return jax.jit(lambda: jnp.zeros(like.shape, like.dtype), out_shardings=like.sharding)()


def _with_layer(stack: jax.Array, view: np.ndarray, layer: int) -> jax.Array:
    """The stack with one layer replaced; the stack that is given is used up."""
    of_stack: Any = stack.sharding
    of_layer = NamedSharding(of_stack.mesh, PartitionSpec(*of_stack.spec[1:]))
    placed = _placed(view, stack.shape[1:], of_layer)
    return _set_layer(stack, placed, jnp.int32(layer))


def _set(stack: jax.Array, part: jax.Array, layer: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_index_in_dim(stack, part.astype(stack.dtype), layer, 0)


_set_layer: Callable[..., jax.Array] = jax.jit(_set, donate_argnums=0)


def _like(tree: Any, arrays: Mapping[str, jax.Array], prefix: str = "") -> Any:
    """The arrays, which have dotted names, nested as the tree is."""
    if isinstance(tree, dict):
        return {name: _like(part, arrays, f"{prefix}{name}.") for name, part in tree.items()}
    return arrays[prefix[:-1]]


def write_params(
    folder: Path,
    family: Family,
    config: ModelConfig,
    params: Params,
    *,
    dtype: str = "float32",
    head: Params | None = None,
    vocabulary: int | None = None,
    shard_bytes: int = 4 * 2**30,
) -> None:
    """The inverse of read_params, into a folder that is there.

    Each file holds at most shard_bytes, or one tensor.  Of the embedding the first
    config.vocab_size rows are written, or as many as `vocabulary` says.
    """
    arrays, sizes = named_leaves(params), sizes_of(config)
    if vocabulary is not None:
        sizes["V"] = vocabulary
    itemsize = jnp.dtype(dtype).itemsize
    tensors = list(_tensors(family.weights(arrays), config.layers))
    bytes_of = {}
    for name, weight, _ in tensors:
        bytes_of[name] = math.prod(weight.shape(sizes)) * itemsize
    scores = {} if head is None else _scores(head)
    for name, array in scores.items():
        bytes_of[name] = array.size * itemsize
    by_name = {tensor.name: tensor for tensor in tensors}
    shards = _shards(bytes_of, shard_bytes)
    files = {}
    for number, names in enumerate(shards, 1):
        file = SINGLE
        if len(shards) > 1:
            file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        written = {}
        for name in names:
            if name in scores:
                array = scores[name]
            else:
                array = _packed(arrays, by_name[name], sizes)
            written[name] = np.ascontiguousarray(array.astype(jnp.dtype(dtype)))
            files[name] = file
        if is_main():
            save_file(written, folder / file, metadata={"format": "pt"})
    if len(shards) > 1 and is_main():
        index = {"metadata": {"total_size": sum(bytes_of.values())}, "weight_map": files}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _scores(head: Params) -> dict[str, np.ndarray]:
    """The tensors of a scalar head; a bias of 0 is not written."""
    kernel, bias = sharding.fetch(head["kernel"]), sharding.fetch(head["bias"])
    scores = {"score.weight": kernel[None]}
    if bias:
        scores["score.bias"] = bias[None]
    return scores


def _shards(bytes_of: Mapping[str, int], most: int) -> list[list[str]]:
    """The names of the tensors in each file."""
    shards: list[list[str]] = [[]]
    room = most
    for name, size in bytes_of.items():
        if shards[-1] and size > room:
            shards.append([])
            room = most
        shards[-1].append(name)
        room -= size
    return shards


def _packed(
    arrays: Mapping[str, jax.Array], tensor: Tensor, sizes: Mapping[str, int]
) -> np.ndarray:
    """The tensor as it is written, made from our arrays."""
    _, weight, layer = tensor
    parts = []
    for name in weight.ours:
        if layer is None:
            part = sharding.fetch(arrays[name])
        else:
            stacked, index = _place(arrays, name, layer)
            part = sharding.fetch(arrays[stacked][index])
        if weight.axes[0] == "V":
            part = part[: sizes["V"]]
        parts.append(part)
    return weight.pack(parts, sizes)
