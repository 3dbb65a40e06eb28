"""Which classes are worth the full grid: the paper's sift (Sec. 3.4), and one from the label's gradient."""

from collections.abc import Generator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from ndc_core.noise.grid import GridSpec

# Asks for step, draw of each pair, class of each pair; is sent the loss of each pair, already weighted.
StepAsk = tuple[int, Int[np.ndarray, " pairs"], Int[np.ndarray, " pairs"]]
Alive = Bool[np.ndarray, "draws classes"]


@dataclass(frozen=True)
class SiftSpec:
    """When a class is dropped: losses are added up from the lowest level of the sift's grid.

    The weights carry d sigma, so the same threshold means the same on a finer grid.
    """

    grid: GridSpec
    """Noise levels of the sift."""
    threshold_per_dim: float
    """Gap to the best class's weighted loss, divided by the dimension (`elbo`: nats), above 0."""
    keep: int = 10
    """Classes left when the sift ends: at least 1."""

    def __post_init__(self) -> None:
        if not self.threshold_per_dim > 0:
            raise ValueError(f"sift.threshold_per_dim must be above 0, not {self.threshold_per_dim}")
        if self.keep < 1:
            raise ValueError(f"sift.keep must be at least 1 class, not {self.keep}")


@dataclass(frozen=True)
class LabelGradientSpec:
    """Keep the classes that come first in a first-order score.

    The loss is a function of the continuous label; its derivative at the mean label orders all classes at once, for one
    forward and one backward pass per step, however many classes there are.
    """

    steps: int
    """Levels of the score's own grid that are used: at least 1."""
    keep: int
    """Classes that are scored exactly: at least 1."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.keep < 1:
            raise ValueError(f"label_gradient.steps and .keep must be at least 1, not {self.steps} and {self.keep}")


def sift(
    *, draws: int, classes: int, steps: int, threshold: float, keep: int
) -> Generator[StepAsk, Float[np.ndarray, " pairs"], Alive]:
    """The classes of each draw that survive: at most `keep`, always with the best one among them.

    Each draw is sifted by its own losses only (rule S2). A draw is done when at most `keep` classes are
    left; one that still has more at the end of the grid keeps its best.
    """
    alive = np.ones((draws, classes), dtype=bool)
    accumulated = np.zeros((draws, classes))
    for step in range(steps):
        undecided = alive & (alive.sum(axis=1) > keep)[:, None]
        if not undecided.any():
            return alive
        accumulated[undecided] += yield (step, *undecided.nonzero())
        best = np.where(alive, accumulated, np.inf).min(axis=1, keepdims=True)
        alive &= ~(undecided & (accumulated - best > threshold))
    crowded = alive.sum(axis=1) > keep
    alive[crowded] = smallest(np.where(alive, accumulated, np.inf)[crowded], keep)
    return alive


def smallest(scores: Float[np.ndarray, "draws classes"], keep: int) -> Alive:
    """Marks the `keep` smallest scores of each draw; of equal ones, the first."""
    chosen = np.zeros(scores.shape, dtype=bool)
    order = scores.argsort(axis=1, kind="stable")[:, :keep]
    np.put_along_axis(chosen, order, True, axis=1)
    return chosen
