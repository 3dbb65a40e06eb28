"""The noise of a classifier's own steps on lattices that contain the grid of 8-bit images (rule S8).

DC scores an image by a denoiser's output at z + sigma_t e. In floating point the last bits of that sum tell which image
it was. Here the denoiser sees Q_t(z + sigma_t e), where Q_t rounds to whole steps of 2 / (255 * 2^m) in model space:
Q_t is part of the denoiser, so the Lipschitz constant of the expected score still holds. For an 8-bit image, which lies
on the lattice, Q_t(z + sigma_t e) = z + Q_t(sigma_t e), and the rounded noise is drawn from an exact table. What the
denoiser sees is then a function of one whole number per pixel, the sum of the image's and the noise's.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Shaped, UInt8

from ndc_core.noise.draw_generators import Phase, draw_generator
from ndc_core.noise.draw_tables import TABLE_BITS
from ndc_core.noise.smoothing import LEVELS, refuse_off_grid, rounded_gaussian_table
from ndc_core.space import pixels_to_model, sigma_to_pixel

# Rounding adds a variance of 1/12: at 8 steps per sigma it changes the noise's sigma by less than a thousandth, while
# tables stay small. A finer lattice would be as sound.
STEPS_OF_A_SIGMA = 8
# No table reaches beyond this many sigmas on either side: 1 - Phi(9.2) is less than 2^-64.
REACH_IN_SIGMAS = 9.2


@dataclass(frozen=True)
class LatticeNoise:
    """Noise of one level, in whole steps of a lattice that divides each level of grey into 2^bits."""

    sigma_model: float

    @cached_property
    def bits(self) -> int:
        """The coarsest lattice on which a sigma has STEPS_OF_A_SIGMA."""
        return max(0, math.ceil(math.log2(STEPS_OF_A_SIGMA / (LEVELS * sigma_to_pixel(self.sigma_model)))))

    def draw(self, generator: np.random.Generator, shape: tuple[int, ...]) -> Shaped[np.ndarray, "..."]:
        return rounded_gaussian_table(sigma_to_pixel(self.sigma_model), bits=self.bits).draw(generator, shape)

    def add(
        self, image: UInt8[np.ndarray, "*shape"], noise: Shaped[np.ndarray, "*shape"]
    ) -> Float[np.ndarray, "*shape"]:
        """The noisy image in model space and double precision, as a function of whole numbers."""
        return pixels_to_model(((image.astype(np.int64) << self.bits) + noise) / (LEVELS << self.bits))

    def distance(self, dimension: int) -> float:
        """Bound on the total variation distance, per image, between what is drawn and the rounded Gaussian."""
        steps_of_a_sigma = LEVELS * sigma_to_pixel(self.sigma_model) * 2**self.bits
        cells = 2 * (REACH_IN_SIGMAS * steps_of_a_sigma + 2)  # at least as many as the table has, which is slow to make
        return dimension * cells / 2.0**TABLE_BITS


def lattice_distance(sigmas_model: Sequence[float], dimension: int) -> float:
    """The same for a draw of all levels, which are independent."""
    return sum(LatticeNoise(sigma).distance(dimension) for sigma in sigmas_model)


def noisy_images(
    image: Shaped[np.ndarray, "c h w"],
    sigmas_model: Sequence[float],
    *,
    seed: int,
    image_id: str,
    phase: Phase,
    draws: Sequence[int],
) -> Float[np.ndarray, "draws steps c h w"]:
    """An image with independent noise of each level, in model space and single precision.

    Raises:
        ValueError: an image that is not on the 8-bit grid.
    """
    refuse_off_grid(image)
    levels = [LatticeNoise(sigma) for sigma in sigmas_model]
    noisy = np.empty((len(draws), len(levels), *image.shape), dtype=np.float32)
    for row, draw in enumerate(draws):
        generator = draw_generator(seed=seed, image_id=image_id, phase=phase, draw=draw)
        for step, level in enumerate(levels):
            noisy[row, step] = level.add(image, level.draw(generator, image.shape))
    return noisy
