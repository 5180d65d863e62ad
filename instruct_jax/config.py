"""The configs that several stages share: frozen, strict, refusing nonsense when built.

A stage's own config lives in the stage's file.
"""

import dataclasses
import math
from typing import Literal

from instruct_jax.errors import require


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Rotary frequencies stretched to a longer context than a model was first trained on
    (ops/rotary.py).
    """

    kind: Literal["linear", "llama3", "yarn"]
    factor: float
    original_context: int = 8192  # of the first training; llama3 and yarn
    # llama3: waves fewer than this in the original context are stretched by factor
    low_frequency: float = 1.0
    high_frequency: float = 4.0  # llama3: waves more than this stay as they are
    beta_fast: float = 32.0  # yarn: the same bounds, the other way round
    beta_slow: float = 1.0
    # yarn: of the rotated queries and keys; None = 0.1 ln(factor) + 1
    attention_factor: float | None = None

    def __post_init__(self):
        for key in (
            "factor",
            "original_context",
            "low_frequency",
            "high_frequency",
            "beta_fast",
            "beta_slow",
        ):
            require(
                getattr(self, key) > 0, f"rope_scaling.{key}={getattr(self, key)} must be positive"
            )
        require(
            self.low_frequency < self.high_frequency,
            f"rope_scaling.low_frequency={self.low_frequency} must be less than high_frequency",
        )


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer.  The defaults are the GPT-2 / GPT-3 block: learned positions,
    pre-LN, GELU, biases, tied embeddings.

    What the families of Hugging Face models set is in huggingface/families.py.
    """

    # of Hugging Face, that an export belongs to (huggingface/families.py); None = the first
    # that can hold the model
    family: str | None = None

    vocab_size: int = 50257
    # rows of the embedding are rounded up to a multiple, which mesh.tensor can divide; nothing
    # predicts the rest
    vocab_multiple: int = 1
    context: int = 2048  # longest sequence, prompt and response together
    width: int = 768  # D
    layers: int = 12  # N
    heads: int = 12  # H
    kv_heads: int | None = None  # G; None = heads (multi-head attention)
    head_width: int | None = None  # C; None = width / heads
    mlp_width: int | None = None  # F; None = 4 * width
    positions: Literal["learned", "rotary"] = "learned"
    position_offset: int = 0  # learned: rows of the table before that of position 0 (OPT: 2)
    rotary_base: float = 10000.0
    rotary_fraction: float = 1.0  # share of each head that is rotated, from its beginning
    rope_scaling: RopeScaling | None = None
    # of the layers with a window, which are not scaled; None = as the others
    local_rotary_base: float | None = None
    window: int | None = None  # tokens that a query sees, itself included; None = all before it
    full_layers: tuple[int, ...] = ()  # layers, from 0, without the window
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    norm_offset: float = 0.0  # added to the scale of every norm (Gemma: 1)
    # x + f(norm(x)), x + norm(f(x)), x + norm(f(norm(x)))
    norm_place: Literal["pre", "post", "both"] = "pre"
    parallel: bool = False  # attention and MLP read the same x
    # norm of queries and keys, in each head or over all heads together
    qk_norm: Literal["none", "head", "width"] = "none"
    query_scale: float | None = None  # of attention's logits; None = head_width ** -0.5
    scale_by_layer: bool = False  # logits of layer n, from 1, divided by n
    attention_softcap: float | None = None  # c tanh(logits / c)
    logit_softcap: float | None = None  # the same, of the vocabulary
    scale_embedding: bool = False  # embeddings times width ** 0.5
    activation: Literal["gelu", "gelu_exact", "relu", "silu"] = "gelu"  # gelu is the one with tanh
    gated: bool = False  # gated MLP (SwiGLU, GEGLU)
    bias: bool = True  # biases in the projections
    qkv_bias: bool | None = None  # of queries, keys and values; None = bias
    mlp_bias: bool | None = None  # None = bias
    # initial scale of the q and k biases; 1 helps tiny rotary models find the previous token
    qk_bias_std: float = 0.0
    tied: bool = True  # unembedding = embedding
    init_std: float = 0.02  # residual projections: init_std / sqrt(2 N)
    norm_eps: float = 1e-5
    dtype: Literal["float32", "bfloat16"] = "float32"  # of activations; parameters are float32
    # what the backward pass recomputes: nothing, all but matmuls, everything
    remat: Literal["none", "dots", "full"] = "none"
    # token positions of one device whose [V] logits exist at the same time
    logprob_chunk: int = 1024
    # kernel of training and prefill; auto: splash on TPU, cudnn on GPU
    attention: Literal["auto", "xla", "cudnn", "splash"] = "auto"

    def __post_init__(self):
        for key in (
            "vocab_size",
            "vocab_multiple",
            "context",
            "width",
            "layers",
            "heads",
            "logprob_chunk",
        ):
            require(getattr(self, key) >= 1, f"model.{key}={getattr(self, key)} must be at least 1")
        for key in ("kv_heads", "head_width", "mlp_width"):
            require(
                getattr(self, key) is None or getattr(self, key) >= 1,
                f"model.{key}={getattr(self, key)} must be at least 1, or null",
            )
        for key in (
            "rotary_base",
            "norm_eps",
            "local_rotary_base",
            "window",
            "query_scale",
            "attention_softcap",
            "logit_softcap",
        ):
            value = getattr(self, key)
            require(value is None or value > 0, f"model.{key}={value} must be positive")
        require(
            0 < self.rotary_fraction <= 1,
            f"model.rotary_fraction={self.rotary_fraction} must lie in (0, 1]",
        )
        require(
            self.position_offset >= 0,
            f"model.position_offset={self.position_offset} must not be negative",
        )
        require(
            all(0 <= layer < self.layers for layer in self.full_layers),
            f"model.full_layers={list(self.full_layers)} must be numbers of layers, 0 to"
            f" {self.layers - 1}",
        )
        require(
            self.attention_softcap is None or self.attention != "cudnn",
            f"model.attention=cudnn has no attention_softcap={self.attention_softcap}; use auto",
        )
        require(
            self.head_width is not None or self.width % self.heads == 0,
            f"model.width={self.width} must be a multiple of model.heads={self.heads}, or set"
            " model.head_width",
        )
        require(
            self.heads % self.groups == 0,
            f"model.heads={self.heads} must be a multiple of model.kv_heads={self.kv_heads}",
        )
        require(
            self.positions == "learned" or (self.rotated > 0 and self.rotated % 2 == 0),
            f"model.head_width={self.head_size} * rotary_fraction={self.rotary_fraction} must be"
            " even for model.positions=rotary",
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
    def rotated(self) -> int:
        """How much of each head rotary positions turn."""
        return int(self.head_size * self.rotary_fraction)

    @property
    def mlp_size(self) -> int:
        """F, the width of the MLP."""
        return 4 * self.width if self.mlp_width is None else self.mlp_width


PROJECTIONS = ("q", "k", "v", "out", "up", "gate", "down")


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters (models/lora.py): all that SFT, the reward model and PPO train, besides
    scalar heads.
    """

    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] = PROJECTIONS  # projections with an adapter, where the model has them
    dropout: float = 0.0  # of what the adapters read, in SFT and of the reward model

    def __post_init__(self):
        require(self.rank >= 1, f"lora.rank={self.rank} must be at least 1")
        require(self.alpha > 0, f"lora.alpha={self.alpha} must be positive")
        require(0 <= self.dropout < 1, f"lora.dropout={self.dropout} must lie in [0, 1)")
        require(
            len(self.targets) > 0, f"lora.targets=[] must name some of {', '.join(PROJECTIONS)}"
        )
        for target in self.targets:
            require(
                target in PROJECTIONS,
                f"lora.targets: {target!r} is no projection; use some of {', '.join(PROJECTIONS)}",
            )


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and its schedule.

    Adam betas (0.9, 0.95) are the paper's (App. C); eps, decay and clipping are not stated there.
    """

    learning_rate: float = 1e-4  # peak
    schedule: Literal["constant", "cosine", "linear"] = "cosine"
    # cosine and linear end at this share of the peak ("cosine to 10 %")
    final_fraction: float = 0.1
    warmup_steps: int = 0
    warmup_from: float = 0.0  # share of the peak at step 0 (PPO: 0.1)
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float | None = 1.0  # global gradient norm; None = no clipping

    def __post_init__(self):
        for key in ("learning_rate", "warmup_steps", "weight_decay"):
            require(getattr(self, key) >= 0, f"{key}={getattr(self, key)} must not be negative")
        for key in ("final_fraction", "warmup_from"):
            require(0 <= getattr(self, key) <= 1, f"{key}={getattr(self, key)} must lie in [0, 1]")
        for key in ("b1", "b2"):
            require(0 <= getattr(self, key) < 1, f"{key}={getattr(self, key)} must lie in [0, 1)")
        require(self.eps > 0, f"eps={self.eps} must be positive")
        require(
            self.clip_norm is None or self.clip_norm > 0,
            f"clip_norm={self.clip_norm} must be positive; use null for no clipping",
        )


# the axes of a mesh, in the order of devices
MESH: tuple[str, ...] = ("data", "fsdp", "tensor", "context")
# the axes of arrays that a mesh can split
LOGICAL = ("batch", "sequence", "rows", "embed", "vocab", "heads", "kv_heads", "mlp")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis; one of them may be -1, "all the rest"."""

    data: int = -1  # copies of the model, each with its share of the batch
    fsdp: int = 1  # parameters, optimizer state and batch are split
    tensor: int = 1  # heads, MLP and vocabulary are split
    context: int = 1  # the sequence is split, in training and prefill; in decoding, the rows
    # logical axis: [mesh axes], over sharding.TRAINING
    training: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    # the same over sharding.SAMPLING
    sampling: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        sizes = tuple(getattr(self, axis) for axis in MESH)
        require(
            all(s >= 1 or s == -1 for s in sizes),
            f"mesh sizes {sizes} must be at least 1, or -1 for the rest",
        )
        require(sizes.count(-1) <= 1, f"mesh sizes {sizes}: only one axis may be -1")
        for table in ("training", "sampling"):
            for logical, axes in getattr(self, table).items():
                require(
                    logical in LOGICAL,
                    f"mesh.{table}.{logical} is no axis of our arrays; use one of"
                    f" {', '.join(LOGICAL)}",
                )
                require(
                    set(axes) <= set(MESH),
                    f"mesh.{table}.{logical}={list(axes)}: the axes of a mesh are"
                    f" {', '.join(MESH)}",
                )

    def shape(self, devices: int) -> tuple[int, ...]:
        """Sizes in the order of MESH for this many devices; ValueError where they do not fit."""
        sizes = [getattr(self, axis) for axis in MESH]
        known = math.prod(size for size in sizes if size != -1)
        if -1 in sizes:
            require(
                devices % known == 0,
                f"mesh {sizes}: {devices} devices are not a multiple of {known}; change the mesh"
                " sizes",
            )
            sizes[sizes.index(-1)] = devices // known
        else:
            require(
                known <= devices,
                f"mesh {sizes} needs {known} devices, there are {devices}; make the mesh smaller or"
                " set an axis to -1",
            )
        return tuple(sizes)
