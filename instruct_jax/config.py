"""The configs that several stages share: frozen, strict, refusing nonsense when built.  A stage's own config lives in the stage's file."""

import dataclasses
import math
from typing import Literal


class ConfigError(ValueError):
    """A config that cannot be run.  The message names the key, the value and the repair."""


def check(condition: bool, message: str) -> None:
    """Raises ConfigError(message) unless the condition holds.  Messages give the key, the value and the repair."""
    if not condition:
        raise ConfigError(message)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer.  The defaults are the GPT-2 / GPT-3 block: learned positions, pre-LN, GELU, biases, tied embeddings."""

    vocab_size: int = 50257
    vocab_multiple: int = 1  # rows of the embedding are rounded up to a multiple, which mesh.tensor can divide; nothing predicts the rest
    context: int = 2048  # longest sequence, prompt and response together
    width: int = 768  # D
    layers: int = 12  # N
    heads: int = 12  # H
    kv_heads: int | None = None  # G; None = heads (multi-head attention)
    head_width: int | None = None  # C; None = width / heads
    mlp_width: int | None = None  # F; None = 4 * width
    positions: Literal["learned", "rotary"] = "learned"
    rotary_base: float = 10000.0
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    activation: Literal["gelu", "silu"] = "gelu"
    gated: bool = False  # gated MLP (SwiGLU, GEGLU)
    bias: bool = True  # biases in the projections
    qk_bias_std: float = 0.0  # initial scale of the q and k biases; 1 helps tiny rotary models find the previous token
    tied: bool = True  # unembedding = embedding
    init_std: float = 0.02  # residual projections: init_std / sqrt(2 N)
    norm_eps: float = 1e-5
    dtype: Literal["float32", "bfloat16"] = "float32"  # of activations; parameters are float32
    remat: Literal["none", "dots", "full"] = "none"  # what the backward pass recomputes: nothing, all but matmuls, everything
    logprob_chunk: int = 1024  # token positions of one device whose [V] logits exist at the same time
    attention: Literal["auto", "xla", "cudnn", "splash"] = "auto"  # kernel of training and prefill; auto: splash on TPU, cudnn on GPU

    def __post_init__(self):
        for key in ("vocab_size", "vocab_multiple", "context", "width", "layers", "heads", "logprob_chunk"):
            check(getattr(self, key) >= 1, f"model.{key}={getattr(self, key)} must be at least 1")
        for key in ("kv_heads", "head_width", "mlp_width"):
            check(getattr(self, key) is None or getattr(self, key) >= 1, f"model.{key}={getattr(self, key)} must be at least 1, or null")
        for key in ("rotary_base", "norm_eps"):
            check(getattr(self, key) > 0, f"model.{key}={getattr(self, key)} must be positive")
        check(
            self.head_width is not None or self.width % self.heads == 0,
            f"model.width={self.width} must be a multiple of model.heads={self.heads}, or set model.head_width",
        )
        check(self.heads % self.groups == 0, f"model.heads={self.heads} must be a multiple of model.kv_heads={self.kv_heads}")
        check(
            self.positions == "learned" or self.head_size % 2 == 0,
            f"model.head_width={self.head_size} must be even for model.positions=rotary",
        )

    @property
    def vocab_rows(self) -> int:
        """Rows of the embedding: vocab_size rounded up to a multiple of vocab_multiple."""
        return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple

    @property
    def groups(self) -> int:
        """G, the number of key/value heads."""
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def head_size(self) -> int:
        """C, the width of one head."""
        return self.width // self.heads if self.head_width is None else self.head_width

    @property
    def mlp_size(self) -> int:
        """F, the width of the MLP."""
        return 4 * self.width if self.mlp_width is None else self.mlp_width


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and its schedule.  Adam betas (0.9, 0.95) are the paper's (App. C); eps, decay and clipping are not stated there."""

    learning_rate: float = 1e-4  # peak
    schedule: Literal["constant", "cosine", "linear"] = "cosine"
    final_fraction: float = 0.1  # cosine and linear end at this share of the peak ("cosine to 10 %")
    warmup_steps: int = 0
    warmup_from: float = 0.0  # share of the peak at step 0 (PPO: 0.1)
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float | None = 1.0  # global gradient norm; None = no clipping

    def __post_init__(self):
        for key in ("learning_rate", "warmup_steps", "weight_decay"):
            check(getattr(self, key) >= 0, f"{key}={getattr(self, key)} must not be negative")
        for key in ("final_fraction", "warmup_from"):
            check(0 <= getattr(self, key) <= 1, f"{key}={getattr(self, key)} must lie in [0, 1]")
        for key in ("b1", "b2"):
            check(0 <= getattr(self, key) < 1, f"{key}={getattr(self, key)} must lie in [0, 1)")
        check(self.eps > 0, f"eps={self.eps} must be positive")
        check(self.clip_norm is None or self.clip_norm > 0, f"clip_norm={self.clip_norm} must be positive; use null for no clipping")


MESH: tuple[str, ...] = ("data", "fsdp", "tensor", "context")  # the axes of a mesh, in the order of devices
LOGICAL = ("batch", "sequence", "rows", "embed", "vocab", "heads", "kv_heads", "mlp")  # the axes of arrays that a mesh can split


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis; one of them may be -1, "all the rest"."""

    data: int = -1  # copies of the model, each with its share of the batch
    fsdp: int = 1  # parameters, optimizer state and batch are split
    tensor: int = 1  # heads, MLP and vocabulary are split
    context: int = 1  # the sequence is split, in training and prefill; in decoding, the rows
    training: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)  # logical axis: [mesh axes], over sharding.TRAINING
    sampling: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)  # the same over sharding.SAMPLING

    def __post_init__(self):
        sizes = tuple(getattr(self, axis) for axis in MESH)
        check(all(s >= 1 or s == -1 for s in sizes), f"mesh sizes {sizes} must be at least 1, or -1 for the rest")
        check(sizes.count(-1) <= 1, f"mesh sizes {sizes}: only one axis may be -1")
        for table in ("training", "sampling"):
            for logical, axes in getattr(self, table).items():
                check(logical in LOGICAL, f"mesh.{table}.{logical} is no axis of our arrays; use one of {', '.join(LOGICAL)}")
                check(set(axes) <= set(MESH), f"mesh.{table}.{logical}={list(axes)}: the axes of a mesh are {', '.join(MESH)}")

    def shape(self, devices: int) -> tuple[int, ...]:
        """Sizes in the order of MESH for this many devices; ValueError where they do not fit."""
        sizes = [getattr(self, axis) for axis in MESH]
        known = math.prod(size for size in sizes if size != -1)
        if -1 in sizes:
            check(devices % known == 0, f"mesh {sizes}: {devices} devices are not a multiple of {known}; change the mesh sizes")
            sizes[sizes.index(-1)] = devices // known
        else:
            check(known <= devices, f"mesh {sizes} needs {known} devices, there are {devices}; make the mesh smaller or set an axis to -1")
        return tuple(sizes)
