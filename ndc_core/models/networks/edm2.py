"""EDM2's magnitude-preserving U-Net; argument and parameter names are EDM2's.

Source: Karras et al. 2024, "Analyzing and improving the training dynamics of diffusion models", configuration G
(appendix B has the equations that are cited). Written from the paper: no reference output was available.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ndc_core.models.networks.edm_blocks import decoder_layers, encoder_layers

CHANNELS_PER_HEAD = 64
SILU_MAGNITUDE = 0.596  # of silu(x) for a standard normal x (Eq. 81)
ACTIVATION_LIMIT = 256.0


def normalize(x: Float[Tensor, "..."], *, dims: Sequence[int]) -> Float[Tensor, "..."]:
    """Scales x to a root mean square of 1 over `dims` (Eq. 66's forced normalization)."""
    norm = torch.linalg.vector_norm(x, dim=tuple(dims), keepdim=True, dtype=torch.float32)
    norm = 1e-4 + norm * math.sqrt(norm.numel() / x.numel())
    return x / norm.to(x.dtype)


def silu(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    return F.silu(x) / SILU_MAGNITUDE


def mixed(a: Float[Tensor, "..."], b: Float[Tensor, "..."], *, share: float) -> Float[Tensor, "..."]:
    """A sum of two that keeps their magnitude (Eq. 88)."""
    return a.lerp(b, share) / math.sqrt((1 - share) ** 2 + share**2)


def joined(
    a: Float[Tensor, "rows c h w"], b: Float[Tensor, "rows c2 h w"], *, share: float
) -> Float[Tensor, "rows c3 h w"]:
    """A concatenation to which both contribute as `share` says, whatever their widths (Eq. 103)."""
    widths = a.shape[1], b.shape[1]
    scale = math.sqrt(sum(widths) / ((1 - share) ** 2 + share**2))
    return torch.cat([a * (scale * (1 - share) / math.sqrt(widths[0])), b * (scale * share / math.sqrt(widths[1]))], 1)


class FourierFeatures(nn.Module):
    """Cosines of the noise level at random frequencies and phases, kept in the checkpoint."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.freqs: Tensor
        self.phases: Tensor
        self.register_buffer("freqs", 2 * math.pi * torch.randn(channels))
        self.register_buffer("phases", 2 * math.pi * torch.rand(channels))

    def forward(self, c_noise: Float[Tensor, " rows"]) -> Float[Tensor, "rows channels"]:
        return (c_noise.float()[:, None] * self.freqs.float() + self.phases.float()).cos() * math.sqrt(2)


class Magnitude(nn.Module):
    """A convolution, or without a kernel a linear layer, whose weights are normalised when used (Eq. 47)."""

    def __init__(self, channels_in: int, channels_out: int, *kernel: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels_out, channels_in, *kernel))

    def forward(self, x: Float[Tensor, "rows ..."], gain: float | Tensor = 1.0) -> Float[Tensor, "rows ..."]:
        weight = normalize(self.weight.float(), dims=range(1, self.weight.ndim))
        weight = (weight * (gain / math.sqrt(weight[0].numel()))).to(x.dtype)
        return F.linear(x, weight) if weight.ndim == 2 else F.conv2d(x, weight, padding=weight.shape[-1] // 2)


class Block(nn.Module):
    """A residual block of the encoder (normalised first) or decoder, with attention where it has heads (Fig. 21)."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        channels_embedding: int,
        *,
        decoder: bool,
        res_balance: float,
        attn_balance: float,
        clip_act: float | None,
        resample: str = "keep",
        attention: bool = False,
    ) -> None:
        super().__init__()
        self.decoder, self.resample, self.clip_act = decoder, resample, clip_act
        self.res_balance, self.attn_balance = res_balance, attn_balance
        self.heads = channels_out // CHANNELS_PER_HEAD if attention else 0
        self.emb_gain = nn.Parameter(torch.zeros([]))
        self.conv_res0 = Magnitude(channels_in if decoder else channels_out, channels_out, 3, 3)
        self.emb_linear = Magnitude(channels_embedding, channels_out)
        self.conv_res1 = Magnitude(channels_out, channels_out, 3, 3)
        self.conv_skip = Magnitude(channels_in, channels_out, 1, 1) if channels_in != channels_out else None
        self.attn_qkv = Magnitude(channels_out, 3 * channels_out, 1, 1) if self.heads else None
        self.attn_proj = Magnitude(channels_out, channels_out, 1, 1) if self.heads else None

    def forward(
        self, x: Float[Tensor, "rows c h w"], embedding: Float[Tensor, "rows e"]
    ) -> Float[Tensor, "rows c2 h2 w2"]:
        if self.resample == "down":
            x = F.avg_pool2d(x, 2)
        elif self.resample == "up":
            x = F.interpolate(x, scale_factor=2, mode="nearest")
        if not self.decoder:
            x = normalize(x if self.conv_skip is None else self.conv_skip(x), dims=[1])
        scale = self.emb_linear(embedding, gain=self.emb_gain) + 1
        hidden = self.conv_res1(silu(self.conv_res0(silu(x)) * scale[:, :, None, None]))
        if self.decoder and self.conv_skip is not None:
            x = self.conv_skip(x)
        x = mixed(x, hidden, share=self.res_balance)
        if self.attn_qkv is not None and self.attn_proj is not None:
            x = mixed(x, self.attn_proj(self.attended(self.attn_qkv(x))), share=self.attn_balance)
        return x if self.clip_act is None else x.clamp(-self.clip_act, self.clip_act)

    def attended(self, qkv: Float[Tensor, "rows c3 h w"]) -> Float[Tensor, "rows c h w"]:
        """Cosine attention: query, key and value are normalised over each head's channels."""
        rows, triple, height, width = qkv.shape
        split = qkv.reshape(rows, self.heads, -1, 3, height * width)
        query, key, value = normalize(split, dims=[2]).permute(3, 0, 1, 4, 2).unbind(0)
        attended = F.scaled_dot_product_attention(query, key, value)
        return attended.transpose(2, 3).reshape(rows, triple // 3, height, width)


class EDM2UNet(nn.Module):
    """EDM2's network, without its loss's uncertainty head.

    The label enters as a continuous vector; all zero is "no label". There are as many output channels as image channels
    unless `out_channels` is given.
    """

    def __init__(
        self,
        *,
        img_resolution: int,
        img_channels: int,
        out_channels: int | None = None,
        label_dim: int,
        model_channels: int = 192,
        channel_mult: Sequence[int] = (1, 2, 3, 4),
        channel_mult_noise: int | None = None,
        channel_mult_emb: int | None = None,
        num_blocks: int = 3,
        attn_resolutions: Sequence[int] = (16, 8),
        label_balance: float = 0.5,
        concat_balance: float = 0.5,
        res_balance: float = 0.3,
        attn_balance: float = 0.3,
        clip_act: float | None = ACTIVATION_LIMIT,
    ) -> None:
        super().__init__()
        channels = [model_channels * factor for factor in channel_mult]
        noise = model_channels * channel_mult_noise if channel_mult_noise else channels[0]
        self.channels_embedding = model_channels * channel_mult_emb if channel_mult_emb else max(channels)
        self.label_balance, self.concat_balance = label_balance, concat_balance
        self.balances: dict[str, Any] = {"res_balance": res_balance, "attn_balance": attn_balance, "clip_act": clip_act}
        self.out_gain = nn.Parameter(torch.zeros([]))
        self.emb_fourier = FourierFeatures(noise)
        self.emb_noise = Magnitude(noise, self.channels_embedding)
        self.emb_label = Magnitude(label_dim, self.channels_embedding) if label_dim else None
        self.attended = attn_resolutions
        # One channel more than the image: a constant 1 that stands in for biases.
        self.enc, skips = encoder_layers(
            img_resolution, img_channels + 1, channels, num_blocks, self._encoder, first=channels[0]
        )
        self.dec = decoder_layers(img_resolution, channels, num_blocks, self._decoder, skips=skips)
        self.out_conv = Magnitude(channels[0], out_channels or img_channels, 3, 3)

    def _encoder(self, kind: str, channels_in: int, channels_out: int, side: int) -> nn.Module:
        if kind == "conv":
            return Magnitude(channels_in, channels_out, 3, 3)
        return self._block(kind, channels_in, channels_out, side, decoder=False)

    def _decoder(self, kind: str, channels_in: int, channels_out: int, side: int) -> nn.Module:
        return self._block(kind, channels_in, channels_out, side, decoder=True)

    def _block(self, kind: str, channels_in: int, channels_out: int, side: int, *, decoder: bool) -> Block:
        return Block(
            channels_in,
            channels_out,
            self.channels_embedding,
            decoder=decoder,
            resample=kind if kind in ("up", "down") else "keep",
            attention=kind == "in0" or (kind in ("block", "last") and side in self.attended),
            **self.balances,
        )

    def forward(
        self,
        x: Float[Tensor, "rows c h w"],
        c_noise: Float[Tensor, " rows"],
        label: Float[Tensor, "rows classes"],
    ) -> Float[Tensor, "rows c h w"]:
        embedding = self.emb_noise(self.emb_fourier(c_noise).to(x.dtype))
        if self.emb_label is not None:
            scaled = label.to(x.dtype) * math.sqrt(label.shape[1])
            embedding = mixed(embedding, self.emb_label(scaled), share=self.label_balance)
        embedding = silu(embedding)
        x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
        skips: list[Tensor] = []
        for name, layer in self.enc.items():
            x = layer(x) if name.endswith("_conv") else layer(x, embedding)
            skips.append(x)
        for name, layer in self.dec.items():
            x = layer(joined(x, skips.pop(), share=self.concat_balance) if "_block" in name else x, embedding)
        return self.out_conv(x, gain=self.out_gain)
