"""Weights of Hugging Face folders: safetensors to sharded arrays and back, one tensor at a time,
strictly.

The host never holds more than one tensor of a file: each device gets its own part of it, and a
stack of layers grows on the devices.
"""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from instruct_jax import sharding
from instruct_jax.config import ModelConfig
from instruct_jax.errors import InstructError
from instruct_jax.huggingface.families import BUFFERS, Family, Weight, sizes_of
from instruct_jax.records import Params
from instruct_jax.runtime.digests import named_leaves
from instruct_jax.runtime.hosts import is_main

INDEX = "model.safetensors.index.json"
DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


class WeightsError(InstructError, ValueError):
    """A folder of weights is not what its config says.  The message names the tensor."""


class Tensors:
    """The tensors of a folder by name, each read when asked for."""

    def __init__(self, folder: Path, family: Family):
        self.folder, self._open = folder, contextlib.ExitStack()
        self._files: dict[Path, Any] = {}
        names = {name: self._file(path) for name, path in _index(folder).items()}
        # of a base model, as GPT-2's own
        bare = not any(name.startswith(family.prefix) for name in names)
        heads = (f"{family.head}.", "score.")
        full = lambda name: name if not bare or name.startswith(heads) else family.prefix + name  # noqa: E731
        self._found = {
            full(name): (name, file) for name, file in names.items() if not BUFFERS.search(name)
        }

    def __enter__(self) -> "Tensors":
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def __contains__(self, name: str) -> bool:
        return name in self._found

    def names(self) -> set[str]:
        return set(self._found)

    def shape(self, name: str) -> tuple[int, ...]:
        there, file = self._found[name]
        return tuple(file.get_slice(there).get_shape())

    def read(self, name: str) -> np.ndarray:
        there, file = self._found[name]
        kind = file.get_slice(there).get_dtype()
        if kind not in DTYPES:
            raise WeightsError(
                f"{self.folder}: {there} has the type {kind}; save the model as one of"
                f" {', '.join(DTYPES.values())}"
            )
        return file.get_tensor(there)

    def _file(self, path: Path) -> Any:
        if path not in self._files:
            try:
                self._files[path] = self._open.enter_context(safe_open(path, "numpy"))
            except (SafetensorError, OSError) as error:
                raise WeightsError(
                    f"{path}: cannot be read ({error}); download or copy it again"
                ) from error
        return self._files[path]


def _index(folder: Path) -> dict[str, Path]:
    """Name -> file."""
    if (folder / INDEX).is_file():
        try:
            return {
                name: folder / file
                for name, file in json.loads((folder / INDEX).read_text())["weight_map"].items()
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise WeightsError(
                f"{folder / INDEX}: broken ({error}); download or copy it again"
            ) from error
    single = folder / "model.safetensors"
    if not single.is_file():
        raise WeightsError(
            f"{folder}: has no model.safetensors and no {INDEX}; save the model with"
            " save_pretrained(folder)"
        )
    try:
        with safe_open(single, "numpy") as file:
            return dict.fromkeys(file.keys(), single)
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"{single}: cannot be read ({error}); download or copy it again"
        ) from error


def _each(weights: list[Weight], layers: int) -> Iterator[tuple[str, Weight, int | None]]:
    """(name there, weight, layer) of every tensor; the layer is None where a weight is
    in no layer.
    """
    for weight in weights:
        for layer in range(layers) if "{}" in weight.name else (None,):
            yield weight.name if layer is None else weight.name.format(layer), weight, layer


class Change(Protocol):
    """What is added to the weights on their way."""

    def to(self, weight: Weight, name: str) -> np.ndarray | None: ...


def read_params(
    folder: Path,
    family: Family,
    config: ModelConfig,
    boxed: Params,
    layout: sharding.Layout,
    *,
    head: bool = False,
    added: Change | None = None,
) -> Params:
    """The float32 parameters of a folder in the layout of the mesh.  boxed: their abstract tree, of
    the language model or, with `head`, of the scalar model.  WeightsError names a tensor that is
    missing, left over or of another shape.
    """
    plain = boxed["backbone"] if head else boxed
    shapes, sizes = named_leaves(sharding.abstract(plain, layout)), sizes_of(config)
    found: dict[str, jax.Array] = {}
    with Tensors(folder, family) as tensors:
        expected = {
            name: (weight, layer)
            for name, weight, layer in _each(family.weights(shapes), config.layers)
        }
        _check_names(
            tensors,
            family,
            {name: weight.shape(sizes) for name, (weight, _) in expected.items()},
            config,
            head,
        )
        for name, (weight, layer) in expected.items():
            tensor, change = tensors.read(name), None if added is None else added.to(weight, name)
            parts = weight.unpack(
                tensor if change is None else tensor.astype(np.float32) + change, sizes
            )
            for ours, part in zip(weight.ours, parts, strict=True):
                if layer is None:
                    found[ours] = _born(part, shapes[ours])
                else:
                    ours, place = _place(shapes, ours, layer)
                    stack = found.get(ours)
                    found[ours] = _stacked(
                        _zeros(shapes[ours]) if stack is None else stack, part, place
                    )
        missing = sorted(set(shapes) - set(found))
        if missing:
            raise WeightsError(
                f"{folder}: the family {family.name} has no weight for {missing[0]}; its config"
                " says otherwise"
            )
        tree = _like(plain, found)
        return (
            {"backbone": tree, "head": _read_head(tensors, boxed["head"], layout)} if head else tree
        )


def _place(arrays: Mapping[str, Any], ours: str, layer: int) -> tuple[str, int]:
    """The array that holds a layer's part of `ours`, and where in it: the first layers may lie
    apart.
    """
    lower = f"lower_{ours}"
    first = arrays[lower].shape[0] if lower in arrays else 0
    return (lower, layer) if layer < first else (ours, layer - first)


def _check_names(
    tensors: Tensors,
    family: Family,
    shapes: Mapping[str, tuple[int, ...]],
    config: ModelConfig,
    head: bool,
) -> None:
    """All tensors are there, in their shapes, and no others."""
    spare = {
        "score.weight",
        "score.bias",
        *({f"{family.head}.weight"} if config.tied or head else ()),
    }
    shapes = {**shapes, **({"score.weight": (1, config.width)} if head else {})}
    for name, shape in shapes.items():
        if name not in tensors:
            raise WeightsError(f"{tensors.folder}: {name} is missing; the config asks for it")
        if tensors.shape(name) != shape:
            raise WeightsError(
                f"{tensors.folder}: {name} has the shape {list(tensors.shape(name))}, the config"
                f" asks for {list(shape)}"
            )
    if surplus := sorted(tensors.names() - set(shapes) - spare):
        raise WeightsError(
            f"{tensors.folder}: {surplus[0]} has no place in a {family.name} model of this config"
            f" ({len(surplus)} such)"
        )
    tied = f"{family.head}.weight"
    if config.tied and not head and tied in tensors:
        table = next(
            name
            for name in shapes
            if name.endswith(("embed_tokens.weight", "wte.weight", "embed_in.weight"))
        )
        if not np.array_equal(tensors.read(tied), tensors.read(table)):
            raise WeightsError(
                f"{tensors.folder}: {tied} is not {table}, but the config says"
                " tie_word_embeddings=true; correct it"
            )


def _read_head(tensors: Tensors, boxed: Params, layout: sharding.Layout) -> Params:
    shapes = sharding.abstract(boxed, layout)
    bias = (
        tensors.read("score.bias").reshape(())
        if "score.bias" in tensors
        else np.zeros((), np.float32)
    )
    return {
        "kernel": _born(tensors.read("score.weight")[0], shapes["kernel"]),
        "bias": _born(bias, shapes["bias"]),
    }


def _placed(view: np.ndarray, shape: tuple[int, ...], where: NamedSharding) -> jax.Array:
    """On the devices, with zeros behind its end where the shape is larger."""

    def part(index: Any) -> np.ndarray:
        x = view[index]
        wanted = [len(range(*s.indices(size))) for s, size in zip(index, shape, strict=True)]
        missing = [want - size for want, size in zip(wanted, x.shape, strict=True)]
        return np.asarray(np.pad(x, [(0, n) for n in missing]) if any(missing) else x, order="C")

    return jax.make_array_from_callback(shape, where, part)


def _born(view: np.ndarray, like: jax.ShapeDtypeStruct) -> jax.Array:
    placed = _placed(view, like.shape, like.sharding)  # type: ignore[arg-type]
    return jax.jit(lambda x: x.astype(like.dtype), out_shardings=like.sharding)(placed)


def _zeros(like: jax.ShapeDtypeStruct) -> jax.Array:
    return jax.jit(lambda: jnp.zeros(like.shape, like.dtype), out_shardings=like.sharding)()


def _stacked(stack: jax.Array, view: np.ndarray, layer: int) -> jax.Array:
    """The stack with one layer in its place; uses up the one that is given."""
    whole: Any = stack.sharding
    own = NamedSharding(whole.mesh, PartitionSpec(*whole.spec[1:]))
    return _set_layer(stack, _placed(view, stack.shape[1:], own), jnp.int32(layer))


def _set(stack: jax.Array, part: jax.Array, layer: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_index_in_dim(stack, part.astype(stack.dtype), layer, 0)


_set_layer: Callable[..., jax.Array] = jax.jit(_set, donate_argnums=0)


def _like(tree: Any, found: Mapping[str, jax.Array], prefix: str = "") -> Any:
    """The nested dict whose dotted names are those of `found`."""
    if isinstance(tree, dict):
        return {name: _like(part, found, f"{prefix}{name}.") for name, part in tree.items()}
    return found[prefix[:-1]]


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
    """The inverse of read_params, into a folder that is there; shards hold at most shard_bytes, or
    one tensor.  Of the embedding the rows of config.vocab_size are written, or as many as
    `vocabulary` says.
    """
    arrays, sizes = (
        named_leaves(params),
        sizes_of(config) | ({} if vocabulary is None else {"V": vocabulary}),
    )
    plan: list[tuple[str, Weight | None, int | None, int]] = [
        (name, weight, layer, int(np.prod(weight.shape(sizes))))
        for name, weight, layer in _each(family.weights(arrays), config.layers)
    ]
    own: dict[str, np.ndarray] = {}
    if head is not None:
        kernel, bias = sharding.fetch(head["kernel"]), sharding.fetch(head["bias"])
        own = {"score.weight": kernel[None]} | ({"score.bias": bias[None]} if bias else {})
        plan += [(name, None, None, x.size) for name, x in own.items()]
    shards: list[list[Any]] = [[]]
    room = shard_bytes
    for entry in plan:
        size = entry[3] * jnp.dtype(dtype).itemsize
        if shards[-1] and size > room:
            shards.append([])
            room = shard_bytes
        shards[-1].append(entry)
        room -= size
    files = {}
    for number, shard in enumerate(shards, 1):
        file = (
            "model.safetensors"
            if len(shards) == 1
            else f"model-{number:05}-of-{len(shards):05}.safetensors"
        )
        tensors = {}
        for name, weight, layer, _ in shard:
            x = own[name] if weight is None else _packed(arrays, weight, layer, sizes)
            tensors[name] = np.ascontiguousarray(x.astype(jnp.dtype(dtype)))
            files[name] = file
        if is_main():
            save_file(tensors, folder / file, metadata={"format": "pt"})
    if len(shards) > 1 and is_main():
        total = sum(entry[3] for entry in plan) * jnp.dtype(dtype).itemsize
        (folder / INDEX).write_text(
            json.dumps({"metadata": {"total_size": total}, "weight_map": files}, indent=2) + "\n"
        )


def _packed(
    arrays: Mapping[str, jax.Array], weight: Weight, layer: int | None, sizes: Mapping[str, int]
) -> np.ndarray:
    places = [
        (name, None) if layer is None else _place(arrays, name, layer) for name in weight.ours
    ]
    ours = [
        sharding.fetch(arrays[name] if place is None else arrays[name][place])
        for name, place in places
    ]
    return weight.pack([x[: sizes["V"]] if weight.axes[0] == "V" else x for x in ours], sizes)
