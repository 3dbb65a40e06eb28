"""Noise levels of the score, and the named weights over them (docs/mathematics.md, "Grids and weights")."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Literal

import numpy as np
from jaxtyping import Float

SIGMA_DATA = 0.5
LOG_SIGMA_MEAN, LOG_SIGMA_STD = -1.2, 1.2  # EDM's training distribution of ln sigma

Levels = Float[np.ndarray, " steps"]


@dataclass(frozen=True)
class GridSpec:
    """A grid before sigma_tau is known: `points` levels evenly spaced between two ends, or explicit `levels`."""

    points: int = 0
    """Number of levels, both ends counted: at least 3, because the first two make no term."""
    sigma_model_max: float = 0.0
    """The highest level, in model units (twice `sigma_pixel`)."""
    spacing: Literal["linear", "log"] = "linear"
    """Evenly in sigma, or in its logarithm."""
    sigma_model_min: float = 0.0
    """The lowest level, or the smoothing noise if that is higher."""
    levels: tuple[float, ...] = ()
    """Instead of the keys above: the levels themselves, rising; those above the smoothing noise count."""

    @property
    def steps(self) -> int:
        """The most terms that a score can have: see `build_grid`."""
        return len(self.levels) - 1 if self.levels else self.points - 2

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", tuple(self.levels))  # TOML and JSON know lists only
        if self.levels:
            if self.points or self.sigma_model_max or self.sigma_model_min:
                raise ValueError("a grid is given by its levels, or by points and sigma_model_max, not by both")
            if len(self.levels) < 2 or not all(0 < a < b for a, b in pairwise(self.levels)):
                raise ValueError(f"a grid's levels must be positive and rise, at least two of them: {self.levels}")
            return
        if self.points < 3:
            raise ValueError(f"a grid needs at least 3 points, not {self.points}: the first two make no term")
        if not 0 <= self.sigma_model_min < self.sigma_model_max:
            raise ValueError(
                f"a grid must rise: sigma_model_min {self.sigma_model_min} is not in [0, {self.sigma_model_max})"
            )


@dataclass(frozen=True)
class Grid:
    """The terms of a score: each at a level b with its predecessor a, in model units."""

    tau_model: float
    level: Levels
    previous: Levels


@lru_cache(maxsize=64)
def build_grid(spec: GridSpec, *, tau_model: float) -> Grid:
    """The terms of a grid that starts at tau_model.

    The first interval has no finite weight in EPNDC (its lower end is tau itself, s = 0), so no classifier uses it: a
    grid of n points has n - 2 terms, and a grid of explicit levels has one term less than it has levels above tau.
    """
    if spec.levels:
        return _grid_of_levels(spec.levels, tau_model=tau_model)
    start = max(tau_model, spec.sigma_model_min)
    if start >= spec.sigma_model_max:
        raise ValueError(
            f"sigma_pixel {tau_model / 2:g} is {tau_model:g} in model units, not below the grid's "
            f"sigma_model_max {spec.sigma_model_max:g}; raise sigma_model_max or lower sigma_pixel"
        )
    if spec.spacing == "log" and start == 0:
        raise ValueError("a grid spaced in ln sigma cannot start at 0; set sigma_model_min or sigma_pixel above 0")
    space = np.geomspace if spec.spacing == "log" else np.linspace
    points = space(start, spec.sigma_model_max, spec.points)
    return Grid(tau_model=tau_model, level=points[2:], previous=points[1:-1])


def _grid_of_levels(levels: tuple[float, ...], *, tau_model: float) -> Grid:
    beyond = np.array([level for level in levels if level > tau_model])
    if len(beyond) < 2:
        raise ValueError(
            f"sigma_pixel {tau_model / 2:g} is {tau_model:g} in model units, and fewer than two of the grid's levels "
            f"lie above it (the last is {levels[-1]:g}); add levels or lower sigma_pixel"
        )
    return Grid(tau_model=tau_model, level=beyond[1:], previous=beyond[:-1])


def path_levels(spec: GridSpec, *, taus_model: tuple[float, ...]) -> tuple[float, ...]:
    """The levels that a path through several noise levels tau is evaluated at.

    They are those of the smallest tau; every other uses an upper part of them.
    """
    return tuple(build_grid(spec, tau_model=min(taus_model)).level.tolist())


def elbo_weight(grid: Grid) -> Levels:
    """The ELBO's weight at tau = 0, exact for a finite grid: scores are then log-likelihoods in nats."""
    a2, b2 = grid.previous**2, grid.level**2
    return (b2 - a2) / (2 * a2 * b2)


def _edm_weight(grid: Grid, *, log_scale: float) -> Levels:
    sigma = grid.level
    loss_weight = (sigma**2 + SIGMA_DATA**2) / (sigma * SIGMA_DATA) ** 2
    exponent = -((np.log(sigma) - LOG_SIGMA_MEAN) ** 2) / 2 * log_scale
    density = np.exp(exponent) / (sigma * LOG_SIGMA_STD * math.sqrt(2 * math.pi))
    return loss_weight * density * (grid.level - grid.previous)


def edm_weight(grid: Grid) -> Levels:
    """EDM's training weight times its log-normal density of sigma, times d sigma."""
    return _edm_weight(grid, log_scale=1 / LOG_SIGMA_STD**2)


def paper_weight(grid: Grid) -> Levels:
    """The same with the bracket that the authors' code misplaces: 1.44 multiplies where it should divide.

    Published numbers were made with it; it is here to compare with them.
    """
    return _edm_weight(grid, log_scale=LOG_SIGMA_STD**2)


def tau_correction(grid: Grid) -> Levels:
    """Ratio of the exact KL weight of EPNDC at tau to the weight at tau = 0, term by term.

    From c_b = s_b^2 (b^2 - a^2) / (2 s_a^2 b^4), s^2 = sigma^2 - tau^2; it tends to 1 on a fine grid.
    """
    a2, b2, tau2 = grid.previous**2, grid.level**2, grid.tau_model**2
    return (b2 - tau2) * a2 / ((a2 - tau2) * b2)


WEIGHTS: dict[str, Callable[[Grid], Levels]] = {
    "elbo": elbo_weight,
    "edm": edm_weight,
    "paper": paper_weight,
}
