"""ADM as EDM trains it for ImageNet-64; argument and parameter names are EDM's."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ndc_core.networks.edm_blocks import PositionalEmbedding, ResampledConv, UNetBlock, group_norm

EPS = 1e-5
CHANNELS_PER_HEAD = 64


class DhariwalUNet(nn.Module):
    """The U-Net of Dhariwal and Nichol 2021 (ADM), at EDM's defaults for ImageNet-64.

    The label enters as a continuous vector; all zero is "no label".
    """

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
        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        channels = [model_channels * factor for factor in channel_mult]
        skips = self._build_encoder(img_resolution, in_channels, channels, num_blocks, attn_resolutions)
        self._build_decoder(img_resolution, channels, num_blocks, attn_resolutions, skips)
        self.out_norm = group_norm(channels[0], eps=EPS)
        self.out_conv = ResampledConv(channels[0], out_channels, 3)

    def _block(self, channels_in: int, channels_out: int, *, attention: bool = False, **changes: Any) -> UNetBlock:
        return UNetBlock(
            channels_in,
            channels_out,
            self.embedding,
            heads=channels_out // CHANNELS_PER_HEAD if attention else 0,
            project_resampled_skip=False,
            adaptive_scale=True,
            skip_scale=1.0,
            eps=EPS,
            **changes,
        )

    def _build_encoder(
        self, resolution: int, image_channels: int, channels: Sequence[int], blocks: int, attended: Sequence[int]
    ) -> list[int]:
        """Fills `enc`; returns the channels of its outputs, which are the skip connections."""
        current = channels[0]
        skips = [current]
        for level, width in enumerate(channels):
            side = resolution >> level
            name = f"{side}x{side}"
            if level == 0:
                self.enc[f"{name}_conv"] = ResampledConv(image_channels, current, 3)
            else:
                self.enc[f"{name}_down"] = self._block(current, current, down=True)
                skips.append(current)
            for index in range(blocks):
                self.enc[f"{name}_block{index}"] = self._block(current, width, attention=side in attended)
                current = width
                skips.append(current)
        return skips

    def _build_decoder(
        self, resolution: int, channels: Sequence[int], blocks: int, attended: Sequence[int], skips: list[int]
    ) -> None:
        current = channels[-1]
        for level, width in reversed(list(enumerate(channels))):
            side = resolution >> level
            name = f"{side}x{side}"
            if level == len(channels) - 1:
                self.dec[f"{name}_in0"] = self._block(current, current, attention=True)
                self.dec[f"{name}_in1"] = self._block(current, current)
            else:
                self.dec[f"{name}_up"] = self._block(current, current, up=True)
            for index in range(blocks + 1):
                taken = current + skips.pop()
                self.dec[f"{name}_block{index}"] = self._block(taken, width, attention=side in attended)
                current = width

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
        skips: list[Tensor] = []
        for name, layer in self.enc.items():
            x = layer(x) if name.endswith("_conv") else layer(x, embedding)
            skips.append(x)
        for name, layer in self.dec.items():
            x = layer(torch.cat([x, skips.pop()], dim=1) if "_block" in name else x, embedding)
        return self.out_conv(F.silu(self.out_norm(x)))
