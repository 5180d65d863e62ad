"""The families of Hugging Face models that our decoder can be.

A family is data: how its config and the names of its weights are translated, in both directions.  A
row of its weights is (their module, our module, layout of their weight), where @ stands for the
layer.  A layout names the axes in order, and brackets flatten: "(H 3 C) D" is one matrix of
queries, keys and values, by head.  The axes are those of records.py, and S positions.  Their Linear
layers hold [out, in], the Conv1D of GPT-2 [in, out].
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from instruct_jax.config import ModelConfig, RopeScaling
from instruct_jax.errors import ConfigError, require, shorten

Keys = dict[str, Any]
Row = tuple[str, str, str]
ACTIVATIONS = {
    "gelu_new": "gelu",
    "gelu_pytorch_tanh": "gelu",
    "gelu_fast": "gelu",
    "gelu": "gelu_exact",
    "relu": "relu",
    "silu": "silu",
}
AXES = {  # of our weights; the first group is what a projection reads, the second what it writes
    "embedding": ("V", "D"),
    "unembedding": ("V", "D"),
    "position": ("S", "D"),
    "q": ("D", "H C"),
    "k": ("D", "G C"),
    "v": ("D", "G C"),
    "out": ("H C", "D"),
    "up": ("D", "F"),
    "gate": ("D", "F"),
    "down": ("F", "D"),
}
UNQUANTISED = (
    "give the original that was quantised, or load it with transformers, dequantize() it and save"
    " it"
)
# tensors of old files that are no weights
BUFFERS = re.compile(r"(\.attn|\.attention)\.(bias|masked_bias)$|rotary_emb\.inv_freq$")


class Weight(NamedTuple):
    """One of their tensors, which is one of our arrays or, where it is split along 3, three."""

    name: str  # theirs; {} stands for the number of the layer
    ours: tuple[str, ...]  # dotted paths in our parameters
    layout: tuple[str, ...]  # the axes that each axis of theirs is made of
    axes: tuple[str, ...]  # of ours

    @property
    def flat(self) -> list[str]:
        """The axes of their tensor, when none is flattened."""
        return " ".join(self.layout).split()

    @property
    def own(self) -> list[str]:
        """The axes of one of our arrays, in their order."""
        return [axis for axis in self.flat if axis != "3"]

    def unpack(self, tensor: np.ndarray, sizes: Mapping[str, int]) -> list[np.ndarray]:
        """Views of one of their tensors as our arrays, or as one layer of these."""
        flat = self.flat
        x = tensor.reshape([sizes[axis] for axis in flat])
        parts = [x]
        if "3" in flat:
            parts = np.moveaxis(x, flat.index("3"), 0)
        order = [self.own.index(axis) for axis in self.axes]
        return [part.transpose(order) for part in parts]

    def pack(self, arrays: list[np.ndarray], sizes: Mapping[str, int]) -> np.ndarray:
        """The inverse of unpack."""
        order = [self.axes.index(axis) for axis in self.own]
        parts = [array.transpose(order) for array in arrays]
        x = parts[0]
        if "3" in self.flat:
            x = np.moveaxis(np.stack(parts), 0, self.flat.index("3"))
        return x.reshape(self.shape(sizes))

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape of their tensor."""
        shape = []
        for group in self.layout:
            shape.append(math.prod(sizes[axis] for axis in group.split()))
        return tuple(shape)


@dataclasses.dataclass(frozen=True)
class Family:
    """How a family of models is written by transformers."""

    name: str  # model_type of config.json
    classes: str  # GPT2 of GPT2LMHeadModel
    prefix: str  # of the names of all tensors, except that of the head
    rows: tuple[Row, ...]
    read: Callable[[Any], Keys]  # their config -> keys of ModelConfig
    write: Callable[[ModelConfig], Keys]  # the inverse
    head: str = "lm_head"
    unit: str = "layers.{}."  # how the names of the tensors of a layer begin
    causal: str = "ForCausalLM"  # the end of the name of the class of a language model
    # GPT2 of GPT2ForSequenceClassification, where it is not `classes`
    classifier: str | None = None

    @property
    def scalar(self) -> str:
        """The beginning of the name of the class with a score."""
        return self.classifier or self.classes

    def weights(self, names: Iterable[str]) -> list[Weight]:
        """The weights of a model whose parameters have these names with us."""
        present = set(names)
        rows = [(self.prefix + theirs, ours, layout) for theirs, ours, layout in self.rows]
        rows.append((self.head, "unembedding", "V D"))
        weights = []
        for theirs, ours, layout in rows:
            for weight in _expand(theirs.replace("@", self.unit), ours, layout):
                if present.issuperset(weight.ours):
                    weights.append(weight)
        return weights


def sizes_of(config: ModelConfig) -> dict[str, int]:
    """The sizes of the axes in layouts."""
    return {
        "V": config.vocab_size,
        "D": config.width,
        "F": config.mlp_size,
        "H": config.heads,
        "G": config.groups,
        "C": config.head_size,
        "S": config.context + config.position_offset,
        "3": 3,
    }


def _expand(theirs: str, ours: str, layout: str) -> list[Weight]:
    """The tensors of one row: a table, a norm, or a projection and its bias."""
    groups = tuple(group.strip("()") for group in re.findall(r"\([^)]*\)|\S+", layout))
    name = ours.rpartition(".")[2]
    weight, bias = f"{theirs}.weight", f"{theirs}.bias"
    if name in ("embedding", "unembedding", "position"):
        return [Weight(weight, (ours,), groups, AXES[name])]
    if name.endswith("norm"):
        axes = tuple(" ".join(groups).split())
        return [
            Weight(weight, (f"{ours}.scale",), groups, axes),
            Weight(bias, (f"{ours}.bias",), groups, axes),
        ]
    modules = ("q", "k", "v") if name == "qkv" else (name,)
    reads, writes = AXES[modules[0]]
    read_axes, written_axes = tuple(reads.split()), tuple(writes.split())
    kernels = tuple(f"layers.{module}.kernel" for module in modules)
    biases = tuple(f"layers.{module}.bias" for module in modules)
    bias_groups = ()
    for group in groups:
        if set(group.split()) - {"3"} == set(written_axes):
            bias_groups = (group,)
    return [
        Weight(weight, kernels, groups, (*read_axes, *written_axes)),
        Weight(bias, biases, bias_groups, written_axes),
    ]


# --- configs ---


def _activation(name: str) -> str:
    require(
        name in ACTIVATIONS,
        f"config.json: the activation {name!r} is not one of {', '.join(ACTIVATIONS)}; such a model"
        " cannot be read",
    )
    return ACTIVATIONS[name]


def _refuse(hf: Any, **wanted: Any) -> None:
    """ConfigError where their config asks for something that the decoder does not have."""
    for key, value in wanted.items():
        found = getattr(hf, key, value)
        require(
            (found or None) == (value or None),
            f"config.json: {key}={found!r} is not supported, only {value!r}; use another model",
        )


def _refuse_quantised(hf: Any) -> None:
    """ConfigError where the weights that belong to their config are quantised."""
    for key in ("quantization_config", "compression_config"):
        found = getattr(hf, key, None)
        if found:
            method = found.get("quant_method") if isinstance(found, Mapping) else None
            raise ConfigError(
                f"{hf.name_or_path}/config.json: {key} says that the weights are quantised"
                f" ({method or shorten(found)}), and such weights cannot be read; {UNQUANTISED}"
            )


def _scaling(rope: Mapping[str, Any], context: int) -> RopeScaling | None:
    kind = rope.get("rope_type", "default")
    known = {
        "default": {},
        "linear": {},
        "llama3": {"low_frequency": "low_freq_factor", "high_frequency": "high_freq_factor"},
        "yarn": {
            "beta_fast": "beta_fast",
            "beta_slow": "beta_slow",
            "attention_factor": "attention_factor",
        },
    }
    require(
        kind in known,
        f"config.json: rope_type={kind!r} is not one of {', '.join(known)}; use another model",
    )
    odd = [key for key in ("mscale", "mscale_all_dim") if rope.get(key)]
    if rope.get("truncate", True) is False:
        odd.append("truncate")
    require(
        not odd,
        f"config.json: rope_parameters has {', '.join(odd)}, which is not supported; use another"
        " model",
    )
    if kind == "default":
        return None
    keys = {}
    if kind != "linear":
        keys["original_context"] = rope.get("original_max_position_embeddings") or context
    for ours, theirs in known[kind].items():
        if rope.get(theirs) is not None:
            keys[ours] = rope[theirs]
    return RopeScaling(kind=kind, factor=rope["factor"], **keys)


def _rope(rope: Mapping[str, Any], context: int) -> Keys:
    return {
        "positions": "rotary",
        "rotary_base": float(rope["rope_theta"]),
        "rotary_fraction": float(rope.get("partial_rotary_factor") or 1.0),
        "rope_scaling": _scaling(rope, context),
    }


def _rope_parameters(config: ModelConfig) -> Keys:
    keys: Keys = {"rope_type": "default", "rope_theta": config.rotary_base}
    if config.rotary_fraction != 1:
        keys["partial_rotary_factor"] = config.rotary_fraction
    scaling = config.rope_scaling
    if scaling is None:
        return keys
    keys |= {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind == "llama3":
        keys |= {
            "low_freq_factor": scaling.low_frequency,
            "high_freq_factor": scaling.high_frequency,
        }
    if scaling.kind == "yarn":
        keys |= {
            "beta_fast": scaling.beta_fast,
            "beta_slow": scaling.beta_slow,
            "attention_factor": scaling.attention_factor,
        }
    if scaling.kind != "linear":
        keys["original_max_position_embeddings"] = scaling.original_context
    return keys


def _windows(hf: Any) -> Keys:
    """Our keys for their sliding_window and layer_types."""
    kinds = getattr(hf, "layer_types", None) or ["sliding_attention"] * hf.num_hidden_layers
    odd = sorted(set(kinds) - {"sliding_attention", "full_attention"})
    require(
        not odd,
        f"config.json: layer_types has {odd}, only sliding_attention and full_attention are"
        " supported; use another model",
    )
    full = tuple(i for i, kind in enumerate(kinds) if kind == "full_attention")
    if hf.sliding_window is None or len(full) == len(kinds):
        return {}
    return {"window": hf.sliding_window, "full_layers": full}


def _layer_types(config: ModelConfig) -> list[str]:
    if config.window is None:
        return ["full_attention"] * config.layers
    kinds = ["sliding_attention"] * config.layers
    for layer in config.full_layers:
        kinds[layer] = "full_attention"
    return kinds


def _read_llama(hf: Any) -> Keys:
    keys = {
        "vocab_size": hf.vocab_size,
        "context": hf.max_position_embeddings,
        "width": hf.hidden_size,
        "layers": hf.num_hidden_layers,
        "heads": hf.num_attention_heads,
        "kv_heads": hf.num_key_value_heads,
        "head_width": getattr(hf, "head_dim", None) or hf.hidden_size // hf.num_attention_heads,
        "mlp_width": hf.intermediate_size,
        "norm": "rmsnorm",
        "norm_eps": hf.rms_norm_eps,
        "activation": _activation(getattr(hf, "hidden_activation", None) or hf.hidden_act),
        "gated": True,
        "bias": bool(getattr(hf, "attention_bias", False)),
        "mlp_bias": bool(getattr(hf, "mlp_bias", False)),
        "tied": hf.tie_word_embeddings,
        "init_std": hf.initializer_range,
    }
    if "rope_theta" in hf.rope_parameters:
        keys |= _rope(hf.rope_parameters, hf.max_position_embeddings)
    return keys


def _write_llama_itself(config: ModelConfig) -> Keys:
    return _write_llama(config) | {"mlp_bias": bool(config.mlp_bias)}


def _read_mistral(hf: Any) -> Keys:
    keys = _read_llama(hf)
    if hf.sliding_window is not None:
        keys["window"] = hf.sliding_window
    return keys


def _write_mistral(config: ModelConfig) -> Keys:
    return _write_llama(config) | {"sliding_window": config.window}


def _read_olmo2(hf: Any) -> Keys:
    return _read_llama(hf) | {"norm_place": "post", "qk_norm": "width"}


def _write_llama(config: ModelConfig) -> Keys:
    return {
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.groups,
        "head_dim": config.head_size,
        "intermediate_size": config.mlp_size,
        "rms_norm_eps": config.norm_eps,
        "hidden_act": "silu" if config.activation == "silu" else "gelu_pytorch_tanh",
        "attention_bias": config.bias,
        "tie_word_embeddings": config.tied,
        "initializer_range": config.init_std,
        "rope_parameters": _rope_parameters(config),
    }


def _read_qwen2(hf: Any) -> Keys:
    return _read_llama(hf) | _windows(hf) | {"qkv_bias": True}


def _write_qwen2(config: ModelConfig) -> Keys:
    keys = _write_qwen3(config)
    del keys["head_dim"], keys["attention_bias"]
    return keys


def _read_qwen3(hf: Any) -> Keys:
    return _read_llama(hf) | _windows(hf) | {"qk_norm": "head"}


def _write_qwen3(config: ModelConfig) -> Keys:
    return _write_llama(config) | {
        "use_sliding_window": config.window is not None,
        "sliding_window": config.window,
        "layer_types": _layer_types(config),
    }


def _read_gemma(hf: Any) -> Keys:
    _refuse(hf, use_bidirectional_attention=None)
    return _read_llama(hf) | {"norm_offset": 1.0, "scale_embedding": True}


def _read_gemma2(hf: Any) -> Keys:
    return (
        _read_gemma(hf)
        | _windows(hf)
        | {
            "attention_softcap": hf.attn_logit_softcapping,
            "logit_softcap": hf.final_logit_softcapping,
            "norm_place": "both",
            "query_scale": hf.query_pre_attn_scalar**-0.5,
        }
    )


def _write_gemma2(config: ModelConfig) -> Keys:
    scale = config.query_scale or config.head_size**-0.5
    return _write_llama(config) | {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": _whole(scale**-2),
        "sliding_window": config.window,
        "layer_types": _layer_types(config),
        "attn_logit_softcapping": config.attention_softcap,
        "final_logit_softcapping": config.logit_softcap,
    }


def _whole(x: float) -> float | int:
    """The nearest integer, where x differs from it by rounding alone."""
    return round(x) if abs(x - round(x)) < 1e-6 * x else x


def _read_gemma3(hf: Any) -> Keys:
    full = hf.rope_parameters["full_attention"]
    local = hf.rope_parameters["sliding_attention"]
    require(
        local.get("rope_type", "default") == "default",
        "config.json: rope_parameters of sliding_attention are scaled; use another model",
    )
    keys = _read_gemma2(hf) | _rope(full, hf.max_position_embeddings) | {"qk_norm": "head"}
    if "window" in keys:
        keys["local_rotary_base"] = float(local["rope_theta"])
    return keys


def _write_gemma3(config: ModelConfig) -> Keys:
    local_base = config.local_rotary_base or config.rotary_base
    rope_parameters = {
        "full_attention": _rope_parameters(config),
        "sliding_attention": {"rope_type": "default", "rope_theta": local_base},
    }
    return _write_gemma2(config) | {"rope_parameters": rope_parameters}


def _read_gpt2(hf: Any) -> Keys:
    _refuse(hf, add_cross_attention=False)
    return {
        "vocab_size": hf.vocab_size,
        "context": hf.n_positions,
        "width": hf.n_embd,
        "layers": hf.n_layer,
        "heads": hf.n_head,
        "mlp_width": hf.n_inner or 4 * hf.n_embd,
        "activation": _activation(hf.activation_function),
        "norm_eps": hf.layer_norm_epsilon,
        "init_std": hf.initializer_range,
        "tied": hf.tie_word_embeddings,
        "query_scale": None if hf.scale_attn_weights else 1.0,
        "scale_by_layer": hf.scale_attn_by_inverse_layer_idx,
    }


def _write_gpt2(config: ModelConfig) -> Keys:
    return {
        "vocab_size": config.vocab_size,
        "n_positions": config.context,
        "n_embd": config.width,
        "n_layer": config.layers,
        "n_head": config.heads,
        "n_inner": config.mlp_size,
        "activation_function": _their_activation(config),
        "layer_norm_epsilon": config.norm_eps,
        "initializer_range": config.init_std,
        "tie_word_embeddings": config.tied,
        "scale_attn_weights": config.query_scale is None,
        "scale_attn_by_inverse_layer_idx": config.scale_by_layer,
    }


def _their_activation(config: ModelConfig) -> str:
    """The first of their names for our activation."""
    for theirs, ours in ACTIVATIONS.items():
        if ours == config.activation:
            return theirs
    raise ConfigError(f"model.activation={config.activation!r} has no name in Hugging Face configs")


def _read_neox(hf: Any) -> Keys:
    return {
        "vocab_size": hf.vocab_size,
        "context": hf.max_position_embeddings,
        "width": hf.hidden_size,
        "layers": hf.num_hidden_layers,
        "heads": hf.num_attention_heads,
        "mlp_width": hf.intermediate_size,
        "activation": _activation(hf.hidden_act),
        "parallel": hf.use_parallel_residual,
        "bias": hf.attention_bias,
        "mlp_bias": True,
        "norm_eps": hf.layer_norm_eps,
        "init_std": hf.initializer_range,
        "tied": hf.tie_word_embeddings,
    } | _rope(hf.rope_parameters, hf.max_position_embeddings)


def _write_neox(config: ModelConfig) -> Keys:
    return {
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.mlp_size,
        "hidden_act": _their_activation(config),
        "use_parallel_residual": config.parallel,
        "attention_bias": config.bias,
        "layer_norm_eps": config.norm_eps,
        "initializer_range": config.init_std,
        "tie_word_embeddings": config.tied,
        "rope_parameters": _rope_parameters(config)
        | {"partial_rotary_factor": config.rotary_fraction},
    }


def _read_opt(hf: Any) -> Keys:
    _refuse(
        hf,
        do_layer_norm_before=True,
        layer_norm_elementwise_affine=True,
        word_embed_proj_dim=hf.hidden_size,
    )
    return {
        "vocab_size": hf.vocab_size,
        "context": hf.max_position_embeddings,
        "position_offset": 2,
        "width": hf.hidden_size,
        "layers": hf.num_hidden_layers,
        "heads": hf.num_attention_heads,
        "mlp_width": hf.ffn_dim,
        "activation": _activation(hf.activation_function),
        "bias": hf.enable_bias,
        "init_std": hf.init_std,
        "tied": hf.tie_word_embeddings,
    }


def _write_opt(config: ModelConfig) -> Keys:
    return {
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context,
        "hidden_size": config.width,
        "word_embed_proj_dim": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "ffn_dim": config.mlp_size,
        "activation_function": _their_activation(config),
        "enable_bias": config.bias,
        "init_std": config.init_std,
        "tie_word_embeddings": config.tied,
    }


# --- weights ---

_LLAMA: tuple[Row, ...] = (
    ("embed_tokens", "embedding", "V D"),
    ("@input_layernorm", "layers.attention_norm", "D"),
    ("@self_attn.q_proj", "layers.q", "(H C) D"),
    ("@self_attn.k_proj", "layers.k", "(G C) D"),
    ("@self_attn.v_proj", "layers.v", "(G C) D"),
    ("@self_attn.o_proj", "layers.out", "D (H C)"),
    ("@post_attention_layernorm", "layers.mlp_norm", "D"),
    ("@mlp.gate_proj", "layers.gate", "F D"),
    ("@mlp.up_proj", "layers.up", "F D"),
    ("@mlp.down_proj", "layers.down", "D F"),
    ("norm", "final_norm", "D"),
)
_QK_NORM: tuple[Row, ...] = (
    ("@self_attn.q_norm", "layers.q_norm", "C"),
    ("@self_attn.k_norm", "layers.k_norm", "C"),
)
_OUT_NORMS: tuple[Row, ...] = (
    ("@post_attention_layernorm", "layers.attention_out_norm", "D"),
    ("@post_feedforward_layernorm", "layers.mlp_out_norm", "D"),
)
_GEMMA2 = (
    *(row for row in _LLAMA if row[1] != "layers.mlp_norm"),
    ("@pre_feedforward_layernorm", "layers.mlp_norm", "D"),
    *_OUT_NORMS,
)
_OLMO2: tuple[Row, ...] = (
    *(row for row in _LLAMA if row[1] not in ("layers.attention_norm", "layers.mlp_norm")),
    *_OUT_NORMS,
    ("@self_attn.q_norm", "layers.q_norm", "(H C)"),
    ("@self_attn.k_norm", "layers.k_norm", "(G C)"),
)
_GPT2: tuple[Row, ...] = (
    ("wte", "embedding", "V D"),
    ("wpe", "position", "S D"),
    ("@ln_1", "layers.attention_norm", "D"),
    ("@attn.c_attn", "layers.qkv", "D (3 H C)"),
    ("@attn.c_proj", "layers.out", "(H C) D"),
    ("@ln_2", "layers.mlp_norm", "D"),
    ("@mlp.c_fc", "layers.up", "D F"),
    ("@mlp.c_proj", "layers.down", "F D"),
    ("ln_f", "final_norm", "D"),
)
_NEOX: tuple[Row, ...] = (
    ("embed_in", "embedding", "V D"),
    ("@input_layernorm", "layers.attention_norm", "D"),
    ("@attention.query_key_value", "layers.qkv", "(H 3 C) D"),
    ("@attention.dense", "layers.out", "D (H C)"),
    ("@post_attention_layernorm", "layers.mlp_norm", "D"),
    ("@mlp.dense_h_to_4h", "layers.up", "F D"),
    ("@mlp.dense_4h_to_h", "layers.down", "D F"),
    ("final_layer_norm", "final_norm", "D"),
)
_OPT: tuple[Row, ...] = (
    ("embed_tokens", "embedding", "V D"),
    ("embed_positions", "position", "S D"),
    ("@self_attn_layer_norm", "layers.attention_norm", "D"),
    ("@self_attn.q_proj", "layers.q", "(H C) D"),
    ("@self_attn.k_proj", "layers.k", "(G C) D"),
    ("@self_attn.v_proj", "layers.v", "(G C) D"),
    ("@self_attn.out_proj", "layers.out", "D (H C)"),
    ("@final_layer_norm", "layers.mlp_norm", "D"),
    ("@fc1", "layers.up", "F D"),
    ("@fc2", "layers.down", "D F"),
    ("final_layer_norm", "final_norm", "D"),
)

_TABLE = (
    Family(
        name="gpt2",
        classes="GPT2",
        prefix="transformer.",
        rows=_GPT2,
        read=_read_gpt2,
        write=_write_gpt2,
        unit="h.{}.",
        causal="LMHeadModel",
    ),
    Family(
        name="gpt_neox",
        classes="GPTNeoX",
        prefix="gpt_neox.",
        rows=_NEOX,
        read=_read_neox,
        write=_write_neox,
        head="embed_out",
    ),
    Family(
        name="opt",
        classes="OPT",
        prefix="model.decoder.",
        rows=_OPT,
        read=_read_opt,
        write=_write_opt,
    ),
    Family(
        name="llama",
        classes="Llama",
        prefix="model.",
        rows=_LLAMA,
        read=_read_llama,
        write=_write_llama_itself,
    ),
    Family(
        name="mistral",
        classes="Mistral",
        prefix="model.",
        rows=_LLAMA,
        read=_read_mistral,
        write=_write_mistral,
    ),
    Family(
        name="qwen2",
        classes="Qwen2",
        prefix="model.",
        rows=_LLAMA,
        read=_read_qwen2,
        write=_write_qwen2,
    ),
    Family(
        name="qwen3",
        classes="Qwen3",
        prefix="model.",
        rows=_LLAMA + _QK_NORM,
        read=_read_qwen3,
        write=_write_qwen3,
    ),
    Family(
        name="gemma",
        classes="Gemma",
        prefix="model.",
        rows=_LLAMA,
        read=_read_gemma,
        write=_write_llama,
    ),
    Family(
        name="gemma2",
        classes="Gemma2",
        prefix="model.",
        rows=_GEMMA2,
        read=_read_gemma2,
        write=_write_gemma2,
    ),
    Family(
        name="gemma3_text",
        classes="Gemma3",
        prefix="model.",
        rows=_GEMMA2 + _QK_NORM,
        read=_read_gemma3,
        write=_write_gemma3,
        classifier="Gemma3Text",
    ),
    Family(
        name="olmo2",
        classes="Olmo2",
        prefix="model.",
        rows=_OLMO2,
        read=_read_olmo2,
        write=_write_llama,
    ),
)
FAMILIES = {family.name: family for family in _TABLE}


def family_of(hf: Any) -> Family:
    """The family of a config of transformers."""
    require(
        hf.model_type in FAMILIES,
        f"config.json: model_type={hf.model_type!r} is not one of {', '.join(FAMILIES)}; convert"
        " the model, or use another one",
    )
    return FAMILIES[hf.model_type]


def read_config(hf: Any, **keys: Any) -> ModelConfig:
    """Our config of theirs.

    `keys` are further ones of ours, which do not change what the model computes (dtype, remat,
    vocab_multiple, ...).
    """
    family = family_of(hf)
    _refuse_quantised(hf)
    return ModelConfig(family=family.name, **family.read(hf) | keys)


def write_config(config: ModelConfig) -> Keys:
    """The keys of config.json, for the family that the config names."""
    require(
        config.family in (None, *FAMILIES),
        f"model.family={config.family!r} is unknown; use one of {', '.join(FAMILIES)}",
    )
    if config.family is None:
        raise ConfigError(
            "model.family=null: an export needs a family of models; set one of"
            f" {', '.join(FAMILIES)}"
        )
    return {"model_type": config.family, **FAMILIES[config.family].write(config)}
