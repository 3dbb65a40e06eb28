"""How NVIDIA's EDM code runs its networks, for its speed.

Weights are float32 and cast at each use; NCHW; attention is two einsums and a float32 softmax; resampling is a
convolution for each channel; biases are added in place.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ndc_core.models.networks.edm_adm import DhariwalUNet
from ndc_core.models.networks.edm_blocks import ResampledConv, UNetBlock
from ndc_core.models.networks.edm_song import SongUNet


def edm_network(network: SongUNet | DhariwalUNet, x: Tensor, c_noise: Tensor, label: Tensor) -> Tensor:
    """Of a network with standard encoder; x has the dtype in which to compute."""
    embedding = network.embed(c_noise, label, None)
    layers = list(network.dec.items())
    if isinstance(network, SongUNet):
        (_, norm), (_, last) = layers[-2:]
        layers = layers[:-2]
    else:
        norm, last = network.out_norm, network.out_conv
    skips = []
    for name, layer in network.enc.items():
        x = _conv(layer, x) if name.endswith("_conv") else _block(layer, x, embedding)
        skips.append(x)
    for name, layer in layers:
        x = _block(layer, torch.cat([x, skips.pop()], dim=1) if "_block" in name else x, embedding)
    return _conv(last, F.silu(_norm(norm, x)))


def _conv(layer: ResampledConv, x: Tensor) -> Tensor:
    channels = x.shape[1]
    if layer.resample_filter is not None:
        taps = layer.resample_filter.to(x.dtype)
        if layer.up:
            x = F.conv_transpose2d(x, (taps * 4).tile(channels, 1, 1, 1), stride=2, groups=channels)
        else:
            x = F.conv2d(x, taps.tile(channels, 1, 1, 1), stride=2, groups=channels)
    if layer.weight is None:
        return x
    x = F.conv2d(x, layer.weight.to(x.dtype), padding=layer.padding)
    return x.add_(layer.bias.to(x.dtype).reshape(1, -1, 1, 1))


def _norm(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    return F.group_norm(x, norm.num_groups, norm.weight.to(x.dtype), norm.bias.to(x.dtype), norm.eps)


def _block(block: UNetBlock, x: Tensor, embedding: Tensor) -> Tensor:
    hidden = _conv(block.conv0, F.silu(_norm(block.norm0, x)))
    modulation = block.affine(embedding)[:, :, None, None].to(x.dtype)
    if block.adaptive_scale:
        scale, shift = modulation.chunk(2, dim=1)
        hidden = F.silu(torch.addcmul(shift, _norm(block.norm1, hidden), scale + 1))
    else:
        hidden = F.silu(_norm(block.norm1, hidden.add_(modulation)))
    hidden = _conv(block.conv1, hidden)
    x = hidden.add_(x if block.skip is None else _conv(block.skip, x)) * block.skip_scale
    if not block.heads:
        return x
    qkv = _conv(block.qkv, _norm(block.norm2, x))
    query, key, value = qkv.reshape(len(x) * block.heads, x.shape[1] // block.heads, 3, -1).unbind(2)
    logits = torch.einsum("ncq,nck->nqk", query.float(), (key / key.shape[1] ** 0.5).float())
    weights = logits.softmax(dim=2).to(query.dtype)
    mixed = torch.einsum("nqk,nck->ncq", weights, value)
    return _conv(block.proj, mixed.reshape(x.shape)).add_(x) * block.skip_scale
