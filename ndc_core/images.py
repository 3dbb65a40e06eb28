"""Turns users' images into the 8-bit arrays that certificates are about, or says what they are instead."""

import numpy as np
from jaxtyping import Shaped
from torch import Tensor

from ndc_core.noise.smoothing import NoiseName
from ndc_core.vote_requests import Image

# One image, channels first, or several.
Images = Shaped[np.ndarray, "*n c h w"] | Shaped[Tensor, "*n c h w"]
CHANNELS = (1, 3, 4)


def as_images(images: Images, *, image_shape: tuple[int, int, int], noise: NoiseName) -> tuple[list[Image], bool]:
    """The images one by one, and whether they came as a batch: uint8, or with `float` noise pixels in [0, 1] as well.

    Raises:
        ValueError: another type, range, layout or size than the model takes; says what was given and how to fix it.
    """
    array = images.detach().cpu().numpy() if isinstance(images, Tensor) else np.asarray(images)
    _refuse_layout(array.shape, image_shape)
    if not array.size:
        raise ValueError("there are no images: the batch has length 0")
    if array.dtype != np.uint8:
        _refuse_pixels(array, noise)
        array = array.astype(np.float64)
    return list(array.reshape(-1, *image_shape)), array.ndim == 4


def _refuse_layout(shape: tuple[int, ...], image_shape: tuple[int, int, int]) -> None:
    channels, height, width = image_shape
    takes = f"the model takes (channels, height, width) = {image_shape}, or a batch of these"
    own, batch = shape[-3:], len(shape) == 4
    if len(shape) in (3, 4) and own == image_shape:
        return
    if len(shape) in (3, 4) and own == (height, width, channels):
        axes = (0, 3, 1, 2) if batch else (2, 0, 1)
        raise ValueError(f"shape {shape} has its channels last; {takes}: use np.transpose(images, {axes})")
    if channels == 1 and shape[-2:] == (height, width) and len(shape) in (2, 3):
        index = "[None]" if len(shape) == 2 else "[:, None]"
        raise ValueError(f"shape {shape} has no axis of channels; {takes}: use images{index}")
    if len(shape) not in (3, 4):
        raise ValueError(f"shape {shape} is that of no image; {takes}")
    last = own[0] not in CHANNELS and own[2] in CHANNELS
    given, sides = (own[2], own[:2]) if last else (own[0], own[1:])
    wrong = []
    if given != channels:
        wrong.append(f"{given} channels instead of {channels}")
    if sides != (height, width):
        wrong.append(f"{sides[0]} x {sides[1]} pixels instead of {height} x {width}")
    if last:
        wrong.append("channels last instead of first")
    raise ValueError(f"shape {shape} has {' and '.join(wrong)}; {takes}. Resize or convert the images first")


def _refuse_pixels(array: np.ndarray, noise: NoiseName) -> None:
    """Refuses arrays that are not uint8, except floats in [0, 1] with `float` noise."""
    if not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"images are {array.dtype}, not uint8; give whole numbers from 0 to 255 as uint8")
    if not np.isfinite(array).all():
        raise ValueError(f"images are {array.dtype}, and some values are not finite")
    low, high = float(array.min()), float(array.max())
    if low < 0:
        remedy = "give ((images + 1) * 127.5).round() as uint8, if they lie in [-1, 1]"
    elif high > 1:
        remedy = "give images.round() as uint8, if they lie in [0, 255]"
    elif noise == "float":
        return
    else:
        remedy = "give (255 * images).round() as uint8; noise='float' takes pixels in [0, 1] as they are"
    raise ValueError(f"images are {array.dtype} from {low:g} to {high:g}, not uint8; {remedy}")
