"""Triton's `fused_programs` launched, with the names of `fused_formulas`, for CUDA; tensors are channels last."""

from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from ndc_core.models.networks.fused_programs import (
    add_kernel,
    affine_kernel,
    apply_kernel,
    backward_apply_kernel,
    backward_sums_kernel,
    sums_kernel,
)

PIXELS, CHANNELS = 64, 64  # of a tile: 128 bytes of each pixel in half precision
WARPS = 4


def _sizes(x: Tensor) -> tuple[int, int, int]:
    return x.shape[0], x.shape[2] * x.shape[3], x.shape[1]


def channel_sums(x: Tensor) -> Tensor:
    rows, pixels, channels = _sizes(x)
    sums = x.new_empty(rows, 2, channels, dtype=torch.float32)
    grid = (triton.cdiv(channels, CHANNELS), rows)
    sums_kernel[grid](x, sums, pixels, channels, tile_pixels=PIXELS, tile_channels=CHANNELS, num_warps=WARPS)
    return sums


def add(x: Tensor, y: Tensor, bias: Tensor, scale: float, *, resample: str) -> tuple[Tensor, Tensor]:
    rows, pixels, channels = _sizes(x)
    out, sums = torch.empty_like(x), x.new_empty(rows, 2, channels, dtype=torch.float32)
    grid = (triton.cdiv(channels, CHANNELS), rows)
    add_kernel[grid](
        x,
        y,
        bias,
        out,
        sums,
        scale,
        pixels,
        y.shape[2] * y.shape[3],
        x.shape[3],
        channels,
        resample=resample,
        tile_pixels=PIXELS,
        tile_channels=CHANNELS,
        num_warps=WARPS,
    )
    return out, sums


def norm_factors(
    sums: Sequence[Tensor],
    pixels: int,
    *,
    groups: int,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    before: Tensor | None,
    modulation: tuple[Tensor, Tensor] | None,
) -> Tensor:
    rows, channels = len(sums[0]), len(weight)
    scale, shift = modulation or (weight, weight)
    factors = sums[0].new_empty(rows, 2, channels)
    affine_kernel[(rows,)](
        sums[0],
        sums[-1],
        weight,
        bias,
        weight if before is None else before,
        scale,
        shift,
        factors,
        0 if before is None else before.stride(0),
        0 if modulation is None else scale.stride(0),
        pixels,
        sums[0].shape[2],
        channels,
        groups,
        eps,
        has_before=before is not None,
        is_modulated=modulation is not None,
        most_groups=triton.next_power_of_2(groups),
        most_members=triton.next_power_of_2(channels // groups),
        num_warps=1,
    )
    return factors


def scale_and_shift(parts: Sequence[Tensor], factors: Tensor | None, *, silu: bool, resample: str) -> Tensor:
    rows, x_pixels, _ = _sizes(parts[0])
    height, width = (_side_after(side, resample) for side in parts[0].shape[2:])
    wide, offset = sum(part.shape[1] for part in parts), 0
    like: dict[str, Any] = {"dtype": parts[0].dtype, "device": parts[0].device, "memory_format": torch.channels_last}
    out = torch.empty((rows, wide, height, width), **like)
    for x in parts:
        channels = x.shape[1]
        grid = (triton.cdiv(channels, CHANNELS), triton.cdiv(height * width, PIXELS), rows)
        apply_kernel[grid](
            x,
            factors,
            out,
            height * width,
            x_pixels,
            width,
            channels,
            offset,
            wide,
            has_factors=factors is not None,
            silu=silu,
            resample=resample,
            tile_pixels=PIXELS,
            tile_channels=CHANNELS,
            num_warps=WARPS,
        )
        offset += channels
    return out


def resampled(x: Tensor, resample: str) -> Tensor:
    return x if resample == "keep" else scale_and_shift([x], None, silu=False, resample=resample)


def _side_after(side: int, resample: str) -> int:
    return {"keep": side, "up": 2 * side, "down": side // 2}[resample]


def backward_sums(parts: Sequence[Tensor], factors: Tensor, gradient: Tensor, *, silu: bool) -> Tensor:
    rows, pixels, _ = _sizes(parts[0])
    sums, wide, offset = torch.empty_like(factors), factors.shape[2], 0
    for x in parts:
        channels = x.shape[1]
        grid = (triton.cdiv(channels, CHANNELS), rows)
        backward_sums_kernel[grid](
            x,
            factors,
            gradient,
            sums,
            pixels,
            channels,
            offset,
            wide,
            silu=silu,
            tile_pixels=PIXELS,
            tile_channels=CHANNELS,
            num_warps=WARPS,
        )
        offset += channels
    return sums


def backward_apply(
    parts: Sequence[Tensor], factors: Tensor, gradient: Tensor, through: Tensor, *, silu: bool
) -> list[Tensor]:
    rows, pixels, _ = _sizes(parts[0])
    results, wide, offset = [], factors.shape[2], 0
    for x in parts:
        channels, out = x.shape[1], torch.empty_like(x)
        grid = (triton.cdiv(channels, CHANNELS), triton.cdiv(pixels, PIXELS), rows)
        backward_apply_kernel[grid](
            x,
            factors,
            gradient,
            through,
            out,
            pixels,
            channels,
            offset,
            wide,
            silu=silu,
            tile_pixels=PIXELS,
            tile_channels=CHANNELS,
            num_warps=WARPS,
        )
        results.append(out)
        offset += channels
    return results
