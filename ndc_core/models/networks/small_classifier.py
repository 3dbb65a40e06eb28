"""The embedded image classifier: a few convolutions, fast on a CPU, without batch statistics (rule S1)."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ndc_core.models.networks.small import group_norm


class Block(nn.Module):
    """Two 3x3 convolutions with a skip connection."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm0, self.norm1 = group_norm(channels), group_norm(channels)
        self.conv0 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "rows c h w"]) -> Float[Tensor, "rows c h w"]:
        return x + self.conv1(F.silu(self.norm1(self.conv0(F.silu(self.norm0(x))))))


class SmallClassifier(nn.Module):
    """A block at full and one at half resolution, then a linear layer over averages of two by two pixels; height and
    width must be multiples of 4."""

    def __init__(self, *, image_shape: tuple[int, int, int], num_classes: int, channels: int) -> None:
        super().__init__()
        count, height, width = image_shape
        self.conv_in = nn.Conv2d(count, channels, 3, padding=1)
        self.block_full = Block(channels)
        self.down = nn.Conv2d(channels, 2 * channels, 2, stride=2)
        self.block_half = Block(2 * channels)
        self.norm_out = group_norm(2 * channels)
        self.out = nn.Linear(2 * channels * (height // 4) * (width // 4), num_classes)

    def forward(self, x: Float[Tensor, "rows c h w"]) -> Float[Tensor, "rows classes"]:
        features = F.silu(self.norm_out(self.block_half(self.down(self.block_full(self.conv_in(x))))))
        scores: Tensor = self.out(F.avg_pool2d(features, 2).flatten(1))
        return scores
