"""What a step computes and moves, from the sizes of its model: the arithmetic behind `plan` and
docs/plans.md.

Bytes are counted as if every matmul read its operands from memory and wrote its result there once,
and all between them were fused: no program moves much less.
"""

from collections.abc import Mapping
from typing import NamedTuple

from instruct_jax.config import ModelConfig

F32 = 4  # bytes
# bytes per parameter of one Adam step: weight, gradient and two moments are read, all but the
# gradient written
LEARNED = 28


class Work(NamedTuple):
    """Of one step; works add."""

    flops: (
        float  # of the model on all devices: forward once, backward twice that.  MFU counts these
    )
    computed: float  # with what is computed again to save memory
    traffic: float  # bytes that one device reads and writes

    def __add__(self, other: "Work") -> "Work":  # pyright: ignore[reportIncompatibleMethodOverride]
        return Work(*(a + b for a, b in zip(self, other, strict=True)))


class Costs(NamedTuple):
    """Of a model on a mesh; sizes: devices of each mesh axis.

    rows and positions are those of all devices together.
    """

    model: ModelConfig
    sizes: Mapping[str, int]
    fused: bool  # does attention keep its scores in fast memory, and skip what is masked?

    def forward(self, rows: int, length: int, positions: int = 0) -> Work:
        """Rows are read once; at `positions` of them all logits are made."""
        m, tokens = self.model, rows * length
        layers = 2 * self._layer_weights * m.layers * tokens
        # a query sees half of the keys on average
        attention = 4 * m.layers * m.heads * m.head_size * tokens * (length + 1) / 2
        head = 2 * m.vocab_rows * m.width * positions
        computed = layers + head + attention * (1 if self.fused else 2)
        return Work(
            layers + attention + head,
            computed,
            self._weights(positions) + self._activations(rows, length, positions),
        )

    def training(self, rows: int, length: int, positions: int, parts: int = 1) -> Work:
        """Forward and backward of a batch in `parts` micro-batches; logits are made twice, and with
        remat the layers too.
        """
        ahead, head = (
            self.forward(rows, length, positions),
            2 * self.model.vocab_rows * self.model.width * positions,
        )
        again = 1 if self.model.remat == "full" else 0
        computed = (3 + again) * (ahead.computed - head) + 4 * head
        traffic = parts * (2 + again) * self._weights(positions) + (3 + again) * self._activations(
            rows, length, positions
        )
        return Work(3 * ahead.flops, computed, traffic)

    def learning(self, parameters: int, parts: int = 1, steps: int = 1) -> Work:
        """Steps of Adam, and the sums of the gradients of micro-batches."""
        own = parameters / (self.sizes["fsdp"] * self.sizes["tensor"])
        return Work(0, 0, steps * own * (LEARNED + (2 * F32 * parts if parts > 1 else 0)))

    def decoding(self, rows: int, prompt: int, tokens: int) -> Work:
        """`tokens` tokens for each row after a prompt, one after the other, with a cache for all of
        them.
        """
        m, seen = self.model, prompt + (tokens + 1) / 2
        layers = (
            2 * self._layer_weights * m.layers * rows * tokens
            + 4 * m.layers * m.heads * m.head_size * rows * tokens * seen
        )
        flops = layers + 2 * m.vocab_rows * m.width * rows * tokens
        whole = 2 * m.layers * m.groups * m.head_size * (prompt + tokens) * rows * self._bytes
        logits = 3 * F32 * m.vocab_rows * rows
        each = self._weights(rows) + (whole + logits) / self._parts
        return Work(flops, flops, tokens * each)

    @property
    def _parts(self) -> int:
        """Into how many parts rows, positions and heads are cut together."""
        return (
            self.sizes["data"] * self.sizes["fsdp"] * self.sizes["context"] * self.sizes["tensor"]
        )

    @property
    def _bytes(self) -> int:
        return 2 if self.model.dtype == "bfloat16" else F32

    @property
    def _layer_weights(self) -> int:
        m = self.model
        heads = (2 * m.heads + 2 * m.groups) * m.head_size
        return m.width * (heads + m.mlp_size * (3 if m.gated else 2))

    def _weights(self, positions: int) -> float:
        """All weights, once, on one device."""
        m = self.model
        return (
            (self._layer_weights * m.layers + (m.vocab_rows * m.width if positions else 0))
            * self._bytes
            / self.sizes["tensor"]
        )

    def _activations(self, rows: int, length: int, positions: int) -> float:
        """What the matmuls of one forward pass read and write, on one device."""
        m, tensor = self.model, self.sizes["tensor"]
        heads = (2 * m.heads + 2 * m.groups) * m.head_size
        split = heads + m.heads * m.head_size + m.mlp_size * (3 if m.gated else 2)
        # the width is not split over `tensor`
        by_token = m.layers * (4 * m.width * tensor + split) * self._bytes
        scores = 0 if self.fused else 2 * F32 * m.layers * m.heads * length
        return (
            rows * length * (by_token + scores) + 2 * F32 * positions * m.vocab_rows
        ) / self._parts
