"""DDPM++ and NCSN++ as EDM trains them for CIFAR-10; argument and parameter names are EDM's."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ndc_core.networks.edm_blocks import (
    FourierEmbedding,
    PositionalEmbedding,
    ResampledConv,
    UNetBlock,
    group_norm,
)

EPS = 1e-6


class SongUNet(nn.Module):
    """A U-Net with DDPM++'s defaults; `fourier`, `residual`, channel_mult_noise 2 and [1, 3, 3, 1] make it NCSN++.

    The label enters as a continuous vector; all zero is "no label". Source: Song et al. 2021; Karras et al. 2022,
    appendix F.

    Raises:
        ValueError: an embedding, encoder or decoder that is neither's.
    """

    def __init__(
        self,
        *,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 128,
        channel_mult: Sequence[int] = (1, 2, 2, 2),
        channel_mult_emb: int = 4,
        num_blocks: int = 4,
        attn_resolutions: Sequence[int] = (16,),
        embedding_type: str = "positional",
        channel_mult_noise: int = 1,
        encoder_type: str = "standard",
        decoder_type: str = "standard",
        resample_filter: Sequence[float] = (1, 1),
    ) -> None:
        super().__init__()
        for name, value, known in (
            ("embedding_type", embedding_type, ("positional", "fourier")),
            ("encoder_type", encoder_type, ("standard", "residual")),
            ("decoder_type", decoder_type, ("standard",)),
        ):
            if value not in known:
                raise ValueError(f"{name} {value!r} is not supported; there are: {', '.join(known)}")
        noise, embedding = model_channels * channel_mult_noise, model_channels * channel_mult_emb
        fourier = embedding_type == "fourier"
        self.map_noise = FourierEmbedding(noise) if fourier else PositionalEmbedding(noise, endpoint=True)
        self.map_label = nn.Linear(label_dim, noise) if label_dim else None
        self.map_augment = nn.Linear(augment_dim, noise, bias=False) if augment_dim else None
        self.map_layer0 = nn.Linear(noise, embedding)
        self.map_layer1 = nn.Linear(embedding, embedding)
        self.embedding, self.resample_filter = embedding, resample_filter
        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        channels = [model_channels * factor for factor in channel_mult]
        skips = self._build_encoder(
            img_resolution, in_channels, model_channels, channels, num_blocks, attn_resolutions, encoder_type
        )
        self._build_decoder(img_resolution, out_channels, channels, num_blocks, attn_resolutions, skips)

    def _block(self, channels_in: int, channels_out: int, **changes: Any) -> UNetBlock:
        return UNetBlock(
            channels_in,
            channels_out,
            self.embedding,
            resample_filter=self.resample_filter,
            project_resampled_skip=True,
            adaptive_scale=False,
            skip_scale=math.sqrt(0.5),
            eps=EPS,
            **changes,
        )

    def _build_encoder(
        self,
        resolution: int,
        image_channels: int,
        first_channels: int,
        channels: Sequence[int],
        blocks: int,
        attended: Sequence[int],
        kind: str,
    ) -> list[int]:
        """Fills `enc`; returns the channels of its outputs, which are the skip connections."""
        current, auxiliary, skips = first_channels, image_channels, [first_channels]
        for level, width in enumerate(channels):
            side = resolution >> level
            name = f"{side}x{side}"
            if level == 0:
                self.enc[f"{name}_conv"] = ResampledConv(image_channels, current, 3)
            else:
                self.enc[f"{name}_down"] = self._block(current, current, down=True)
                skips.append(current)
                if kind == "residual":
                    self.enc[f"{name}_aux_residual"] = ResampledConv(
                        auxiliary, current, 3, down=True, resample_filter=self.resample_filter, fused=True
                    )
                    auxiliary = current
            for index in range(blocks):
                self.enc[f"{name}_block{index}"] = self._block(current, width, heads=int(side in attended))
                current = width
                skips.append(current)
        return skips

    def _build_decoder(
        self,
        resolution: int,
        image_channels: int,
        channels: Sequence[int],
        blocks: int,
        attended: Sequence[int],
        skips: list[int],
    ) -> None:
        current = channels[-1]
        for level, width in reversed(list(enumerate(channels))):
            side = resolution >> level
            name = f"{side}x{side}"
            if level == len(channels) - 1:
                self.dec[f"{name}_in0"] = self._block(current, current, heads=1)
                self.dec[f"{name}_in1"] = self._block(current, current)
            else:
                self.dec[f"{name}_up"] = self._block(current, current, up=True)
            for index in range(blocks + 1):
                heads = int(index == blocks and side in attended)
                self.dec[f"{name}_block{index}"] = self._block(current + skips.pop(), width, heads=heads)
                current = width
        self.dec[f"{name}_aux_norm"] = group_norm(current, eps=EPS)
        self.dec[f"{name}_aux_conv"] = ResampledConv(current, image_channels, 3)

    def embed(
        self,
        c_noise: Float[Tensor, " rows"],
        label: Float[Tensor, "rows classes"],
        augment: Float[Tensor, "rows augmentations"] | None,
    ) -> Float[Tensor, "rows embedding"]:
        cosines, sines = self.map_noise(c_noise).chunk(2, dim=1)
        embedding = torch.cat([sines, cosines], dim=1).to(self.map_layer0.weight.dtype)
        if self.map_label is not None:
            # The square root keeps a one-hot label's variance at 1 (EDM's scaling).
            embedding = embedding + self.map_label(label.to(embedding.dtype) * math.sqrt(label.shape[1]))
        if self.map_augment is not None and augment is not None:
            embedding = embedding + self.map_augment(augment.to(embedding.dtype))
        return F.silu(self.map_layer1(F.silu(self.map_layer0(embedding))))

    def forward(
        self,
        x: Float[Tensor, "rows c h w"],
        c_noise: Float[Tensor, " rows"],
        label: Float[Tensor, "rows classes"],
        augment: Float[Tensor, "rows augmentations"] | None = None,
    ) -> Float[Tensor, "rows c h w"]:
        embedding = self.embed(c_noise, label, augment)
        skips: list[Tensor] = []
        auxiliary = x
        for name, layer in self.enc.items():
            if name.endswith("_aux_residual"):
                x = auxiliary = skips[-1] = (x + layer(auxiliary)) * math.sqrt(0.5)
            else:
                x = layer(x) if name.endswith("_conv") else layer(x, embedding)
                skips.append(x)
        *blocks, norm, conv = self.dec.items()
        for name, layer in blocks:
            x = layer(torch.cat([x, skips.pop()], dim=1) if "_block" in name else x, embedding)
        return conv[1](F.silu(norm[1](x)))
