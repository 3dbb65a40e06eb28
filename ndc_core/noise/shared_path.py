"""The input's noise at several levels on one path: each level adds an independent increment to the one below it.

Every index's noise has the law that a vote at its level alone would have. For the integer noise of 8-bit images this
holds because a rounded Gaussian plus an independent discrete Gaussian is a rounded Gaussian of the summed variance, up
to a distance that is exponentially small in the variances in levels of grey; docs/mathematics.md has the proof.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal, localcontext
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from typing import Protocol

import numpy as np
from jaxtyping import Shaped

from ndc_core.noise.draw_tables import TABLE_BITS, DrawTable
from ndc_core.noise.grid import GridSpec, path_levels
from ndc_core.noise.smoothing import DECIMAL_DIGITS, LEVELS, FloatNoise, IntegerNoise
from ndc_core.space import sigma_to_model, sigma_to_pixel

PathSigmas = tuple[float, ...]  # sigma_pixel of each, rising


def sigmas_on_path(grid: GridSpec, sigma_pixel: Sequence[float]) -> PathSigmas:
    """Where a path through these noise levels is evaluated: at each of them, and at the grid's levels beyond."""
    levels = path_levels(grid, taus_model=tuple(sigma_to_model(sigma) for sigma in sigma_pixel))
    return tuple(sorted({*sigma_pixel, *(sigma_to_pixel(level) for level in levels)}))


class PathNoise(Protocol):
    def draw(self, generator: np.random.Generator, shape: tuple[int, ...]) -> Shaped[np.ndarray, "path_sigmas ..."]:
        """The noise at every index, in the units that `InputNoise.add` takes."""

    def distance(self, index: int, dimension: int) -> float:
        """Bound on the total variation distance, per image, between an index's noise and the law it stands for."""


@dataclass(frozen=True)
class FloatPathNoise:
    path_sigmas: PathSigmas

    def draw(self, generator: np.random.Generator, shape: tuple[int, ...]) -> Shaped[np.ndarray, "path_sigmas ..."]:
        """In pixels."""
        variances = np.diff(np.square((0.0, *self.path_sigmas)))
        steps = [math.sqrt(variance) * generator.standard_normal(shape) for variance in variances]
        return np.cumsum(steps, axis=0)

    def distance(self, index: int, dimension: int) -> float:
        return FloatNoise(self.path_sigmas[0]).distance(dimension)


@dataclass(frozen=True)
class IntegerPathNoise:
    path_sigmas: PathSigmas

    def draw(self, generator: np.random.Generator, shape: tuple[int, ...]) -> Shaped[np.ndarray, "path_sigmas ..."]:
        """Whole levels of grey."""
        first = IntegerNoise(self.path_sigmas[0]).draw(generator, shape)
        steps = [discrete_gaussian_table(*ends).draw(generator, shape) for ends in pairwise(self.path_sigmas)]
        return np.cumsum([first, *steps], axis=0)

    def distance(self, index: int, dimension: int) -> float:
        """The first index's table, and for each increment its own and the rounding's gap."""
        total = IntegerNoise(self.path_sigmas[0]).distance(dimension)
        for below, above in pairwise(self.path_sigmas[: index + 1]):
            units = (len(discrete_gaussian_table(below, above)) + 1) / 2.0**TABLE_BITS
            total += dimension * (units + rounding_gap(below, above))
        return total


PATH_NOISES: dict[str, Callable[[PathSigmas], PathNoise]] = {"integer": IntegerPathNoise, "float": FloatPathNoise}


def _variance_in_levels(below: float, above: float) -> Fraction:
    return (Fraction(above) ** 2 - Fraction(below) ** 2) * LEVELS**2


def rounding_gap(below: float, above: float) -> float:
    """Bound on the total variation distance between rounded(below) + discrete Gaussian and rounded(above), per pixel.

    Both probabilities agree up to two factors 1 + e, |e| <= 2 a / (1 - a), a = exp(-2 pi^2 w), by Poisson's summation;
    w is the variance below times the increment's over their sum.
    """
    v = float(_variance_in_levels(below, above))
    s2 = float(Fraction(below) ** 2 * LEVELS**2)
    aliases = math.exp(-2 * math.pi**2 * s2 * v / (s2 + v))
    return min(1.0, 4 * aliases / (1 - aliases)) if aliases < 1 else 1.0


@lru_cache(maxsize=64)
def discrete_gaussian_table(below: float, above: float) -> DrawTable:
    """floor(2^64 P(K <= k)) for the whole numbers k = -m .. m - 1; what lies beyond has less than one unit.

    P(K = k) is proportional to exp(-k^2 / 2v), where v is the variance between the two sigma_pixel in levels of grey.
    """
    variance = _variance_in_levels(below, above)
    with localcontext() as context:
        context.prec = DECIMAL_DIGITS
        v = Decimal(variance.numerator) / Decimal(variance.denominator)
        # exp(-(k + 1)^2 / 2v) is exp(-k^2 / 2v) times a ratio that itself falls by a constant factor.
        ratio, factor = (-1 / (2 * v)).exp(), (-1 / v).exp()
        weights = [Decimal(1)]
        while weights[-1] > Decimal(2) ** -(TABLE_BITS + 8):
            weights.append(weights[-1] * ratio)
            ratio *= factor
        unit = 2**TABLE_BITS / (2 * sum(weights) - 1)
        below_k, lower = Decimal(0), []
        for weight in reversed(weights[1:]):
            below_k += weight
            if threshold := int(below_k * unit):
                lower.append(threshold)
    # By symmetry P(K <= k) = 1 - P(K <= -k - 1); both are rounded down, so every error is below one unit.
    thresholds = lower + [2**TABLE_BITS - 1 - threshold for threshold in reversed(lower)]
    return DrawTable(np.array(thresholds, dtype=np.uint64))
