"""Whole numbers drawn by a table of their probabilities: a uniform number of 64 bits stands for one of them."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Int64, Shaped, UInt64

TABLE_BITS = 64
PREFIX_BITS = 16
PREFIXES_A_NUMBER = TABLE_BITS // PREFIX_BITS
UNDECIDED = 2**31 - 1  # no table is this long


@dataclass(frozen=True, eq=False)
class DrawTable:
    """k = -m .. m by the 2m thresholds floor(2^64 P(K <= k)), k = -m .. m - 1."""

    thresholds: UInt64[np.ndarray, " thresholds"]

    def draw(self, generator: np.random.Generator, shape: tuple[int, ...]) -> Shaped[np.ndarray, "..."]:
        uniform = generator.integers(0, 2**TABLE_BITS, size=shape, dtype=np.uint64)
        return self.look_up(uniform.ravel()).reshape(shape)

    def look_up(self, uniform: UInt64[np.ndarray, " numbers"]) -> Int64[np.ndarray, " numbers"]:
        """What `searchsorted` finds, in a third of its time: for nearly all numbers their first 16 bits decide it."""
        prefix = uniform.astype("<u8", copy=False).view("<u2")[PREFIXES_A_NUMBER - 1 :: PREFIXES_A_NUMBER]
        drawn = self._by_prefix.take(prefix)
        open_places = np.flatnonzero(drawn == UNDECIDED)
        drawn[open_places] = self._search(uniform[open_places])
        return drawn

    @cached_property
    def _by_prefix(self) -> Int64[np.ndarray, " prefixes"]:
        """The number that all uniform numbers of a prefix stand for, or UNDECIDED."""
        lowest = np.arange(2**PREFIX_BITS, dtype=np.uint64) << np.uint64(TABLE_BITS - PREFIX_BITS)
        first, last = self._search(lowest), self._search(lowest + np.uint64(2 ** (TABLE_BITS - PREFIX_BITS) - 1))
        return np.where(first == last, first, UNDECIDED)

    def _search(self, uniform: UInt64[np.ndarray, " numbers"]) -> Int64[np.ndarray, " numbers"]:
        return np.searchsorted(self.thresholds, uniform, side="right") - len(self.thresholds) // 2

    def __len__(self) -> int:
        return len(self.thresholds)
