"""EDM's U-Nets in inference on channels-last data: the networks of `edm_blocks`, with fewer accesses to memory.

Sums that norms need are taken where a tensor is written; biases of convolutions go into the kernel that follows; skip
connections are concatenated by the norm that reads them. The result is the networks' own up to rounding.
"""

import math
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ndc_core.models.networks.attention import attended_tokens
from ndc_core.models.networks.edm_blocks import ResampledConv, UNetBlock
from ndc_core.models.networks.fused_formulas import Resample
from ndc_core.models.networks.fused_ops import Summed, add, normalised, resampled, with_sums

Layers = Iterable[tuple[str, nn.Module]]


def run_unet(
    x: Float[Tensor, "rows c h w"],
    embedding: Float[Tensor, "rows e"],
    *,
    encoder: Layers,
    decoder: Layers,
    norm: nn.GroupNorm,
    conv: ResampledConv,
) -> Float[Tensor, "rows c2 h w"]:
    auxiliary = x = x.contiguous(memory_format=torch.channels_last)
    skips: list[Summed] = []
    for name, layer in encoder:
        if name.endswith("_conv"):
            skips.append(with_sums(layer(x)))
        elif name.endswith("_aux_residual"):
            skips[-1] = with_sums((skips[-1].x + layer(auxiliary)) * math.sqrt(0.5))
            auxiliary = skips[-1].x
        else:
            assert isinstance(layer, UNetBlock)
            skips.append(run_block(layer, [skips[-1]], embedding))
    current = skips[-1]
    for name, layer in decoder:
        assert isinstance(layer, UNetBlock)
        current = run_block(layer, [current, skips.pop()] if "_block" in name else [current], embedding)
    return conv(normalised(norm, [current]))


def run_block(block: UNetBlock, parts: Sequence[Summed], embedding: Float[Tensor, "rows e"]) -> Summed:
    """A block on the concatenation of its parts; the second is a skip connection."""
    assert block.conv0.bias is not None
    assert block.conv1.bias is not None
    hidden = with_sums(_conv0(block, parts))
    modulation = block.affine(embedding)
    if block.adaptive_scale:
        scale, shift = modulation.chunk(2, dim=1)
        before = block.conv0.bias.expand(len(modulation), -1)
        active = normalised(block.norm1, [hidden], before=before, modulation=(scale, shift))
    else:
        active = normalised(block.norm1, [hidden], before=modulation + block.conv0.bias)
    skip, bias, resample = _skipped(block, [part.x for part in parts])
    bias = block.conv1.bias if bias is None else block.conv1.bias + bias
    result = add(block.conv1.convolved(active), skip, bias, scale=block.skip_scale, resample=resample)
    return _attended(block, result) if block.heads else result


def _conv0(block: UNetBlock, parts: Sequence[Summed]) -> Float[Tensor, "rows c h2 w2"]:
    """Without its bias."""
    conv = block.conv0
    if conv.resample is None:
        return conv.convolved(normalised(block.norm0, parts))
    assert conv.weight is not None
    return F.conv2d(normalised(block.norm0, parts, resample=conv.resample), conv.weight, padding=conv.padding)


def _skipped(block: UNetBlock, parts: list[Tensor]) -> tuple[Tensor, Tensor | None, Resample]:
    """The skip path around the convolutions, and the bias and the resampling that it still lacks."""
    skip = block.skip
    if skip is None:
        return _joined(parts), None, "keep"
    if skip.resample is None:
        return skip.convolved(_joined(parts)), skip.bias, "keep"
    if skip.weight is None:
        return _joined(parts), None, skip.resample
    if skip.resample == "down":
        parts = [resampled(part, "down") for part in parts]
    weights = skip.weight.flatten(1).split([part.shape[1] for part in parts], dim=1)
    total = F.linear(_tokens(parts[0]), weights[0])
    for part, weight in zip(parts[1:], weights[1:], strict=True):
        total.addmm_(_tokens(part), weight.t())
    # One product per pixel: with doubling afterwards, four pixels need only one product.
    return _planes(total, like=parts[0]), skip.bias, "up" if skip.resample == "up" else "keep"


def _attended(block: UNetBlock, current: Summed) -> Summed:
    tokens = _tokens(normalised(block.norm2, [current], silu=False))
    mixed = attended_tokens(tokens, block.qkv, heads=block.heads, rows=len(current.x))
    assert block.proj.weight is not None
    assert block.proj.bias is not None
    projected = _planes(F.linear(mixed, block.proj.weight.flatten(1)), like=current.x)
    return add(projected, current.x, block.proj.bias, scale=block.skip_scale)


def _joined(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]  # cat would copy a single one


def _tokens(x: Float[Tensor, "rows c h w"]) -> Float[Tensor, "tokens c"]:
    """A view of channels-last data."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _planes(tokens: Float[Tensor, "tokens c"], *, like: Float[Tensor, "rows c2 h w"]) -> Float[Tensor, "rows c h w"]:
    rows, _, height, width = like.shape
    return tokens.view(rows, height, width, -1).permute(0, 3, 1, 2)
