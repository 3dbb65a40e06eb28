"""Building blocks of EDM's three networks; parameter names are EDM's, so that its checkpoints fit.

Source: Karras et al. 2022, Table 1 and appendix F; Song et al. 2021 (DDPM++, NCSN++); Dhariwal and Nichol 2021 (ADM).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ndc_core.models.networks.attention import attended_planes
from ndc_core.models.networks.fused_formulas import Resample, resampled

MOST_GROUPS, CHANNELS_PER_GROUP = 32, 4


def group_norm(channels: int, *, eps: float) -> nn.GroupNorm:
    return nn.GroupNorm(min(MOST_GROUPS, channels // CHANNELS_PER_GROUP), channels, eps=eps)


def sinusoids(angle: Float[Tensor, "rows half"]) -> Float[Tensor, "rows channels"]:
    return torch.cat([angle.cos(), angle.sin()], dim=1)


# Makes the layer of a kind (conv, down, block; in0, in1, up, block, last) from its channels in and out and its side.
MakeLayer = Callable[[str, int, int, int], nn.Module]


def encoder_layers(
    resolution: int,
    image_channels: int,
    channels: Sequence[int],
    blocks: int,
    make: MakeLayer,
    *,
    first: int,
    residual: MakeLayer | None = None,
) -> tuple[nn.ModuleDict, list[int]]:
    """The layers of an encoder under EDM's names, and the channels of its outputs, which are the skip connections.

    A `residual` layer goes beside each halving one, from the image itself or from the residual layer before it.
    """
    layers = nn.ModuleDict()
    current, beside, skips = first, image_channels, [first]
    for level, width in enumerate(channels):
        side = resolution >> level
        if level == 0:
            layers[f"{side}x{side}_conv"] = make("conv", image_channels, current, side)
        else:
            layers[f"{side}x{side}_down"] = make("down", current, current, side)
            skips.append(current)
            if residual:
                layers[f"{side}x{side}_aux_residual"] = residual("residual", beside, current, side)
                beside = current
        for index in range(blocks):
            layers[f"{side}x{side}_block{index}"] = make("block", current, width, side)
            current = width
            skips.append(current)
    return layers, skips


def decoder_layers(
    resolution: int, channels: Sequence[int], blocks: int, make: MakeLayer, *, skips: list[int]
) -> nn.ModuleDict:
    """The layers of a decoder under EDM's names; each block takes one skip connection, the last one first."""
    layers, current, ahead = nn.ModuleDict(), channels[-1], list(skips)
    for level, width in reversed(list(enumerate(channels))):
        side = resolution >> level
        if level == len(channels) - 1:
            layers[f"{side}x{side}_in0"] = make("in0", current, current, side)
            layers[f"{side}x{side}_in1"] = make("in1", current, current, side)
        else:
            layers[f"{side}x{side}_up"] = make("up", current, current, side)
        for index in range(blocks + 1):
            kind = "last" if index == blocks else "block"
            layers[f"{side}x{side}_block{index}"] = make(kind, current + ahead.pop(), width, side)
            current = width
    return layers


class PositionalEmbedding(nn.Module):
    """Sinusoids of the noise level at geometric frequencies from 1 down to 1/10,000 (`endpoint`: reached exactly)."""

    def __init__(self, channels: int, *, endpoint: bool) -> None:
        super().__init__()
        self.frequencies = channels // 2
        self.intervals = self.frequencies - int(endpoint)

    def forward(self, c_noise: Float[Tensor, " rows"]) -> Float[Tensor, "rows channels"]:
        exponent = torch.arange(self.frequencies, dtype=torch.float32, device=c_noise.device) / self.intervals
        return sinusoids(c_noise.float()[:, None] * (1 / 10_000) ** exponent)


class FourierEmbedding(nn.Module):
    """Sinusoids of the noise level at random frequencies, kept in the checkpoint."""

    SCALE = 16

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.freqs: Tensor
        self.register_buffer("freqs", torch.randn(channels // 2) * self.SCALE)

    def forward(self, c_noise: Float[Tensor, " rows"]) -> Float[Tensor, "rows channels"]:
        return sinusoids(c_noise.float()[:, None] * (2 * math.pi * self.freqs.float()))


class ResampledConv(nn.Module):
    """A convolution that first halves (`down`) or doubles (`up`) the image with a separable filter.

    A kernel of 0 is the resampling alone. With `fused`, the convolution comes before the halving filter.

    Raises:
        ValueError: weights are loaded whose filter is not `resample_filter`.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel: int,
        *,
        up: bool = False,
        down: bool = False,
        resample_filter: Sequence[float] = (1, 1),
        fused: bool = False,
    ) -> None:
        super().__init__()
        self.up, self.down, self.fused, self.padding = up, down, fused, kernel // 2
        self.weight: Tensor | None = None
        self.bias: Tensor | None = None
        if kernel:
            plain = nn.Conv2d(channels_in, channels_out, kernel)
            self.weight, self.bias = plain.weight, plain.bias
        self.resample_filter: Tensor | None
        self.register_buffer("resample_filter", _square(resample_filter) if up or down else None)
        self.averages = tuple(resample_filter) == (1, 1)  # averages two by two pixels, or doubles each pixel
        if up or down:
            self.register_load_state_dict_post_hook(_refuse_other_filter(resample_filter))

    def resampled(self, x: Float[Tensor, "rows c h w"], *, padding: int) -> Float[Tensor, "rows c h2 w2"]:
        assert self.resample_filter is not None
        if self.averages and not padding:  # the same bits, without a convolution for each channel
            return resampled(x, "up" if self.up else "down")
        channels = x.shape[1]
        per_channel = self.resample_filter.to(x.dtype).expand(channels, 1, -1, -1)
        if self.up:
            return F.conv_transpose2d(x, per_channel * 4, stride=2, padding=padding, groups=channels)
        return F.conv2d(x, per_channel, stride=2, padding=padding, groups=channels)

    def forward(self, x: Float[Tensor, "rows c h w"]) -> Float[Tensor, "rows c2 h2 w2"]:
        if self.fused:
            assert self.bias is not None
            return self.convolved(x) + self.bias.view(1, -1, 1, 1)
        return self._resampled_first(x, self.bias)

    def convolved(self, x: Float[Tensor, "rows c h w"]) -> Float[Tensor, "rows c2 h2 w2"]:
        """All but the bias."""
        if not self.fused:
            return self._resampled_first(x, None)
        assert self.weight is not None
        return self.resampled(F.conv2d(x, self.weight, padding=self.padding + self._reach), padding=0)

    def _resampled_first(
        self, x: Float[Tensor, "rows c h w"], bias: Float[Tensor, " c2"] | None
    ) -> Float[Tensor, "rows c2 h2 w2"]:
        if self.up or self.down:
            x = self.resampled(x, padding=self._reach)
        return x if self.weight is None else F.conv2d(x, self.weight, bias, padding=self.padding)

    @property
    def resample(self) -> Resample | None:
        """The kind of resampling: none, averaging or doubling; None for other filters."""
        if not (self.up or self.down):
            return "keep"
        return ("up" if self.up else "down") if self.averages else None

    @property
    def _reach(self) -> int:
        return 0 if self.resample_filter is None else (self.resample_filter.shape[-1] - 1) // 2


def _square(taps: Sequence[float], *, device: str | None = None) -> Float[Tensor, "1 1 taps taps"]:
    row = torch.as_tensor(taps, dtype=torch.float32, device=device)
    return (row.outer(row) / row.sum() ** 2)[None, None]


def _refuse_other_filter(taps: Sequence[float]) -> Callable[[nn.Module, Any], None]:
    def check(layer: nn.Module, _: Any) -> None:
        loaded, expected = layer.get_buffer("resample_filter"), _square(taps, device="cpu")
        if not loaded.is_meta and not torch.equal(loaded.float().cpu(), expected):
            raise ValueError(f"a resample_filter of the weights is {loaded.tolist()}, not {expected.tolist()}")

    return check


class UNetBlock(nn.Module):
    """A residual block, and attention over the pixels where it has heads.

    The embedding shifts what is between the two convolutions; with `adaptive_scale` it scales it too. Each sum of the
    block is multiplied by `skip_scale`.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        channels_embedding: int,
        *,
        heads: int = 0,
        up: bool = False,
        down: bool = False,
        resample_filter: Sequence[float] = (1, 1),
        project_resampled_skip: bool,
        adaptive_scale: bool,
        skip_scale: float,
        eps: float,
    ) -> None:
        super().__init__()
        self.channels_out, self.heads, self.skip_scale = channels_out, heads, skip_scale
        self.adaptive_scale = adaptive_scale
        resampling: dict[str, Any] = {"up": up, "down": down, "resample_filter": resample_filter}
        self.norm0 = group_norm(channels_in, eps=eps)
        self.conv0 = ResampledConv(channels_in, channels_out, 3, **resampling)
        self.affine = nn.Linear(channels_embedding, channels_out * (2 if adaptive_scale else 1))
        self.norm1 = group_norm(channels_out, eps=eps)
        self.conv1 = ResampledConv(channels_out, channels_out, 3)
        self.skip: ResampledConv | None = None
        projected = channels_in != channels_out or (project_resampled_skip and (up or down))
        if projected or up or down:
            self.skip = ResampledConv(channels_in, channels_out, 1 if projected else 0, **resampling)
        if heads:
            self.norm2 = group_norm(channels_out, eps=eps)
            self.qkv = ResampledConv(channels_out, 3 * channels_out, 1)
            self.proj = ResampledConv(channels_out, channels_out, 1)

    def forward(
        self, x: Float[Tensor, "rows c h w"], embedding: Float[Tensor, "rows e"]
    ) -> Float[Tensor, "rows c2 h2 w2"]:
        hidden = self.conv0(F.silu(self.norm0(x)))
        modulation = self.affine(embedding)[:, :, None, None]
        if self.adaptive_scale:
            scale, shift = modulation.chunk(2, dim=1)
            hidden = torch.addcmul(shift, self.norm1(hidden), scale + 1)
        else:
            hidden = self.norm1(hidden + modulation)
        hidden = self.conv1(F.silu(hidden))
        x = (hidden + (x if self.skip is None else self.skip(x))) * self.skip_scale
        return (x + self.attended(x)) * self.skip_scale if self.heads else x

    def attended(self, x: Float[Tensor, "rows c h w"]) -> Float[Tensor, "rows c h w"]:
        return self.proj(attended_planes(self.norm2(x), self.qkv, heads=self.heads))
