"""Cheap reproducible choices: a numpy Generator read in blocks, so that one choice costs
nanoseconds rather than microseconds.
"""

import zlib
from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")
BLOCK = 4096  # uniforms drawn at a time


class Dice:
    """Choices that are a function of `seed` and `purpose`: two purposes with one seed do not share
    a stream.
    """

    def __init__(self, seed: int, purpose: str):
        self.generator = np.random.default_rng([seed, zlib.crc32(purpose.encode())])
        self._stream = self._uniforms()

    def _uniforms(self) -> Iterator[float]:
        while True:
            yield from self.generator.random(BLOCK).tolist()

    def uniform(self) -> float:
        return next(self._stream)

    def chance(self, p: float) -> bool:
        return next(self._stream) < p

    def integer(self, low: int, high: int) -> int:
        """Uniform in low..high, both included."""
        return low + int(next(self._stream) * (high - low + 1))

    def pick(self, items: Sequence[T]) -> T:
        return items[int(next(self._stream) * len(items))]

    def sample(self, items: Sequence[T], k: int) -> list[T]:
        """k different items in random order."""
        pool = list(items)
        drawn = []
        for _ in range(k):
            place = int(next(self._stream) * len(pool))
            drawn.append(pool.pop(place))
        return drawn

    def weighted(self, shares: dict[str, float]) -> str:
        """A key of `shares` (which sum to 1)."""
        left = next(self._stream)
        for key, share in shares.items():
            left -= share
            if left < 0:
                return key
        return next(reversed(shares))
