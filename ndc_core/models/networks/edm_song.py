"""DDPM++ and NCSN++ as EDM trains them for CIFAR-10; argument and parameter names are EDM's."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ndc_core.models.networks.edm_blocks import (
    FourierEmbedding,
    PositionalEmbedding,
    ResampledConv,
    UNetBlock,
    decoder_layers,
    encoder_layers,
    group_norm,
)
from ndc_core.models.networks.fused_unet import run_unet

EPS = 1e-6


class SongUNet(nn.Module):
    """A U-Net with DDPM++'s defaults; `fourier`, `residual`, channel_mult_noise 2 and [1, 3, 3, 1] make it NCSN++.

    The label enters as a continuous vector; all zero is "no label". Source: Song et al. 2021; Karras et al. 2022,
    appendix F. With `fused` set it runs through `fused_unet`, for inference.

    Raises:
        ValueError: an embedding, encoder or decoder that neither network has.
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
        self.embedding, self.resample_filter, self.attended = embedding, resample_filter, attn_resolutions
        channels = [model_channels * factor for factor in channel_mult]
        residual = self._residual if encoder_type == "residual" else None
        self.enc, skips = encoder_layers(
            img_resolution, in_channels, channels, num_blocks, self._encoder, first=model_channels, residual=residual
        )
        self.dec = decoder_layers(img_resolution, channels, num_blocks, self._decoder, skips=skips)
        name = f"{img_resolution}x{img_resolution}"
        self.dec[f"{name}_aux_norm"] = group_norm(channels[0], eps=EPS)
        self.dec[f"{name}_aux_conv"] = ResampledConv(channels[0], out_channels, 3)

    def _encoder(self, kind: str, channels_in: int, channels_out: int, side: int) -> nn.Module:
        if kind == "conv":
            return ResampledConv(channels_in, channels_out, 3)
        heads = int(kind == "block" and side in self.attended)
        return self._block(channels_in, channels_out, heads=heads, down=kind == "down")

    def _residual(self, kind: str, channels_in: int, channels_out: int, side: int) -> nn.Module:
        return ResampledConv(channels_in, channels_out, 3, down=True, resample_filter=self.resample_filter, fused=True)

    def _decoder(self, kind: str, channels_in: int, channels_out: int, side: int) -> nn.Module:
        attended = kind == "in0" or (kind == "last" and side in self.attended)
        return self._block(channels_in, channels_out, heads=int(attended), up=kind == "up")

    def _block(self, channels_in: int, channels_out: int, **kind: Any) -> UNetBlock:
        return UNetBlock(
            channels_in,
            channels_out,
            self.embedding,
            resample_filter=self.resample_filter,
            project_resampled_skip=True,
            adaptive_scale=False,
            skip_scale=math.sqrt(0.5),
            eps=EPS,
            **kind,
        )

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
        *blocks, (_, norm), (_, conv) = self.dec.items()
        if self.fused:
            assert isinstance(norm, nn.GroupNorm)
            assert isinstance(conv, ResampledConv)
            return run_unet(x, embedding, encoder=self.enc.items(), decoder=blocks, norm=norm, conv=conv)
        skips: list[Tensor] = []
        auxiliary = x
        for name, layer in self.enc.items():
            if name.endswith("_aux_residual"):
                x = auxiliary = skips[-1] = (x + layer(auxiliary)) * math.sqrt(0.5)
            else:
                x = layer(x) if name.endswith("_conv") else layer(x, embedding)
                skips.append(x)
        for name, layer in blocks:
            x = layer(torch.cat([x, skips.pop()], dim=1) if "_block" in name else x, embedding)
        return conv(F.silu(norm(x)))
