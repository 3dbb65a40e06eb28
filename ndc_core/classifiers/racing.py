"""Racing: a class leaves a vote as soon as paired evidence speaks against it."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float


@dataclass(frozen=True)
class RaceSpec:
    """When a class leaves.

    All classes of a vote meet the same noise, so differences of their losses are paired. A class stays for at least
    gap^2 steps, however clear the differences are.
    """

    gap: float
    """A class leaves when it is behind the best by this times the root of the summed squared differences; above 0."""

    def __post_init__(self) -> None:
        if not self.gap > 0:
            raise ValueError(f"race.gap must be above 0, not {self.gap}")


def strided(steps: int) -> list[int]:
    """All steps, the last one first, each as far as possible from those before it: bit-reversed counting.

    Early evidence then covers the whole grid, and a single step says more at a higher level.
    """
    bits = max(steps - 1, 1).bit_length()
    order = (int(f"{index:0{bits}b}"[::-1], 2) for index in range(2**bits))
    return [steps - 1 - step for step in order if step < steps]


def turns_to_leave(gap: float) -> int:
    """The number of steps after which a class may leave at the earliest: by the Cauchy-Schwarz inequality a sum of n
    differences is at most sqrt(n) times the root of their summed squares."""
    return max(1, math.ceil(gap**2 * (1 - 1e-9)))  # a margin above all rounding


def leaders(
    losses: Float[np.ndarray, "draws steps classes"], alive: Bool[np.ndarray, "draws classes"]
) -> tuple[np.ndarray, Float[np.ndarray, "draws classes"]]:
    """The class of each draw with the smallest sum of losses among those alive, and all the sums (else infinity)."""
    sums = np.where(alive, losses.sum(axis=1), np.inf)
    return sums.argmin(axis=1), sums


def survivors(
    losses: Float[np.ndarray, "draws steps classes"], alive: Bool[np.ndarray, "draws classes"], *, gap: float
) -> Bool[np.ndarray, "draws classes"]:
    """The classes alive that the losses so far do not rule out; the leader is always among them.

    Each draw is judged by its own losses only (rule S2). Losses of classes that have left may be NaN.
    """
    best, sums = leaders(losses, alive)
    difference = losses - np.take_along_axis(losses, best[:, None, None], axis=2)
    behind = sums - np.take_along_axis(sums, best[:, None], axis=1)
    spread = np.sqrt(np.square(difference).sum(axis=1))
    return alive & ~(behind > gap * spread)
