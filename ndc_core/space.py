"""The one place where pixel space ([0, 1], what users see) becomes model space ([-1, 1], EDM's)."""

from typing import Any, TypeVar

import numpy as np

Array = TypeVar("Array", bound=Any)  # of numpy or PyTorch


def pixels_to_model(x: Array) -> Array:
    """z = 2x - 1."""
    return x * 2 - 1


def model_to_pixels(z: Array) -> Array:
    """x = (z + 1) / 2."""
    return (z + 1) / 2


def sigma_to_model(sigma_pixel: float) -> float:
    """Standard deviations scale as distances do: sigma_model = 2 sigma_pixel."""
    return 2 * sigma_pixel


def sigma_to_pixel(sigma_model: float) -> float:
    return sigma_model / 2


def bytes_to_pixels(image: np.ndarray) -> np.ndarray:
    """An 8-bit image as doubles in [0, 1]."""
    assert image.dtype == np.uint8
    return image / 255.0
