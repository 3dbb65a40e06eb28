"""Other images of the same class, made from a training image: for photographs, and for drawn digits."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

LONGEST_SHIFT = 1 / 8  # of a side: 4 of CIFAR-10's 32 pixels


def jitter(images: Float[Tensor, "b c h w"], generator: torch.Generator, *, share: float) -> Float[Tensor, "b c h w"]:
    """Small random rotations, scalings, shears and shifts of a share of the images; outside is black (-1)."""
    count, device = len(images), images.device

    def normal(std: float) -> Tensor:
        return torch.randn(count, generator=generator, device=device) * std

    angle, scale = normal(0.1), 1 + normal(0.06)
    matrix = torch.zeros(count, 2, 3, device=device)
    matrix[:, 0, 0] = angle.cos() * scale
    matrix[:, 0, 1] = -angle.sin() * scale + normal(0.08)
    matrix[:, 1, 0] = angle.sin() * scale
    matrix[:, 1, 1] = angle.cos() * scale
    matrix[:, 0, 2], matrix[:, 1, 2] = normal(0.1), normal(0.1)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    moved = F.grid_sample(images + 1, grid, align_corners=False) - 1
    chosen = torch.rand(count, 1, 1, 1, generator=generator, device=device) < share
    return torch.where(chosen, moved, images)


def flip_and_shift(
    images: Float[Tensor, "b c h w"], generator: torch.Generator, *, share: float
) -> Float[Tensor, "b c h w"]:
    """Mirrors half of the images left to right, and shifts a share by whole pixels; borders are reflected."""
    count, _, height, width = images.shape
    device = images.device

    def places(side: int) -> Tensor:
        """For each image the pixels along a side that it is read from."""
        reach = int(side * LONGEST_SHIFT)
        shift = torch.randint(-reach, reach + 1, (count, 1), generator=generator, device=device)
        place = (torch.arange(side, device=device) + torch.where(shifted, shift, 0)).abs()
        return side - 1 - (side - 1 - place).abs()

    shifted = torch.rand(count, 1, generator=generator, device=device) < share
    mirrored = torch.rand(count, 1, generator=generator, device=device) < 0.5
    rows, columns = places(height), places(width)
    columns = torch.where(mirrored, columns.flip(1), columns)
    image = torch.arange(count, device=device)[:, None, None]
    return images.permute(0, 2, 3, 1)[image, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def unchanged(
    images: Float[Tensor, "b c h w"], generator: torch.Generator, *, share: float
) -> Float[Tensor, "b c h w"]:
    return images


AUGMENTATIONS: dict[str, Callable[..., Tensor]] = {
    "none": unchanged,
    "jitter": jitter,
    "flip-and-shift": flip_and_shift,
}
