"""What stands between a network's convolutions, in few trips to memory: statistics, normalisation, sums.

On CUDA these are Triton kernels, elsewhere the same formulas in PyTorch. Tensors are channels last. A row's result is a
function of that row alone.
"""

import importlib
import importlib.util
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class Summed(NamedTuple):
    """Activations with the sums of each channel, and of its squares, over the pixels: what norms are made of."""

    x: Float[Tensor, "rows c h w"]
    sums: Float[Tensor, "rows 2 c"]


def has_kernels() -> bool:
    """Whether there is Triton, without which all of this is slow on CUDA."""
    return importlib.util.find_spec("triton") is not None


@cache
def _kernels() -> Any:
    return importlib.import_module("ndc_core.networks.fused_kernels")


def with_sums(x: Float[Tensor, "rows c h w"]) -> Summed:
    x = x.contiguous(memory_format=torch.channels_last)
    return Summed(x, _kernels().channel_sums(x) if x.is_cuda else _sums(x))


def _sums(x: Float[Tensor, "rows c h w"]) -> Float[Tensor, "rows 2 c"]:
    flat = x.float().flatten(2)
    return torch.stack([flat.sum(2), flat.square().sum(2)], dim=1)


def add(
    x: Float[Tensor, "rows c h w"], y: Float[Tensor, "rows c h w"], bias: Float[Tensor, " c"], *, scale: float
) -> Summed:
    """(x + y + bias) * scale."""
    if x.is_cuda:
        return Summed(*_kernels().add(x, y, bias, scale))
    total = ((x.float() + y.float() + bias.float()[:, None, None]) * scale).to(x.dtype)
    return Summed(total, _sums(total))


def normalised(
    norm: nn.GroupNorm,
    parts: Sequence[Summed],
    *,
    before: Float[Tensor, "rows c"] | None = None,
    modulation: tuple[Float[Tensor, "rows c"], Float[Tensor, "rows c"]] | None = None,
    silu: bool = True,
) -> Float[Tensor, "rows c h w"]:
    """The group norm of the parts' concatenation, to which `before` was added; then times scale + 1, plus shift
    (`modulation`), and SiLU."""
    pixels = parts[0].x.shape[2] * parts[0].x.shape[3]
    arguments: dict[str, Any] = {
        "groups": norm.num_groups,
        "weight": norm.weight,
        "bias": norm.bias,
        "eps": norm.eps,
        "before": before,
        "modulation": modulation,
    }
    sums, tensors = [part.sums for part in parts], [part.x for part in parts]
    if tensors[0].is_cuda:
        factors = _kernels().norm_factors(sums, pixels, **arguments)
        result: Tensor = _kernels().scale_and_shift(tensors, factors, silu=silu)
        return result
    factor, constant = _factors(torch.cat(sums, dim=2), pixels, **arguments).unbind(1)
    x = torch.cat(tensors, dim=1).float() * factor[:, :, None, None] + constant[:, :, None, None]
    return (F.silu(x) if silu else x).to(tensors[0].dtype)


def _factors(
    sums: Float[Tensor, "rows 2 c"],
    pixels: int,
    *,
    groups: int,
    weight: Float[Tensor, " c"],
    bias: Float[Tensor, " c"],
    eps: float,
    before: Float[Tensor, "rows c"] | None,
    modulation: tuple[Float[Tensor, "rows c"], Float[Tensor, "rows c"]] | None,
) -> Float[Tensor, "rows 2 c"]:
    """What a channel is multiplied with, and what is then added."""
    total, squares = sums.unbind(1)
    added = torch.zeros_like(total) if before is None else before.float()
    squares = squares + added * (2 * total + pixels * added)
    total = total + pixels * added
    members = total.shape[1] // groups

    def mean_of_group(x: Tensor) -> Tensor:
        means = x.unflatten(1, (groups, members)).sum(2) / (pixels * members)
        return means.repeat_interleave(members, dim=1)

    mean = mean_of_group(total)
    variance = (mean_of_group(squares) - mean.square()).clamp(min=0)
    factor = weight.float() / (variance + eps).sqrt()
    constant = bias.float() + (added - mean) * factor
    if modulation:
        scale, shift = (one.float() for one in modulation)
        factor, constant = factor * (scale + 1), constant * (scale + 1) + shift
    return torch.stack([factor, constant], dim=1)
