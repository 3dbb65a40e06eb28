"""Noise at several levels on one path: exact laws, and the station's own law at each."""

import mpmath
import numpy as np
import pytest
from scipy.stats import chisquare

from ndc_core.noise.draw_generators import draw_path_noise
from ndc_core.noise.grid import GridSpec
from ndc_core.noise.shared_path import (
    PATH_NOISES,
    FloatPathNoise,
    IntegerPathNoise,
    discrete_gaussian_table,
    rounding_gap,
    sigmas_on_path,
)
from ndc_core.noise.smoothing import IntegerNoise

# 255 sigma is 1.02, 1.53 and 5.1: so coarse that a wrong law would show.
COARSE = (0.004, 0.006, 0.02)


def discrete_gaussian(below: float, above: float, k: int) -> mpmath.mpf:
    v = 255**2 * (mpmath.mpf(above) ** 2 - mpmath.mpf(below) ** 2)
    return mpmath.exp(-(mpmath.mpf(k) ** 2) / (2 * v)) / mpmath.nsum(
        lambda m: mpmath.exp(-(m**2) / (2 * v)), [-mpmath.inf, mpmath.inf]
    )


@pytest.mark.parametrize("ends", [(0.008, 0.01), (0.125, 0.25)])
def test_the_table_is_the_discrete_gaussian_to_one_unit_of_64_bits(ends: tuple[float, float]) -> None:
    table = discrete_gaussian_table(*ends).thresholds
    half = len(table) // 2
    with mpmath.workdps(40):
        each = [discrete_gaussian(*ends, k) for k in (range(-half - 20, half + 1) if half < 60 else [])]
        for index in range(len(table)) if each else []:
            exact = sum(each[: index + 21]) * mpmath.mpf(2) ** 64
            assert abs(mpmath.mpf(int(table[index])) - exact) <= 1, index
        # Of the wide one, the middle: P(K <= 0) - P(K <= -1) is the probability of 0.
        step = (int(table[half]) - int(table[half - 1])) / mpmath.mpf(2) ** 64
        assert abs(step - discrete_gaussian(*ends, 0)) < mpmath.mpf(2) ** -62
    assert (np.diff(table.astype(object)) >= 0).all()


@pytest.mark.parametrize("ends", [(0.004, 0.006), (0.008, 0.01), (0.01, 0.02)])
def test_a_rounded_gaussian_plus_a_discrete_one_is_a_rounded_one_within_the_stated_gap(
    ends: tuple[float, float],
) -> None:
    """The two distributions themselves, in 60 digits: the gap bounds their distance, and it is not idle."""
    below, above = ends
    reach = int(12 * 255 * above)
    with mpmath.workdps(60):

        def rounded(sigma: float, k: int) -> mpmath.mpf:
            s = 255 * mpmath.mpf(sigma)
            return mpmath.ncdf((k + mpmath.mpf("0.5")) / s) - mpmath.ncdf((k - mpmath.mpf("0.5")) / s)

        first = {k: rounded(below, k) for k in range(-reach, reach + 1)}
        step = {k: discrete_gaussian(below, above, k) for k in range(-reach, reach + 1)}
        apart = sum(
            abs(
                sum(first[j] * step[k - j] for j in range(max(-reach, k - reach), min(reach, k + reach) + 1))
                - rounded(above, k)
            )
            for k in range(-reach, reach + 1)
        )
    assert float(apart) / 2 <= rounding_gap(*ends)
    if ends[0] < 0.005:
        assert float(apart) / 2 > rounding_gap(*ends) * 1e-3


def test_every_station_has_the_law_of_its_own_level() -> None:
    drawn = IntegerPathNoise(COARSE).draw(np.random.default_rng(0), (300_000,))
    for station, sigma in enumerate(COARSE):
        reach = int(3 * 255 * sigma)
        values = np.arange(-reach, reach + 1)
        edges = np.array([float(mpmath.ncdf((k + 0.5) / (255 * sigma))) for k in [values[0] - 1, *values]])
        counts, inside = np.array([(drawn[station] == k).sum() for k in values]), np.diff(edges)
        assert chisquare(counts, inside / inside.sum() * counts.sum()).pvalue > 1e-4, sigma


@pytest.mark.parametrize("name", PATH_NOISES)
def test_increments_are_independent_of_what_came_before(name: str) -> None:
    """Given the lower station, what the path adds does not depend on it (rule S2)."""
    path_noise = PATH_NOISES[name]((0.1, 0.2, 0.4))
    low, middle, high = path_noise.draw(np.random.default_rng(1), (200_000,)).astype(float)
    unit = 255 if name == "integer" else 1
    for lower, higher, variance in ((low, middle, 0.03), (middle, high, 0.12), (low, high, 0.15)):
        increment = (higher - lower) / unit
        assert increment.var() == pytest.approx(variance, rel=0.02)
        assert abs(np.corrcoef(lower, increment)[0, 1]) < 0.01
        assert abs(np.corrcoef(lower**2, increment**2)[0, 1]) < 0.01


def test_a_walks_distance_adds_up_and_stays_negligible() -> None:
    path_noise = IntegerPathNoise((0.125, 0.25, 0.5))
    distances = [path_noise.distance(station, 3072) for station in range(3)]
    assert distances[0] == IntegerNoise(0.125).distance(3072)
    assert distances[0] < distances[1] < distances[2] < 1e-10
    assert IntegerPathNoise((0.004, 0.0041)).distance(1, 1) > 0.01, "levels too close for whole steps cost certificates"


def test_stations_are_the_noise_levels_and_the_grid_beyond_the_smallest() -> None:
    grid = GridSpec(levels=(0.3, 0.4, 0.5, 1.0, 2.0))
    assert sigmas_on_path(grid, (0.25, 0.125)) == (0.125, 0.2, 0.25, 0.5, 1.0)


def test_walks_are_a_function_of_the_draws_name() -> None:
    def path_noises(draws: list[int]) -> np.ndarray:
        return draw_path_noise(
            seed=0,
            image_id="a",
            phase="estimation",
            draws=draws,
            path_noise=FloatPathNoise((0.1, 0.2)),
            image_shape=(1, 2, 2),
        )

    together = path_noises([5, 3, 9])
    np.testing.assert_array_equal(together[1], path_noises([3])[0])
    assert not np.array_equal(together[0], together[1])
