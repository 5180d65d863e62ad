"""Small random models of transformers, one or more of each family, and what torch makes of them."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

V = 101
SMALL: dict[str, Any] = {
    "vocab_size": V,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 40,
}
GROUPED = SMALL | {"num_key_value_heads": 2, "max_position_embeddings": 256}
# three groups of two
ODD = GROUPED | {"num_attention_heads": 6, "num_key_value_heads": 3, "hidden_size": 36}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}
LINEAR = {"rope_type": "linear", "rope_theta": 1000.0, "factor": 4.0}
ALTERNATE = {
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "sliding_window": 5,
}

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", {"vocab_size": V, "n_positions": 96, "n_embd": 30, "n_layer": 3, "n_head": 3}),
    "gpt2 scaled by layer, inner width": (
        "gpt2",
        {
            "vocab_size": V,
            "n_positions": 96,
            "n_embd": 24,
            "n_layer": 2,
            "n_head": 4,
            "n_inner": 40,
            "scale_attn_by_inverse_layer_idx": True,
        },
    ),
    "gpt2 unscaled, untied": (
        "gpt2",
        {
            "vocab_size": V,
            "n_positions": 96,
            "n_embd": 24,
            "n_layer": 2,
            "n_head": 4,
            "scale_attn_weights": False,
            "tie_word_embeddings": False,
        },
    ),
    "gpt_neox": ("gpt_neox", SMALL | {"hidden_size": 32, "rotary_pct": 0.25}),
    "gpt_neox in turn, odd heads": (
        "gpt_neox",
        SMALL
        | {
            "hidden_size": 36,
            "num_attention_heads": 3,
            "rotary_pct": 0.5,
            "use_parallel_residual": False,
            "attention_bias": False,
        },
    ),
    "opt": (
        "opt",
        {
            "vocab_size": V,
            "hidden_size": 24,
            "num_hidden_layers": 3,
            "num_attention_heads": 3,
            "ffn_dim": 40,
            "word_embed_proj_dim": 24,
        },
    ),
    "llama": ("llama", GROUPED),
    "llama 3": ("llama", ODD | {"rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "llama with biases, yarn": (
        "llama",
        GROUPED | {"attention_bias": True, "mlp_bias": True, "rope_parameters": YARN},
    ),
    "llama linear": ("llama", GROUPED | {"head_dim": 10, "rope_parameters": LINEAR}),
    "mistral": ("mistral", ODD | {"sliding_window": 6}),
    "mistral without window": ("mistral", GROUPED | {"sliding_window": None}),
    "qwen2": ("qwen2", GROUPED | {"tie_word_embeddings": True}),
    "qwen2 with windows": (
        "qwen2",
        GROUPED | {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    ),
    "qwen3": ("qwen3", GROUPED | {"head_dim": 12, "tie_word_embeddings": True}),
    "gemma": ("gemma", SMALL | {"num_key_value_heads": 1, "head_dim": 12}),
    "gemma2": (
        "gemma2",
        GROUPED
        | ALTERNATE
        | {"head_dim": 8, "query_pre_attn_scalar": 11, "attn_logit_softcapping": 2.0},
    ),
    "gemma3": ("gemma3_text", GROUPED | ALTERNATE | {"head_dim": 8, "query_pre_attn_scalar": 8}),
    "gemma3 long": (
        "gemma3_text",
        GROUPED
        | ALTERNATE
        | {
            "head_dim": 8,
            "query_pre_attn_scalar": 8,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
    ),
    "olmo2": ("olmo2", GROUPED),
    "olmo2 odd, tied": ("olmo2", ODD | {"tie_word_embeddings": True}),
}
FIRST = {family: name for name, (family, _) in reversed(CONFIGS.items())}  # one of each family


def config_of(name: str) -> Any:
    family, keys = CONFIGS[name]
    return transformers.AutoConfig.for_model(
        family, bos_token_id=None, eos_token_id=None, pad_token_id=None, **keys
    )


def model_of(name: str, seed: int = 0, head: bool = False) -> Any:
    """Float32, every weight random and large enough to matter."""
    torch.manual_seed(seed)
    config = config_of(name)
    if head:
        config.num_labels, config.pad_token_id = 1, 0
    auto = (
        transformers.AutoModelForSequenceClassification
        if head
        else transformers.AutoModelForCausalLM
    )
    model = auto.from_config(config, attn_implementation="eager").float().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight += torch.randn_like(weight) * (0.1 if weight.ndim == 1 else 0.15)
    return model


def save(model: Any, folder: Path, **options: Any) -> Path:
    model.save_pretrained(folder, **options)
    return folder


def logits(model: Any, tokens: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """[B, L, V]; positions count real tokens only."""
    ids, seen = torch.tensor(tokens, dtype=torch.long), torch.tensor(mask, dtype=torch.long)
    positions = (seen.cumsum(1) - 1).clamp(min=0)
    options = {} if model.config.model_type == "opt" else {"position_ids": positions}
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=seen, use_cache=False, **options).logits.numpy()
