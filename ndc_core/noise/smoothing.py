"""The noise that a certificate is about: what is added to the image before each vote.

`none` is for classifiers that take the image as it is. `float` noise is Gaussian in double precision, in pixels.
`integer` noise lives on the grid of 8-bit images: a Gaussian variable rounded to whole levels, drawn from a table of
its probabilities (rule S8). For an image x on the grid round(x + n) = x + round(n), so its votes are those of a
Gaussian-smoothed classifier that looks at rounded images.

A draw is in absolute units, so that adding it to an image needs no sigma and cannot be given a wrong one.
"""

from dataclasses import dataclass
from decimal import Decimal, localcontext
from fractions import Fraction
from functools import lru_cache
from typing import Literal, Protocol

import numpy as np
from jaxtyping import Float, Shaped

from ndc_core.noise.draw_tables import TABLE_BITS, DrawTable
from ndc_core.space import bytes_to_pixels, pixels_to_model

LEVELS = 255
DECIMAL_DIGITS = 60
FAR = Decimal(20)  # standard deviations: what lies beyond is less than 2^-290

NoiseName = Literal["integer", "float", "none"]
Image = Shaped[np.ndarray, "c h w"]
Noise = Shaped[np.ndarray, "draws c h w"]


class InputNoise(Protocol):
    @property
    def scope(self) -> str:
        """Which adversarial images a certificate made with this noise covers."""

    def draw(self, generator: np.random.Generator, shape: tuple[int, ...]) -> Shaped[np.ndarray, "..."]:
        """In the units that `add` takes, for any sigma."""

    @staticmethod
    def add(image: Image, noise: Noise) -> Float[np.ndarray, "draws c h w"]:
        """Noisy images in model space and double precision."""

    def distance(self, dimension: int) -> float:
        """Bound on the total variation distance, per image, between what is drawn and the law it stands for."""


@dataclass(frozen=True)
class FloatNoise:
    sigma_pixel: float
    scope: str = "all images, if floating-point noise is taken for exact"

    def draw(self, generator: np.random.Generator, shape: tuple[int, ...]) -> Float[np.ndarray, "..."]:
        """In pixels."""
        return self.sigma_pixel * generator.standard_normal(shape)

    @staticmethod
    def add(image: Image, noise: Noise) -> Float[np.ndarray, "draws c h w"]:
        """Takes 8-bit images, and pixels in double precision as well."""
        pixels = bytes_to_pixels(image) if image.dtype == np.uint8 else image
        return pixels_to_model(pixels + noise)

    def distance(self, dimension: int) -> float:
        return 0.0


@dataclass(frozen=True)
class IntegerNoise:
    sigma_pixel: float
    scope: str = "8-bit images"

    def draw(self, generator: np.random.Generator, shape: tuple[int, ...]) -> Shaped[np.ndarray, "..."]:
        """Whole levels, of the law of round(255 sigma_pixel e)."""
        return rounded_gaussian_table(self.sigma_pixel).draw(generator, shape)

    @staticmethod
    def add(image: Image, noise: Noise) -> Float[np.ndarray, "draws c h w"]:
        """A function of the sums image + noise, which are whole numbers.

        Raises:
            ValueError: an image that is not on the 8-bit grid.
        """
        refuse_off_grid(image)
        return pixels_to_model((image.astype(np.int64) + noise) / LEVELS)

    def distance(self, dimension: int) -> float:
        # Each threshold is off by less than one unit of the table, and so is each cell's probability.
        return dimension * (len(rounded_gaussian_table(self.sigma_pixel)) + 1) / 2.0**TABLE_BITS


@dataclass(frozen=True)
class NoNoise:
    """The image as it is; the classifier's own steps draw on a lattice that contains the grid of 8-bit images."""

    sigma_pixel: float
    scope: str = "8-bit images"

    def draw(self, generator: np.random.Generator, shape: tuple[int, ...]) -> Float[np.ndarray, "..."]:
        return np.zeros(shape)

    @staticmethod
    def add(image: Image, noise: Noise) -> Float[np.ndarray, "draws c h w"]:
        """Raises:
        ValueError: an image that is not on the 8-bit grid.
        """
        refuse_off_grid(image)
        return pixels_to_model(bytes_to_pixels(image) + noise)

    def distance(self, dimension: int) -> float:
        return 0.0


NOISES: dict[str, type[FloatNoise] | type[IntegerNoise] | type[NoNoise]] = {
    "integer": IntegerNoise,
    "float": FloatNoise,
    "none": NoNoise,
}


def refuse_off_grid(image: Image) -> None:
    """Raises ValueError for an image that is not on the 8-bit grid."""
    if image.dtype != np.uint8:
        raise ValueError(
            f"this noise is for 8-bit images, and this one is {image.dtype}; make it uint8, or for smoothing use "
            "noise = 'float', whose certificates are sound up to floating-point rounding only"
        )


@lru_cache(maxsize=512)
def rounded_gaussian_table(sigma_pixel: float, *, bits: int = 0) -> DrawTable:
    """floor(2^64 Phi((k + 1/2) / s)) for the whole numbers k = -m .. m - 1; what lies beyond has less than one unit.

    A uniform 64-bit u stands for the k whose cell holds it. s is sigma_pixel in levels of grey, or in the 2^bits parts
    that each is divided into.
    """
    assert sigma_pixel > 0
    s, half = Fraction(sigma_pixel) * LEVELS * 2**bits, 2 ** (TABLE_BITS - 1)
    upper_halves: list[int] = []
    with localcontext() as context:
        context.prec = DECIMAL_DIGITS
        scale = Decimal(s.numerator) / Decimal(s.denominator)
        while not upper_halves or upper_halves[-1] < half - 1:
            x = (len(upper_halves) + Decimal("0.5")) / scale
            # Far out Phi is 1 to all digits; the last threshold leaves the cell beyond it one unit.
            upper_halves.append(min(half - 1, int(_phi_above_half(min(x, FAR)) * 2**TABLE_BITS)))
    # By symmetry the threshold below -k is at 1 - Phi; rounding down there as well keeps every error below one unit.
    thresholds = [half - upper - 1 for upper in reversed(upper_halves)] + [half + upper for upper in upper_halves]
    return DrawTable(np.array(thresholds, dtype=np.uint64))


def _phi_above_half(x: Decimal) -> Decimal:
    """Phi(x) - 1/2 = phi(x) (x + x^3 / 3 + x^5 / (3 5) + ...): all terms are positive, so no digit is lost."""
    term = total = x
    odd = 3
    while term > total.scaleb(-DECIMAL_DIGITS):
        term *= x * x / odd
        total += term
        odd += 2
    two_pi = 2 * Decimal("3.14159265358979323846264338327950288419716939937510582097494459")
    return total * (-x * x / 2).exp() / two_pi.sqrt()
