"""The contract of a plain classifier of images."""

from typing import Protocol

from jaxtyping import Float
from torch import Tensor


class ImageClassifier(Protocol):
    """Scores of classes for images of model space; a function of each image alone."""

    image_shape: tuple[int, int, int]
    num_classes: int

    def __call__(self, z: Float[Tensor, "rows c h w"]) -> Float[Tensor, "rows classes"]: ...
