"""The Triton kernels are the formulas. Without a GPU, where Triton is installed, run this with TRITON_INTERPRET=1."""

import os
from typing import Any

import pytest
import torch
from torch import Tensor

if not (torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET")):
    pytest.skip("there is no GPU, and Triton's interpreter was not asked for", allow_module_level=True)
pytest.importorskip("triton")

from ndc_core.models.networks import fused_formulas, fused_kernels

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# The interpreter cuts bfloat16 off instead of rounding it.
DTYPES = (torch.float32, torch.float16, *([torch.bfloat16] if DEVICE == "cuda" else []))
SHAPES = ((3, (64,), 8), (2, (96, 96), 5), (2, (192,), 16), (1, (16,), 4), (1, (384, 192), 4))  # rows, channels, side


def parts_of(rows: int, channels: tuple[int, ...], side: int, dtype: torch.dtype) -> list[Tensor]:
    torch.manual_seed(0)
    parts = [torch.randn(rows, width, side, side, device=DEVICE) * 2 + 1 for width in channels]
    return [part.to(dtype).contiguous(memory_format=torch.channels_last) for part in parts]


def close(computed: Tensor, expected: Tensor) -> None:
    rough = {torch.float32: 1e-4, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}[computed.dtype]
    torch.testing.assert_close(computed, expected, rtol=rough, atol=rough * max(1.0, expected.abs().mean().item()))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_additions_and_sums(shape: tuple[int, tuple[int, ...], int], dtype: torch.dtype) -> None:
    for x in parts_of(*shape, dtype):
        close(fused_kernels.channel_sums(x), fused_formulas.channel_sums(x))
        y, bias = torch.randn_like(x), torch.randn(x.shape[1], device=DEVICE).to(dtype)
        for resample, back in (("keep", "keep"), ("up", "down"), ("down", "up")):
            if shape[2] % 2 and resample != "keep":
                continue
            other = fused_formulas.resampled(y, back)
            close(fused_kernels.resampled(y, back), other)
            results = fused_kernels.add(x, other, bias, 0.7, resample=resample)
            for result, expected in zip(
                results, fused_formulas.add(x, other, bias, 0.7, resample=resample), strict=True
            ):
                close(result, expected)


@pytest.mark.parametrize("before", ["nothing", "rows", "channels"])
@pytest.mark.parametrize("modulated", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_norms_and_their_gradients(
    shape: tuple[int, tuple[int, ...], int], dtype: torch.dtype, modulated: bool, before: str
) -> None:
    parts = parts_of(*shape, dtype)
    rows, channels, pixels = shape[0], sum(shape[1]), shape[2] ** 2
    weight, bias, level = torch.randn(3, channels, device=DEVICE).to(dtype).unbind(0)
    scale, shift = torch.randn(rows, 2 * channels, device=DEVICE).to(dtype).chunk(2, dim=1)
    arguments: dict[str, Any] = {
        "groups": min(32, channels // 4),
        "weight": weight,
        "bias": bias,
        "eps": 1e-5,
        "before": {"nothing": None, "rows": scale.clone(), "channels": level.expand(rows, -1)}[before],
        "modulation": (scale, shift) if modulated else None,
    }
    sums = [fused_formulas.channel_sums(part) for part in parts]
    factors = fused_formulas.norm_factors(sums, pixels, **arguments)
    close(fused_kernels.norm_factors(sums, pixels, **arguments), factors)
    gradient = torch.randn(rows, channels, shape[2], shape[2], device=DEVICE).to(dtype)
    gradient = gradient.contiguous(memory_format=torch.channels_last)
    through = torch.randn_like(factors)
    for silu in (True, False):
        for resample in ("keep", "up", "down") if shape[2] % 2 == 0 else ("keep",):
            close(
                fused_kernels.scale_and_shift(parts, factors, silu=silu, resample=resample),
                fused_formulas.scale_and_shift(parts, factors, silu=silu, resample=resample),
            )
        close(
            fused_kernels.backward_sums(parts, factors, gradient, silu=silu),
            fused_formulas.backward_sums(parts, factors, gradient, silu=silu),
        )
        gradients = fused_kernels.backward_apply(parts, factors, gradient, through, silu=silu)
        expected = fused_formulas.backward_apply(parts, factors, gradient, through, silu=silu)
        for computed, formula in zip(gradients, expected, strict=True):
            close(computed, formula)
