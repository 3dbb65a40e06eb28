"""The noise that a certificate speaks of: what is added to the image before each vote.

`none` is for classifiers that take the image as it is. `float` noise is Gaussian in double precision. `integer` noise
lives on the grid of 8-bit images: a Gaussian variable rounded to whole levels, drawn from a table of its probabilities
(rule S8). For an image x on the grid round(x + n) = x + round(n), so its votes are those of a Gaussian-smoothed
classifier that looks at rounded images.
"""

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal, localcontext
from fractions import Fraction
from functools import lru_cache
from typing import Literal, Protocol

import numpy as np
from jaxtyping import Float, Shaped, UInt64

from ndc_core.space import bytes_to_pixels, pixels_to_model

LEVELS = 255
TABLE_BITS = 64
DECIMAL_DIGITS = 60

NoiseName = Literal["integer", "float", "none"]
Image = Shaped[np.ndarray, "c h w"]
Noise = Shaped[np.ndarray, "draws c h w"]


class InputNoise(Protocol):
    @property
    def scope(self) -> str:
        """Which adversarial images a certificate made with this noise covers."""

    def draw(self, generator: np.random.Generator, shape: tuple[int, ...]) -> Shaped[np.ndarray, "..."]: ...

    def add(self, image: Image, noise: Noise) -> Float[np.ndarray, "draws c h w"]:
        """Noisy images in model space and double precision."""

    def distance(self, dimension: int) -> float:
        """Bound on the total variation distance, per image, between what is drawn and the law it stands for."""


@dataclass(frozen=True)
class FloatNoise:
    sigma_pixel: float
    scope: str = "all images, if floating-point noise is taken for exact"

    def draw(self, generator: np.random.Generator, shape: tuple[int, ...]) -> Float[np.ndarray, "..."]:
        return generator.standard_normal(shape)

    def add(self, image: Image, noise: Noise) -> Float[np.ndarray, "draws c h w"]:
        """Takes 8-bit images, and pixels in double precision as well."""
        pixels = bytes_to_pixels(image) if image.dtype == np.uint8 else image
        return pixels_to_model(pixels + self.sigma_pixel * noise)

    def distance(self, dimension: int) -> float:
        return 0.0


@dataclass(frozen=True)
class IntegerNoise:
    sigma_pixel: float
    scope: str = "8-bit images"

    def draw(self, generator: np.random.Generator, shape: tuple[int, ...]) -> Shaped[np.ndarray, "..."]:
        """Whole levels, of the law of round(255 sigma_pixel e)."""
        return draw_from_table(rounded_gaussian_table(self.sigma_pixel), generator, shape)

    def add(self, image: Image, noise: Noise) -> Float[np.ndarray, "draws c h w"]:
        """A function of the sums image + noise, which are whole numbers.

        Raises:
            ValueError: an image that is not on the 8-bit grid.
        """
        if image.dtype != np.uint8:
            raise ValueError(
                f"integer noise is for 8-bit images, and this one is {image.dtype}; use noise = 'float', "
                "whose certificates are sound up to floating-point rounding only"
            )
        return pixels_to_model((image.astype(np.int64) + noise) / LEVELS)

    def distance(self, dimension: int) -> float:
        # Each threshold is off by less than one unit of the table, and so is each cell's probability.
        return dimension * (len(rounded_gaussian_table(self.sigma_pixel)) + 1) / 2.0**TABLE_BITS


@dataclass(frozen=True)
class NoNoise:
    """Only the clamp to [0, 1], a projection: it makes a Lipschitz constant of images hold everywhere."""

    sigma_pixel: float
    scope: str = "all images"

    def draw(self, generator: np.random.Generator, shape: tuple[int, ...]) -> Float[np.ndarray, "..."]:
        return np.zeros(shape)

    def add(self, image: Image, noise: Noise) -> Float[np.ndarray, "draws c h w"]:
        """Takes 8-bit images, and pixels in double precision as well."""
        pixels = bytes_to_pixels(image) if image.dtype == np.uint8 else image
        return pixels_to_model(pixels.clip(0.0, 1.0) + noise)

    def distance(self, dimension: int) -> float:
        return 0.0


NOISES: dict[str, Callable[[float], InputNoise]] = {"integer": IntegerNoise, "float": FloatNoise, "none": NoNoise}


def draw_from_table(
    table: UInt64[np.ndarray, " thresholds"], generator: np.random.Generator, shape: tuple[int, ...]
) -> Shaped[np.ndarray, "..."]:
    """Whole numbers k = -m .. m from the 2m thresholds floor(2^64 P(K <= k)), k = -m .. m - 1."""
    uniform = generator.integers(0, 2**TABLE_BITS, size=shape, dtype=np.uint64)
    return np.searchsorted(table, uniform, side="right") - len(table) // 2


@lru_cache(maxsize=16)
def rounded_gaussian_table(sigma_pixel: float) -> UInt64[np.ndarray, " thresholds"]:
    """floor(2^64 Phi((k + 1/2) / s)), s = 255 sigma_pixel, for the whole numbers k = -m .. m - 1; what lies beyond has
    less than one unit. A uniform 64-bit u stands for the k whose cell holds it."""
    assert sigma_pixel > 0
    s = Fraction(sigma_pixel) * LEVELS
    upper_halves: list[int] = []
    with localcontext() as context:
        context.prec = DECIMAL_DIGITS
        scale = Decimal(s.numerator) / Decimal(s.denominator)
        while not upper_halves or upper_halves[-1] < 2 ** (TABLE_BITS - 1) - 1:
            x = (len(upper_halves) + Decimal("0.5")) / scale
            upper_halves.append(int(_phi_above_half(x) * 2**TABLE_BITS))
    half = 2 ** (TABLE_BITS - 1)
    # By symmetry the threshold below -k is at 1 - Phi; rounding down there as well keeps every error below one unit.
    thresholds = [half - upper - 1 for upper in reversed(upper_halves)] + [half + upper for upper in upper_halves]
    return np.array(thresholds, dtype=np.uint64)


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
