"""The grid of a sweep: every combination of the values of some keys, or a random subset."""

import hashlib
import heapq
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise, product
from typing import Any

from pipeline.declaration.config import ConfigError

MOST_RUNS = 1000
GRID = "grid"  # instead of the key that varies

Values = Mapping[str, Any]  # of each key


def combinations(
    grid: Mapping[str, Sequence[Any]], *, random: int | None, seed: int | None, source: str
) -> Iterator[Values]:
    """Combinations in the order of a table, the last key's values changing first.

    A random subset has those of the smallest hashes, so that one of more runs contains one of fewer.

    Raises:
        ConfigError: keys within each other, a value that comes twice, a subset without a seed or larger than the
            grid, or too many runs.
    """
    refuse_grid(grid, source)
    runs = size_of(grid)
    combined = (dict(zip(grid, values, strict=True)) for values in product(*grid.values()) if grid)
    if random is None:
        if seed is not None:
            raise ConfigError(f"{source}: random_seed chooses nothing; say how many runs of [grid] with random = N")
        if runs > MOST_RUNS:
            raise ConfigError(
                f"{source}: [grid] has {runs:,} combinations, and a sweep at most {MOST_RUNS:,} of them; leave out "
                "values, or have some at random with random = N and random_seed = 0"
            )
        return combined
    if seed is None:
        raise ConfigError(f"{source}: random = {random} needs a random_seed, so that the same runs come again")
    if not random <= min(runs, MOST_RUNS):
        raise ConfigError(
            f"{source}: random = {random:,} of the {runs:,} combinations of [grid]; at most {min(runs, MOST_RUNS):,}"
        )
    numbered = ((rank_of(values, seed), number, values) for number, values in enumerate(combined))
    chosen = heapq.nsmallest(random, numbered, key=lambda item: item[:2])
    return (values for _, _, values in sorted(chosen, key=lambda item: item[1]))


def size_of(grid: Mapping[str, Sequence[Any]]) -> int:
    return math.prod(map(len, grid.values())) if grid else 0


def rank_of(values: Values, seed: int) -> bytes:
    return hashlib.blake2b(json.dumps([seed, values], default=str).encode()).digest()


def refuse_grid(grid: Mapping[str, Sequence[Any]], source: str) -> None:
    for key, values in grid.items():
        for index, value in enumerate(values):
            if value in values[:index]:
                raise ConfigError(f"{source}: grid.{key} has the value {value!r} twice")
    for outer, inner in pairwise(sorted(grid, key=lambda key: key.split("."))):
        if inner.startswith(f"{outer}."):
            raise ConfigError(f"{source}: [grid] has {outer} and {inner}, which is in it; leave one out")
