"""The formulas of `fused_ops` in PyTorch: for devices without `fused_kernels`, which has the same names."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Sums = Float[Tensor, "rows 2 c"]
Factors = Float[Tensor, "rows 2 c"]
Resample = Literal["keep", "up", "down"]  # pixels are doubled, or averaged over two by two


def channel_sums(x: Float[Tensor, "rows c h w"]) -> Sums:
    flat = x.float().flatten(2)
    return torch.stack([flat.sum(2), flat.square().sum(2)], dim=1)


def resampled(x: Float[Tensor, "rows c h w"], resample: Resample) -> Float[Tensor, "rows c h2 w2"]:
    if resample == "keep":
        return x
    return F.interpolate(x, scale_factor=2.0, mode="nearest") if resample == "up" else F.avg_pool2d(x, 2)


def add(
    x: Float[Tensor, "rows c h w"],
    y: Float[Tensor, "rows c h2 w2"],
    bias: Float[Tensor, " c"],
    scale: float,
    *,
    resample: Resample,
) -> tuple[Float[Tensor, "rows c h w"], Sums]:
    total = ((x.float() + resampled(y, resample).float() + bias.float()[:, None, None]) * scale).to(x.dtype)
    return total, channel_sums(total)


def norm_factors(
    sums: Sequence[Float[Tensor, "rows 2 _"]],
    pixels: int,
    *,
    groups: int,
    weight: Float[Tensor, " c"],
    bias: Float[Tensor, " c"],
    eps: float,
    before: Float[Tensor, "rows c"] | None,
    modulation: tuple[Float[Tensor, "rows c"], Float[Tensor, "rows c"]] | None,
) -> Factors:
    added, mean, deviation = group_statistics(
        torch.cat(list(sums), dim=2), pixels, groups=groups, eps=eps, before=before
    )
    factor = weight.float() / deviation
    constant = bias.float() + (added - mean) * factor
    if modulation:
        scale, shift = (part.float() for part in modulation)
        factor, constant = factor * (scale + 1), constant * (scale + 1) + shift
    return torch.stack([factor, constant], dim=1)


def group_statistics(
    sums: Sums, pixels: int, *, groups: int, eps: float, before: Float[Tensor, "rows c"] | None
) -> tuple[Float[Tensor, "rows c"], Float[Tensor, "rows c"], Float[Tensor, "rows c"]]:
    """What was added before, and the mean and standard deviation of each channel's group after that."""
    total, squares = sums.unbind(1)
    added = torch.zeros_like(total) if before is None else before.float()
    squares = squares + added * (2 * total + pixels * added)
    mean = mean_of_groups(total + pixels * added, pixels, groups=groups)
    variance = (mean_of_groups(squares, pixels, groups=groups) - mean.square()).clamp(min=0)
    return added, mean, (variance + eps).sqrt()


def mean_of_groups(sums: Float[Tensor, "rows c"], pixels: int, *, groups: int) -> Float[Tensor, "rows c"]:
    """From sums over the pixels; each channel gets its group's mean."""
    members = sums.shape[1] // groups
    return (sums.unflatten(1, (groups, members)).sum(2) / (pixels * members)).repeat_interleave(members, dim=1)


def scale_and_shift(
    parts: Sequence[Float[Tensor, "rows _ h w"]], factors: Factors, *, silu: bool, resample: Resample
) -> Float[Tensor, "rows c h2 w2"]:
    u = _affine(torch.cat(list(parts), dim=1), factors)
    return resampled(u * u.sigmoid() if silu else u, resample).to(parts[0].dtype)


def backward_sums(
    parts: Sequence[Float[Tensor, "rows _ h w"]], factors: Factors, gradient: Float[Tensor, "rows c h w"], *, silu: bool
) -> Sums:
    """The sums over the pixels of g and g x, for the gradient g with respect to SiLU's input."""
    x = torch.cat(list(parts), dim=1)
    g = _before_silu(x, factors, gradient, silu=silu)
    return torch.stack([g.flatten(2).sum(2), (g * x.float()).flatten(2).sum(2)], dim=1)


def backward_apply(
    parts: Sequence[Float[Tensor, "rows _ h w"]],
    factors: Factors,
    gradient: Float[Tensor, "rows c h w"],
    through: Factors,
    *,
    silu: bool,
) -> list[Float[Tensor, "rows _ h w"]]:
    """factor g + through[0] x + through[1], by part."""
    x = torch.cat(list(parts), dim=1)
    g = _before_silu(x, factors, gradient, silu=silu)
    result = (factors[:, 0, :, None, None] * g + _affine(x, through)).to(x.dtype)
    return list(result.split([part.shape[1] for part in parts], dim=1))


def _affine(x: Float[Tensor, "rows c h w"], factors: Factors) -> Float[Tensor, "rows c h w"]:
    return x.float() * factors[:, 0, :, None, None] + factors[:, 1, :, None, None]


def _before_silu(
    x: Float[Tensor, "rows c h w"], factors: Factors, gradient: Float[Tensor, "rows c h w"], *, silu: bool
) -> Float[Tensor, "rows c h w"]:
    if not silu:
        return gradient.float()
    u = _affine(x, factors)
    gate = u.sigmoid()
    return gradient.float() * gate * (1 + u * (1 - gate))
