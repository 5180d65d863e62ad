"""What a step computes and moves, from the sizes of its model: the arithmetic behind `plan` and
docs/plans.md.

Bytes are counted as if every matmul read its operands from memory and wrote its result there once,
and everything between two matmuls were fused.  No program moves much less.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

from instruct_jax.config import ModelConfig

F32 = 4  # bytes
# bytes per parameter of one Adam step: weight, gradient and two moments are read, all but the
# gradient written
LEARNED = 28


class Work(NamedTuple):
    """Of one step; works add."""

    # of the model on all devices: forward once, backward twice that.  MFU counts these
    flops: float
    computed: float  # with what is computed again to save memory
    traffic: float  # bytes that one device reads and writes

    def __add__(self, other: "Work") -> "Work":  # pyright: ignore[reportIncompatibleMethodOverride]
        return Work(
            self.flops + other.flops,
            self.computed + other.computed,
            self.traffic + other.traffic,
        )


class Costs(NamedTuple):
    """Of a model on a mesh.  Rows and positions are those of all devices together."""

    model: ModelConfig
    sizes: Mapping[str, int]  # mesh axis -> devices
    fused: bool  # attention keeps its scores in fast memory, and skips what is masked

    def forward(self, rows: int, length: int, positions: int = 0) -> Work:
        """Rows are read once; at `positions` of them all logits are made."""
        tokens = rows * length
        keys = (length + 1) / 2  # that a query sees on average
        layers = 2 * self._layers * tokens
        attention = 4 * self._queries * tokens * keys
        head = 2 * self._embedding * positions
        flops = layers + attention + head
        computed = flops
        if not self.fused:
            computed += attention  # plain attention computes the masked half too
        traffic = self._weights(positions) + self._activations(rows, length, positions)
        return Work(flops, computed, traffic)

    def training(self, rows: int, length: int, positions: int, parts: int = 1) -> Work:
        """Forward and backward of a batch in `parts` micro-batches; logits are made twice, and with
        remat the layers too.
        """
        ahead = self.forward(rows, length, positions)
        head = 2 * self._embedding * positions
        passes = 4 if self.model.remat == "full" else 3  # backward counts as two
        without_head = ahead.computed - head
        computed = passes * without_head + 4 * head
        weights = parts * (passes - 1) * self._weights(positions)
        activations = passes * self._activations(rows, length, positions)
        return Work(3 * ahead.flops, computed, weights + activations)

    def learning(self, parameters: int, parts: int = 1, steps: int = 1) -> Work:
        """Steps of Adam, and the sums of the gradients of micro-batches."""
        shards = self.sizes["fsdp"] * self.sizes["tensor"]
        own = parameters / shards
        by_parameter = LEARNED
        if parts > 1:
            by_parameter += 2 * F32 * parts
        return Work(0, 0, steps * own * by_parameter)

    def decoding(self, rows: int, prompt: int, tokens: int) -> Work:
        """`tokens` tokens for each row after a prompt, one after the other, with a cache for all of
        them.
        """
        sampled = rows * tokens
        keys = prompt + (tokens + 1) / 2  # that a token sees on average
        layers = 2 * self._layers * sampled
        attention = 4 * self._queries * sampled * keys
        head = 2 * self._embedding * sampled
        flops = layers + attention + head

        m = self.model
        kept = 2 * m.groups * m.head_size  # keys and values of one token in one layer
        cache = rows * (prompt + tokens) * m.layers * kept * self._bytes
        logits = 3 * F32 * m.vocab_rows * rows
        by_token = self._weights(rows) + (cache + logits) / self._parts
        return Work(flops, flops, tokens * by_token)

    # --- sizes of the model ---

    @property
    def _layers(self) -> int:
        """Weights in the matmuls of all layers."""
        m = self.model
        return m.layers * m.width * (self._projected + self._mlp)

    @property
    def _mlp(self) -> int:
        """Width of the matrices of an MLP together, of one layer."""
        matrices = 3 if self.model.gated else 2
        return matrices * self.model.mlp_size

    @property
    def _projected(self) -> int:
        """Width of queries, keys, values and what attention gives back, of one layer."""
        m = self.model
        heads = 2 * m.heads + 2 * m.groups
        return heads * m.head_size

    @property
    def _queries(self) -> int:
        """Width of the queries of all layers."""
        m = self.model
        return m.layers * m.heads * m.head_size

    @property
    def _embedding(self) -> int:
        return self.model.vocab_rows * self.model.width

    @property
    def _bytes(self) -> int:
        return 2 if self.model.dtype == "bfloat16" else F32

    # --- bytes on one device ---

    @property
    def _parts(self) -> int:
        """Into how many parts rows, positions and heads are cut together."""
        return math.prod(self.sizes.values())

    def _weights(self, positions: int) -> float:
        """All weights, once."""
        weights = self._layers
        if positions:
            weights += self._embedding
        return weights * self._bytes / self.sizes["tensor"]

    def _activations(self, rows: int, length: int, positions: int) -> float:
        """What the matmuls of one forward pass read and write."""
        m = self.model
        attention = self._projected + m.heads * m.head_size
        width = 4 * m.width * self.sizes["tensor"]  # which is not split over `tensor`
        by_token = m.layers * (width + attention + self._mlp) * self._bytes
        if not self.fused:
            by_token += 2 * F32 * m.layers * m.heads * length  # its scores
        layers = rows * length * by_token
        logits = 2 * F32 * m.vocab_rows * positions
        return (layers + logits) / self._parts
