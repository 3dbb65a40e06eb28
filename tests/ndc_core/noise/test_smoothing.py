"""Noise on the 8-bit grid (rule S8): its table against 40-digit arithmetic, and what it does to an image."""

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from ndc_core.noise.smoothing import FloatNoise, IntegerNoise, NoNoise, rounded_gaussian_table

SIGMAS = [0.02, 0.125, 0.25, 0.5]


@pytest.mark.parametrize("sigma_pixel", SIGMAS)
def test_the_table_is_the_exact_distribution_to_one_unit_of_64_bits(sigma_pixel: float) -> None:
    table = rounded_gaussian_table(sigma_pixel).thresholds
    half = len(table) // 2
    with mpmath.workdps(40):
        s = 255 * mpmath.mpf(sigma_pixel)
        for index in {0, 1, half // 2, half - 2, half - 1, half, half + 1, half + half // 3, len(table) - 1}:
            exact = mpmath.ncdf((index - half + mpmath.mpf("0.5")) / s) * mpmath.mpf(2) ** 64
            assert abs(mpmath.mpf(int(table[index])) - exact) <= 1, index
    assert (np.diff(table.astype(object)) >= 0).all()


@pytest.mark.parametrize("sigma_pixel", SIGMAS)
def test_the_stated_distance_bounds_the_distance_of_the_table_from_the_law(sigma_pixel: float) -> None:
    """Total variation over all cells, exactly, in units of 2^-64."""
    table = [0, *map(int, rounded_gaussian_table(sigma_pixel).thresholds), 2**64]
    half = (len(table) - 2) // 2
    with mpmath.workdps(40):
        s = 255 * mpmath.mpf(sigma_pixel)
        edges = [0, *(mpmath.ncdf((k - half + mpmath.mpf("0.5")) / s) for k in range(2 * half)), 1]
        apart = sum(
            abs(mpmath.mpf(table[i + 1] - table[i]) / 2**64 - (edges[i + 1] - edges[i])) for i in range(len(edges) - 1)
        )
    assert 0 < apart / 2 <= IntegerNoise(sigma_pixel).distance(1)
    assert IntegerNoise(sigma_pixel).distance(3072) < 1e-11, "negligible for an image, and subtracted nevertheless"


def test_draws_follow_the_rounded_gaussian() -> None:
    noise, generator = IntegerNoise(0.02), np.random.default_rng(0)
    drawn = noise.draw(generator, (400_000,))
    values = np.arange(-12, 13)
    edges = np.array([float(mpmath.ncdf((k + 0.5) / (255 * 0.02))) for k in np.append(-13, values)])
    counts = np.array([(drawn == k).sum() for k in values])
    inside = np.diff(edges)
    assert chisquare(counts, inside / inside.sum() * counts.sum()).pvalue > 1e-4


@settings(max_examples=30)
@given(shift=st.integers(-255, 255), seed=st.integers(0, 2**32))
def test_shifting_an_image_on_the_grid_shifts_its_noisy_versions_exactly(shift: int, seed: int) -> None:
    """round(x + n) = x + round(n): what a vote sees is a function of whole numbers only, so no bit of x leaks."""
    noise, image = IntegerNoise(0.25), np.full((1, 2, 2), max(0, -shift), np.uint8)
    drawn = noise.draw(np.random.default_rng(seed), (3, 1, 2, 2))
    other = (image.astype(int) + shift).clip(0, 255).astype(np.uint8)
    moved = (other.astype(int) - image).flat[0]
    np.testing.assert_array_equal(noise.add(other, drawn), noise.add(image, drawn + moved))


def test_floating_point_noise_leaks_the_image_and_integer_noise_does_not() -> None:
    """The attack of the literature in one line: x + n rounds differently for different x, at the same sum."""
    drawn = FloatNoise(0.25).draw(np.random.default_rng(0), (10_000, 1, 1, 1))
    dark, bright = (np.full((1, 1, 1), level, np.uint8) for level in (1, 200))
    undone = FloatNoise.add(dark, drawn) - FloatNoise.add(dark, 0 * drawn) == 2 * drawn
    assert 0.05 < undone.mean() < 0.95, "the last bits tell whether the noise was added to this image"
    whole = IntegerNoise(0.25).draw(np.random.default_rng(0), (10_000, 1, 1, 1))
    np.testing.assert_array_equal(
        np.rint((IntegerNoise(0.25).add(dark, whole) + 1) / 2 * 255) - 1,
        np.rint((IntegerNoise(0.25).add(bright, whole) + 1) / 2 * 255) - 200,
    )


def test_integer_noise_refuses_images_off_the_grid() -> None:
    drawn = IntegerNoise(0.25).draw(np.random.default_rng(0), (1, 1, 2, 2))
    with pytest.raises(ValueError, match="this noise is for 8-bit images, and this one is float64"):
        IntegerNoise(0.25).add(np.zeros((1, 2, 2)), drawn)


def test_without_noise_an_8_bit_image_is_itself_and_no_other_is_taken() -> None:
    nothing = NoNoise(0.0).draw(np.random.default_rng(0), (2, 1, 1, 3))
    z = NoNoise.add(np.array([[[0, 51, 255]]], np.uint8), nothing)
    np.testing.assert_allclose(z, [[[[-1.0, -0.6, 1.0]]]] * 2)
    with pytest.raises(ValueError, match="this noise is for 8-bit images, and this one is float64"):
        NoNoise.add(np.array([[[0.5, 0.25, 1.5]]]), nothing)


@pytest.mark.parametrize("sigma_pixel", [1e-300, 1e-4, 2e-4])
def test_a_sigma_far_below_a_level_of_grey_adds_nothing_and_does_not_overflow(sigma_pixel: float) -> None:
    table = rounded_gaussian_table(sigma_pixel).thresholds
    assert [int(threshold) for threshold in table] == [0, 2**64 - 1]
    assert not IntegerNoise(sigma_pixel).draw(np.random.default_rng(0), (1000,)).any()


@pytest.mark.parametrize("bits", [1, 5])
def test_a_finer_lattice_has_the_table_of_a_larger_sigma(bits: int) -> None:
    finer = rounded_gaussian_table(0.02, bits=bits).thresholds
    np.testing.assert_array_equal(finer, rounded_gaussian_table(0.02 * 2**bits).thresholds)
