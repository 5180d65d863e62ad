"""The families of Hugging Face models that are our decoder: for each, its config and its names of
weights, in both directions.

A family is data.  A row of its weights is (module there, module here, layout of its weight there),
where {} is the number of a layer. A layout names the axes in order, brackets flatten: "(H 3 C) D"
is one matrix of queries, keys and values, by head.  The axes are those of records.py, and S
positions.  Linear layers hold [out, in], the Conv1D of GPT-2 [in, out].
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from instruct_jax.config import ModelConfig, RopeScaling
from instruct_jax.errors import ConfigError, require

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
# of old files; no weights
BUFFERS = re.compile(r"(\.attn|\.attention)\.(bias|masked_bias)$|rotary_emb\.inv_freq$")


class Weight(NamedTuple):
    """One tensor there, one or, where it is split along 3, three of our arrays."""

    name: str
    ours: tuple[str, ...]  # dotted paths in our parameters
    layout: tuple[str, ...]  # groups of axes, of each axis there
    axes: tuple[str, ...]  # of ours

    def unpack(self, tensor: np.ndarray, sizes: Mapping[str, int]) -> list[np.ndarray]:
        """Views of one tensor there, or of a layer's part of it, as ours."""
        flat = [axis for group in self.layout for axis in group.split()]
        x = tensor.reshape([sizes[axis] for axis in flat])
        parts = np.moveaxis(x, flat.index("3"), 0) if "3" in flat else x[None]
        left = [axis for axis in flat if axis != "3"]
        return [part.transpose([left.index(axis) for axis in self.axes]) for part in parts]

    def pack(self, arrays: list[np.ndarray], sizes: Mapping[str, int]) -> np.ndarray:
        """The inverse of unpack."""
        flat = [axis for group in self.layout for axis in group.split()]
        left = [axis for axis in flat if axis != "3"]
        parts = np.stack([x.transpose([self.axes.index(axis) for axis in left]) for x in arrays])
        x = np.moveaxis(parts, 0, flat.index("3")) if "3" in flat else parts[0]
        return x.reshape(self.shape(sizes))

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Of the tensor there."""
        return tuple(int(np.prod([sizes[axis] for axis in group.split()])) for group in self.layout)


@dataclasses.dataclass(frozen=True)
class Family:
    name: str  # model_type of config.json
    classes: str  # GPT2 of GPT2LMHeadModel
    prefix: str  # of all names but those of the head
    rows: tuple[Row, ...]
    read: Callable[[Any], Keys]  # their config -> keys of ModelConfig
    write: Callable[[ModelConfig], Keys]  # the inverse
    head: str = "lm_head"
    unit: str = "layers.{}."  # of the names of a layer
    causal: str = "ForCausalLM"  # the end of the names of their classes
    # GPT2 of GPT2ForSequenceClassification, where it is not `classes`
    classifier: str | None = None

    @property
    def scalar(self) -> str:
        """Of the name of the class with a score."""
        return self.classifier or self.classes

    def weights(self, names: Mapping[str, Any]) -> list[Weight]:
        """Of a model with these parameters of ours; a layer's names still hold {}."""
        found = []
        for theirs, ours, layout in (*self.rows, (self.head, "unembedding", "V D")):
            prefix = "" if theirs == self.head else self.prefix
            found += [
                w
                for w in _expand(prefix + theirs.replace("@", self.unit), ours, layout)
                if set(w.ours) <= set(names)
            ]
        return found


def sizes_of(config: ModelConfig) -> dict[str, int]:
    """The sizes of the axes in layouts."""
    c = config
    axes = {
        "V": c.vocab_size,
        "D": c.width,
        "F": c.mlp_size,
        "H": c.heads,
        "G": c.groups,
        "C": c.head_size,
        "3": 3,
    }
    return axes | {"S": c.context + c.position_offset}


def _expand(theirs: str, ours: str, layout: str) -> list[Weight]:
    """The tensors of one row: a table, a norm, or a projection and its bias."""
    groups = tuple(group.strip("()") for group in re.findall(r"\([^)]*\)|\S+", layout))
    name = ours.rpartition(".")[2]
    if name in ("embedding", "unembedding", "position"):
        return [Weight(f"{theirs}.weight", (ours,), groups, AXES[name])]
    if name.endswith("norm"):
        axes = tuple(" ".join(groups).split())
        return [
            Weight(f"{theirs}.{kind}", (f"{ours}.{part}",), groups, axes)
            for kind, part in (("weight", "scale"), ("bias", "bias"))
        ]
    modules = ("q", "k", "v") if name == "qkv" else (name,)
    into, out = (tuple(group.split()) for group in AXES[modules[0]])
    written = next(group for group in groups if set(group.split()) - {"3"} == set(out))
    kernels, biases = (
        tuple(f"layers.{module}.{part}" for module in modules) for part in ("kernel", "bias")
    )
    return [
        Weight(f"{theirs}.weight", kernels, groups, (*into, *out)),
        Weight(f"{theirs}.bias", biases, (written,), out),
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
    """What the decoder does not have."""
    for key, value in wanted.items():
        found = getattr(hf, key, value)
        require(
            (found or None) == (value or None),
            f"config.json: {key}={found!r} is not supported, only {value!r}; use another model",
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
    odd = {key for key in ("mscale", "mscale_all_dim") if rope.get(key)} | (
        {"truncate"} if rope.get("truncate", True) is False else set()
    )
    require(
        not odd,
        f"config.json: rope_parameters has {', '.join(sorted(odd))}, which is not supported; use"
        " another model",
    )
    if kind == "default":
        return None
    original = (
        {}
        if kind == "linear"
        else {"original_context": rope.get("original_max_position_embeddings") or context}
    )
    found = {
        ours: rope[theirs] for ours, theirs in known[kind].items() if rope.get(theirs) is not None
    }
    return RopeScaling(kind=kind, factor=rope["factor"], **original, **found)


def _rope(rope: Mapping[str, Any], context: int) -> Keys:
    return {
        "positions": "rotary",
        "rotary_base": float(rope["rope_theta"]),
        "rotary_fraction": float(rope.get("partial_rotary_factor") or 1.0),
        "rope_scaling": _scaling(rope, context),
    }


def _rope_parameters(config: ModelConfig) -> Keys:
    scaling, found = config.rope_scaling, {"rope_type": "default", "rope_theta": config.rotary_base}
    if config.rotary_fraction != 1:
        found["partial_rotary_factor"] = config.rotary_fraction
    if scaling is None:
        return found
    found |= {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind == "llama3":
        found |= {
            "low_freq_factor": scaling.low_frequency,
            "high_freq_factor": scaling.high_frequency,
        }
    if scaling.kind == "yarn":
        found |= {
            "beta_fast": scaling.beta_fast,
            "beta_slow": scaling.beta_slow,
            "attention_factor": scaling.attention_factor,
        }
    return (
        found
        if scaling.kind == "linear"
        else found | {"original_max_position_embeddings": scaling.original_context}
    )


def _windows(hf: Any) -> Keys:
    """sliding_window and the kinds of layers."""
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
    whole = range(config.layers) if config.window is None else config.full_layers
    return [
        "full_attention" if layer in whole else "sliding_attention"
        for layer in range(config.layers)
    ]


def _read_llama(hf: Any) -> Keys:
    return {
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
    } | (
        _rope(hf.rope_parameters, hf.max_position_embeddings)
        if "rope_theta" in hf.rope_parameters
        else {}
    )


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


def _write_qwen(config: ModelConfig) -> Keys:
    windows = {
        "use_sliding_window": config.window is not None,
        "sliding_window": config.window,
        "layer_types": _layer_types(config),
    }
    return _write_llama(config) | windows


def _write_qwen2(config: ModelConfig) -> Keys:
    return {
        key: value
        for key, value in _write_qwen(config).items()
        if key not in ("head_dim", "attention_bias")
    }


def _read_gemma(hf: Any) -> Keys:
    _refuse(hf, use_bidirectional_attention=None)
    return _read_llama(hf) | {"norm_offset": 1.0, "scale_embedding": True}


def _read_gemma2(hf: Any) -> Keys:
    caps = {
        "attention_softcap": hf.attn_logit_softcapping,
        "logit_softcap": hf.final_logit_softcapping,
    }
    return (
        _read_gemma(hf)
        | _windows(hf)
        | caps
        | {"norm_place": "both", "query_scale": hf.query_pre_attn_scalar**-0.5}
    )


def _write_gemma2(config: ModelConfig) -> Keys:
    return _write_llama(config) | {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": _whole((config.query_scale or config.head_size**-0.5) ** -2),
        "sliding_window": config.window,
        "layer_types": _layer_types(config),
        "attn_logit_softcapping": config.attention_softcap,
        "final_logit_softcapping": config.logit_softcap,
    }


def _whole(x: float) -> float | int:
    return round(x) if abs(x - round(x)) < 1e-6 * x else x


def _read_gemma3(hf: Any) -> Keys:
    whole, local = hf.rope_parameters["full_attention"], hf.rope_parameters["sliding_attention"]
    require(
        local.get("rope_type", "default") == "default",
        "config.json: rope_parameters of sliding_attention are scaled; use another model",
    )
    found = _read_gemma2(hf) | _rope(whole, hf.max_position_embeddings) | {"qk_norm": "head"}
    return found | ({"local_rotary_base": float(local["rope_theta"])} if "window" in found else {})


def _write_gemma3(config: ModelConfig) -> Keys:
    local = {"rope_type": "default", "rope_theta": config.local_rotary_base or config.rotary_base}
    return _write_gemma2(config) | {
        "rope_parameters": {"full_attention": _rope_parameters(config), "sliding_attention": local}
    }


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
    return next(theirs for theirs, ours in ACTIVATIONS.items() if ours == config.activation)


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
        "rope_parameters": (
            _rope_parameters(config) | {"partial_rotary_factor": config.rotary_fraction}
        ),
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

FAMILIES = {
    family.name: family
    for family in (
        Family(
            "gpt2",
            "GPT2",
            "transformer.",
            _GPT2,
            _read_gpt2,
            _write_gpt2,
            unit="h.{}.",
            causal="LMHeadModel",
        ),
        Family(
            "gpt_neox", "GPTNeoX", "gpt_neox.", _NEOX, _read_neox, _write_neox, head="embed_out"
        ),
        Family("opt", "OPT", "model.decoder.", _OPT, _read_opt, _write_opt),
        Family(
            "llama",
            "Llama",
            "model.",
            _LLAMA,
            _read_llama,
            lambda c: _write_llama(c) | {"mlp_bias": bool(c.mlp_bias)},
        ),
        Family(
            "mistral",
            "Mistral",
            "model.",
            _LLAMA,
            lambda hf: (
                _read_llama(hf)
                | ({} if hf.sliding_window is None else {"window": hf.sliding_window})
            ),
            lambda c: _write_llama(c) | {"sliding_window": c.window},
        ),
        Family("qwen2", "Qwen2", "model.", _LLAMA, _read_qwen2, _write_qwen2),
        Family(
            "qwen3",
            "Qwen3",
            "model.",
            _LLAMA + _QK_NORM,
            lambda hf: _read_llama(hf) | _windows(hf) | {"qk_norm": "head"},
            _write_qwen,
        ),
        Family("gemma", "Gemma", "model.", _LLAMA, _read_gemma, _write_llama),
        Family("gemma2", "Gemma2", "model.", _GEMMA2, _read_gemma2, _write_gemma2),
        Family(
            "gemma3_text",
            "Gemma3",
            "model.",
            _GEMMA2 + _QK_NORM,
            _read_gemma3,
            _write_gemma3,
            classifier="Gemma3Text",
        ),
        Family(
            "olmo2",
            "Olmo2",
            "model.",
            _OLMO2,
            lambda hf: _read_llama(hf) | {"norm_place": "post", "qk_norm": "width"},
            _write_llama,
        ),
    )
}


def family_of(hf: Any) -> Family:
    """Of a config of transformers."""
    require(
        hf.model_type in FAMILIES,
        f"config.json: model_type={hf.model_type!r} is not one of {', '.join(FAMILIES)}; convert"
        " the model, or use another one",
    )
    return FAMILIES[hf.model_type]


def read_config(hf: Any, **keys: Any) -> ModelConfig:
    """Our config of theirs; `keys` are those of ours that change no function (dtype, remat,
    vocab_multiple ...).
    """
    family = family_of(hf)
    return ModelConfig(family=family.name, **family.read(hf) | keys)


def write_config(config: ModelConfig) -> Keys:
    """The keys of config.json, of the family that the config names."""
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
