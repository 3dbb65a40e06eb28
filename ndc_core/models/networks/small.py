"""The embedded network: a two-level U-Net for images of a few pixels, fast on a CPU."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn


def noise_embedding(c_noise: Float[Tensor, " rows"], *, channels: int) -> Float[Tensor, "rows channels"]:
    """Cosines and sines of the noise level at frequencies 1 to 100."""
    exponent = torch.linspace(0, 1, channels // 2, device=c_noise.device)
    angle = c_noise[:, None] * 100**exponent
    return torch.cat([angle.cos(), angle.sin()], dim=1)


def group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(max(1, channels // 8), channels)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions; the embedding scales and shifts what is between them."""

    def __init__(self, channels_in: int, channels_out: int, channels_embedding: int) -> None:
        super().__init__()
        self.norm0 = group_norm(channels_in)
        self.conv0 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.affine = nn.Linear(channels_embedding, 2 * channels_out)
        self.norm1 = group_norm(channels_out)
        self.conv1 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        self.skip = nn.Conv2d(channels_in, channels_out, 1) if channels_in != channels_out else nn.Identity()
        nn.init.zeros_(self.conv1.weight)
        nn.init.zeros_(self.conv1.bias)  # type: ignore[arg-type]

    def forward(
        self, x: Float[Tensor, "rows c h w"], embedding: Float[Tensor, "rows e"]
    ) -> Float[Tensor, "rows c2 h w"]:
        hidden = self.conv0(F.silu(self.norm0(x)))
        scale, shift = self.affine(embedding)[:, :, None, None].chunk(2, dim=1)
        hidden = F.silu(torch.addcmul(shift, self.norm1(hidden), scale + 1))
        return self.skip(x) + self.conv1(hidden)


class TwoLevels(nn.Module):
    """Residual blocks at full and at half resolution, joined by one skip connection; height and width must be even.

    `labels` is the length of a label that enters as a continuous vector; without one there is no such input.
    """

    def __init__(
        self, *, image_channels: int, outputs: int, labels: int | None, channels: int, channels_embedding: int
    ) -> None:
        super().__init__()
        self.channels_embedding = channels_embedding
        self.noise0 = nn.Linear(channels_embedding // 2, channels_embedding)
        if labels is not None:
            self.label = nn.Linear(labels, channels_embedding, bias=False)
        self.noise1 = nn.Linear(channels_embedding, channels_embedding)
        self.conv_in = nn.Conv2d(image_channels, channels, 3, padding=1)
        self.encoder = ResidualBlock(channels, channels, channels_embedding)
        self.down = nn.Conv2d(channels, 2 * channels, 2, stride=2)
        self.middle = ResidualBlock(2 * channels, 2 * channels, channels_embedding)
        self.up = nn.ConvTranspose2d(2 * channels, channels, 2, stride=2)
        self.decoder = ResidualBlock(2 * channels, channels, channels_embedding)
        self.norm_out = group_norm(channels)
        self.conv_out = nn.Conv2d(channels, outputs, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)  # type: ignore[arg-type]

    def features(
        self,
        x: Float[Tensor, "rows c h w"],
        c_noise: Float[Tensor, " rows"],
        label: Float[Tensor, "rows classes"] | None,
    ) -> Float[Tensor, "rows features h w"]:
        """All but the last convolution."""
        embedding = self.noise0(noise_embedding(c_noise, channels=self.channels_embedding // 2).to(x.dtype))
        if label is not None:
            embedding = embedding + self.label(label.to(x.dtype))
        embedding = F.silu(self.noise1(F.silu(embedding)))
        full = self.encoder(self.conv_in(x), embedding)
        half = self.middle(self.down(full), embedding)
        joined = self.decoder(torch.cat([self.up(half), full], dim=1), embedding)
        return F.silu(self.norm_out(joined))


class SmallUNet(TwoLevels):
    """The label enters as a continuous vector; all zero is "no label"."""

    def __init__(self, *, image_channels: int, num_classes: int, channels: int, channels_embedding: int = 128) -> None:
        super().__init__(
            image_channels=image_channels,
            outputs=image_channels,
            labels=num_classes,
            channels=channels,
            channels_embedding=channels_embedding,
        )

    def forward(
        self,
        x: Float[Tensor, "rows c h w"],
        c_noise: Float[Tensor, " rows"],
        label: Float[Tensor, "rows classes"],
    ) -> Float[Tensor, "rows c h w"]:
        return self.conv_out(self.features(x, c_noise, label))


class SmallHeadsUNet(TwoLevels):
    """The same network without a label: its last convolution has a head for each class and a last one for no class."""

    def __init__(self, *, image_channels: int, num_classes: int, channels: int, channels_embedding: int = 128) -> None:
        super().__init__(
            image_channels=image_channels,
            outputs=(num_classes + 1) * image_channels,
            labels=None,
            channels=channels,
            channels_embedding=channels_embedding,
        )
        self.image_channels = image_channels

    def forward(
        self,
        x: Float[Tensor, "rows c h w"],
        c_noise: Float[Tensor, " rows"],
        heads: Int[Tensor, " heads"] | None = None,
    ) -> Float[Tensor, "rows outputs h w"]:
        """The outputs of the given heads one after the other, of all heads if none are given."""
        features = self.features(x, c_noise, None)
        chosen = slice(None) if heads is None else heads
        weight, bias = (
            whole.unflatten(0, (-1, self.image_channels))[chosen].flatten(0, 1) for whole in self.conv_out.parameters()
        )
        return F.conv2d(features, weight, bias, padding=1)
