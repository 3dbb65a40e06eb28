"""ADM as EDM trains it for ImageNet-64; argument and parameter names are EDM's."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ndc_core.models.networks.edm_blocks import (
    PositionalEmbedding,
    ResampledConv,
    UNetBlock,
    decoder_layers,
    encoder_layers,
    group_norm,
)
from ndc_core.models.networks.fused_unet import run_unet

EPS = 1e-5
CHANNELS_PER_HEAD = 64


class DhariwalUNet(nn.Module):
    """The U-Net of Dhariwal and Nichol 2021 (ADM), at EDM's defaults for ImageNet-64.

    The label enters as a continuous vector; all zero is "no label". With `fused` set it runs through `fused_unet`, for
    inference.
    """

    fused = False

    def __init__(
        self,
        *,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 192,
        channel_mult: Sequence[int] = (1, 2, 3, 4),
        channel_mult_emb: int = 4,
        num_blocks: int = 3,
        attn_resolutions: Sequence[int] = (32, 16, 8),
    ) -> None:
        super().__init__()
        self.embedding = model_channels * channel_mult_emb
        self.map_noise = PositionalEmbedding(model_channels, endpoint=False)
        self.map_augment = nn.Linear(augment_dim, model_channels, bias=False) if augment_dim else None
        self.map_layer0 = nn.Linear(model_channels, self.embedding)
        self.map_layer1 = nn.Linear(self.embedding, self.embedding)
        self.map_label = nn.Linear(label_dim, self.embedding, bias=False) if label_dim else None
        self.attended = attn_resolutions
        channels = [model_channels * factor for factor in channel_mult]
        self.enc, skips = encoder_layers(
            img_resolution, in_channels, channels, num_blocks, self._layer, first=channels[0]
        )
        self.dec = decoder_layers(img_resolution, channels, num_blocks, self._layer, skips=skips)
        self.out_norm = group_norm(channels[0], eps=EPS)
        self.out_conv = ResampledConv(channels[0], out_channels, 3)

    def _layer(self, kind: str, channels_in: int, channels_out: int, side: int) -> nn.Module:
        if kind == "conv":
            return ResampledConv(channels_in, channels_out, 3)
        attention = kind == "in0" or (kind in ("block", "last") and side in self.attended)
        return UNetBlock(
            channels_in,
            channels_out,
            self.embedding,
            heads=channels_out // CHANNELS_PER_HEAD if attention else 0,
            up=kind == "up",
            down=kind == "down",
            project_resampled_skip=False,
            adaptive_scale=True,
            skip_scale=1.0,
            eps=EPS,
        )

    def embed(
        self,
        c_noise: Float[Tensor, " rows"],
        label: Float[Tensor, "rows classes"],
        augment: Float[Tensor, "rows augmentations"] | None,
    ) -> Float[Tensor, "rows embedding"]:
        embedding = self.map_noise(c_noise).to(self.map_layer0.weight.dtype)
        if self.map_augment is not None and augment is not None:
            embedding = embedding + self.map_augment(augment.to(embedding.dtype))
        embedding = self.map_layer1(F.silu(self.map_layer0(embedding)))
        if self.map_label is not None:
            embedding = embedding + self.map_label(label.to(embedding.dtype))
        return F.silu(embedding)

    def forward(
        self,
        x: Float[Tensor, "rows c h w"],
        c_noise: Float[Tensor, " rows"],
        label: Float[Tensor, "rows classes"],
        augment: Float[Tensor, "rows augmentations"] | None = None,
    ) -> Float[Tensor, "rows c h w"]:
        embedding = self.embed(c_noise, label, augment)
        if self.fused:
            encoder, decoder = self.enc.items(), self.dec.items()
            return run_unet(x, embedding, encoder=encoder, decoder=decoder, norm=self.out_norm, conv=self.out_conv)
        skips: list[Tensor] = []
        for name, layer in self.enc.items():
            x = layer(x) if name.endswith("_conv") else layer(x, embedding)
            skips.append(x)
        for name, layer in self.dec.items():
            x = layer(torch.cat([x, skips.pop()], dim=1) if "_block" in name else x, embedding)
        return self.out_conv(F.silu(self.out_norm(x)))
