"""Plain classifiers of images, which baselines use."""

from collections.abc import Sequence
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ndc_core.models.replay import Launch, directly
from ndc_core.space import model_to_pixels


class ImageClassifier(Protocol):
    """Scores of classes for images of model space; a function of each image alone (rule S1)."""

    image_shape: tuple[int, int, int]
    num_classes: int

    def __call__(self, z: Float[Tensor, "rows c h w"]) -> Float[Tensor, "rows classes"]: ...


class ImageNetwork(nn.Module):
    """A network that was trained on pixels in [0, 1] minus `mean`, divided by `std`: one number for each channel. The
    network runs in `network_dtype`, the rest in single precision. `launch` makes the calls."""

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        *,
        image_shape: tuple[int, int, int],
        num_classes: int,
        mean: Sequence[float],
        std: Sequence[float],
        network_dtype: torch.dtype = torch.float32,
        launch: Launch = directly,
    ) -> None:
        super().__init__()
        self.network = network
        self.launch = launch
        self.network_dtype = network_dtype
        self.image_shape = image_shape
        self.num_classes = num_classes
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32).view(-1, 1, 1))

    def forward(self, z: Float[Tensor, "rows c h w"]) -> Float[Tensor, "rows classes"]:
        return self.launch(self._scores, z)

    def _scores(self, z: Float[Tensor, "rows c h w"]) -> Float[Tensor, "rows classes"]:
        pixels = (model_to_pixels(z) - self.mean) / self.std
        scores: Tensor = self.network(pixels.to(self.network_dtype))
        return scores.float()
