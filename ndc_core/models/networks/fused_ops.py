"""The steps between a network's convolutions, with few accesses to memory: statistics, normalisation, sums.

On CUDA these are Triton kernels, elsewhere the same formulas in PyTorch. Tensors are channels last. A row's result, and
its gradient, is a function of that row alone. Gradients go to activations, shifts and scales, not to weights.
"""

import importlib
import importlib.util
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import Function

from ndc_core.models.networks import fused_formulas
from ndc_core.models.networks.fused_formulas import Resample, group_statistics, mean_of_groups


class Summed(NamedTuple):
    """Activations with the sums of each channel, and of its squares, over the pixels, from which norms are computed.

    Gradients go to `x` alone.
    """

    x: Float[Tensor, "rows c h w"]
    sums: Float[Tensor, "rows 2 c"]


def has_kernels() -> bool:
    """Whether Triton is installed, without which all of this is slow on CUDA."""
    return importlib.util.find_spec("triton") is not None


def _home(x: Tensor) -> Any:
    return _kernels() if x.is_cuda else fused_formulas


@cache
def _kernels() -> Any:
    return importlib.import_module("ndc_core.models.networks.fused_kernels")


def channels_last(x: Float[Tensor, "rows c h w"]) -> Float[Tensor, "rows c h w"]:
    return x.contiguous(memory_format=torch.channels_last)


def with_sums(x: Float[Tensor, "rows c h w"]) -> Summed:
    x = channels_last(x)
    return Summed(x, _home(x).channel_sums(x.detach()))


def resampled(x: Float[Tensor, "rows c h w"], resample: Resample) -> Float[Tensor, "rows c h2 w2"]:
    return cast(Tensor, _Resampled.apply(x, resample))


class _Resampled(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, resample: Resample) -> Tensor:
        ctx.resample = resample
        x = channels_last(x)
        result: Tensor = _home(x).resampled(x, resample)
        return result.view_as(result)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _resampled_back(gradients[0], ctx.resample), None


def _resampled_back(gradient: Tensor, resample: Resample) -> Tensor:
    """The gradient with respect to the input of a resampling."""
    gradient = channels_last(gradient)
    if resample == "up":
        return _home(gradient).resampled(gradient, "down") * 4
    return _home(gradient).resampled(gradient, "up") / 4 if resample == "down" else gradient


def add(
    x: Float[Tensor, "rows c h w"],
    y: Float[Tensor, "rows c h2 w2"],
    bias: Float[Tensor, " c"],
    *,
    scale: float,
    resample: Resample = "keep",
) -> Summed:
    """(x + y + bias) * scale, with y resampled first."""
    return Summed(*cast(tuple[Tensor, Tensor], _Add.apply(x, y, bias, scale, resample)))


class _Add(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, bias: Tensor, scale: float, resample: Resample
    ) -> tuple[Tensor, Tensor]:
        ctx.scale, ctx.resample = scale, resample
        total, sums = _home(x).add(channels_last(x), channels_last(y), bias, scale, resample=resample)
        ctx.mark_non_differentiable(sums)
        return total, sums

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        gradient = gradients[0] * ctx.scale
        return gradient, _resampled_back(gradient, ctx.resample), None, None, None


def normalised(
    norm: nn.GroupNorm,
    parts: Sequence[Summed],
    *,
    before: Float[Tensor, "rows c"] | None = None,
    modulation: tuple[Float[Tensor, "rows c"], Float[Tensor, "rows c"]] | None = None,
    silu: bool = True,
    resample: Resample = "keep",
) -> Float[Tensor, "rows c h2 w2"]:
    """The group norm of the parts' concatenation, to which `before` was added; then times scale + 1, plus shift
    (`modulation`), SiLU, and resampling."""
    sums, tensors = [part.sums for part in parts], [part.x for part in parts]
    return cast(Tensor, _Normalised.apply(norm, sums, before, *(modulation or (None, None)), silu, resample, *tensors))


class _Normalised(Function):
    """With u = factor x + constant for each row and channel, the result is silu(u)."""

    @staticmethod
    def forward(
        ctx: Any,
        norm: nn.GroupNorm,
        sums: list[Tensor],
        before: Tensor | None,
        scale: Tensor | None,
        shift: Tensor | None,
        silu: bool,
        resample: Resample,
        *parts: Tensor,
    ) -> Tensor:
        home, pixels = _home(parts[0]), parts[0].shape[2] * parts[0].shape[3]
        modulation = None if scale is None else (scale, shift)
        groups, weight, bias, eps = norm.num_groups, norm.weight, norm.bias, norm.eps
        factors = home.norm_factors(
            sums, pixels, groups=groups, weight=weight, bias=bias, eps=eps, before=before, modulation=modulation
        )
        ctx.norm, ctx.silu, ctx.resample = norm, silu, resample
        ctx.save_for_backward(factors, before, scale, *sums, *parts)
        result: Tensor = home.scale_and_shift(parts, factors, silu=silu, resample=resample)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        factors, before, scale, *rest = ctx.saved_tensors
        sums, parts = rest[: len(rest) // 2], rest[len(rest) // 2 :]
        home, gradient = _home(factors), _resampled_back(gradients[0], ctx.resample)
        pixels, groups = parts[0].shape[2] * parts[0].shape[3], ctx.norm.num_groups
        weight, bias = ctx.norm.weight.float(), ctx.norm.bias.float()
        every = torch.cat(sums, dim=2)
        added, mean, deviation = group_statistics(every, pixels, groups=groups, eps=ctx.norm.eps, before=before)
        of_g, of_gx = home.backward_sums(parts, factors, gradient, silu=ctx.silu).unbind(1)
        of_g_normal = (of_gx + (added - mean) * of_g) / deviation  # the sum of g times the normalised x
        # dx = (k g - mean of k g - normalised x * mean of k g normalised x) / deviation, where u = k normalised x + ...
        k = factors[:, 0] * deviation
        slope = -mean_of_groups(k * of_g_normal, pixels, groups=groups) / deviation.square()
        constant = slope * (added - mean) - mean_of_groups(k * of_g, pixels, groups=groups) / deviation
        through = torch.stack([slope, constant], dim=1)
        dx = home.backward_apply(parts, factors, gradient, through, silu=ctx.silu)
        dbefore = dscale = dshift = None
        if before is not None:
            dbefore = (factors[:, 0] * of_g + slope * every[:, 0] + constant * pixels).to(before.dtype)
        if scale is not None:
            dscale, dshift = (weight * of_g_normal + bias * of_g).to(scale.dtype), of_g.to(scale.dtype)
        return (None, None, dbefore, dscale, dshift, None, None, *dx)
