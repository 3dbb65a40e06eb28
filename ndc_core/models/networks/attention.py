"""Attention over pixels with the weights of EDM's checkpoints, laid out for PyTorch's fused kernels."""

from typing import Protocol

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel


class Projection(Protocol):
    """EDM's 1x1 convolution that makes queries, keys and values."""

    weight: Tensor | None
    bias: Tensor | None


def by_part(weights: Float[Tensor, "triple ..."], *, heads: int) -> Float[Tensor, "triple ..."]:
    """Rows of a qkv layer in the order (part, head, channel); EDM's order is (head, channel, part).

    Copied at each use: compared with the pixels it costs nothing, and a network keeps EDM's weights.
    """
    split = weights.unflatten(0, (heads, -1, 3))
    return split.movedim(2, 0).reshape(weights.shape)


def attention(
    query: Float[Tensor, "rows heads pixels c"],
    key: Float[Tensor, "rows heads pixels c"],
    value: Float[Tensor, "rows heads pixels c"],
) -> Float[Tensor, "rows heads pixels c"]:
    if query.is_cuda and query.requires_grad:
        # The fused kernels add up gradients in no fixed order.
        with sdpa_kernel(SDPBackend.MATH):
            return F.scaled_dot_product_attention(query, key, value)
    return F.scaled_dot_product_attention(query, key, value)


def attended_planes(x: Float[Tensor, "rows c h w"], qkv: Projection, *, heads: int) -> Float[Tensor, "rows c h w"]:
    """Attention in any layout of memory, before its projection; `qkv` is a 1x1 convolution."""
    rows, channels, height, width = x.shape
    assert qkv.weight is not None
    assert qkv.bias is not None
    triple = F.conv2d(x, by_part(qkv.weight, heads=heads), by_part(qkv.bias, heads=heads))
    split = triple.reshape(rows, 3, heads, channels // heads, height * width).transpose(-1, -2)
    # CUDA's fused kernels need contiguous channels. On a CPU that changes the order of sums, and so known votes.
    query, key, value = (split.contiguous() if split.is_cuda else split).unbind(1)
    mixed = attention(query, key, value)
    return mixed.transpose(2, 3).reshape(rows, channels, height, width)


def attended_tokens(
    tokens: Float[Tensor, "tokens c"], qkv: Projection, *, heads: int, rows: int
) -> Float[Tensor, "tokens c"]:
    """The same for pixels whose channels are contiguous: nothing is copied between the products."""
    assert qkv.weight is not None
    assert qkv.bias is not None
    triple = F.linear(tokens, by_part(qkv.weight, heads=heads).flatten(1), by_part(qkv.bias, heads=heads))
    query, key, value = triple.view(rows, -1, 3, heads, tokens.shape[1] // heads).permute(2, 0, 3, 1, 4).unbind(0)
    mixed = attention(query, key, value)
    return mixed.transpose(1, 2).reshape(tokens.shape)
