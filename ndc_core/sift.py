"""Sift-and-refine, first half: which classes are worth the full grid (paper, Algorithm of Sec. 3.4)."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from ndc_core.grid import GridSpec

# (step, draw of each pair, class of each pair) -> loss of each pair, already weighted
StepLoss = Callable[[int, Int[np.ndarray, " pairs"], Int[np.ndarray, " pairs"]], Float[np.ndarray, " pairs"]]


@dataclass(frozen=True)
class SiftSpec:
    """When a class is dropped.

    `threshold_per_dim` is a gap in the weighted loss, accumulated from the lowest level up and divided by
    the image's dimension: with the weight `elbo`, nats per dimension. The weights carry d sigma, so the
    same threshold means the same on a finer grid.
    """

    grid: GridSpec
    threshold_per_dim: float
    keep: int = 10

    def __post_init__(self) -> None:
        if not self.threshold_per_dim > 0:
            raise ValueError(f"sift.threshold_per_dim must be above 0, not {self.threshold_per_dim}")
        if self.keep < 1:
            raise ValueError(f"sift.keep must be at least 1 class, not {self.keep}")


def sift(
    step_loss: StepLoss, *, draws: int, classes: int, steps: int, threshold: float, keep: int
) -> Bool[np.ndarray, "draws classes"]:
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
        draw_of_pair, class_of_pair = undecided.nonzero()
        accumulated[undecided] += step_loss(step, draw_of_pair, class_of_pair)
        best = np.where(alive, accumulated, np.inf).min(axis=1, keepdims=True)
        alive &= ~(undecided & (accumulated - best > threshold))
    crowded = alive.sum(axis=1) > keep
    order = np.where(alive, accumulated, np.inf).argsort(axis=1, kind="stable")
    beaten = order[crowded, keep:]
    alive[crowded.nonzero()[0][:, None], beaten] = False
    return alive
