"""Training of the embedded image classifier, on clean images or on noisy ones (Cohen et al. 2019)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from ndc_core.models.image_classifier import ImageNetwork
from ndc_core.models.networks.small_classifier import SmallClassifier
from ndc_core.space import pixels_to_model, sigma_to_model
from ndc_core.training.augmentation import jitter
from ndc_core.training.fitting import FitSpec, Fitting, TrainingProgress


@dataclass(frozen=True)
class ClassifierSpec(FitSpec):
    """How to train on labelled images. Each gets Gaussian noise of one of these levels, for pixels in [0, 1]."""

    steps: int = 600
    max_seconds: float = 40.0
    channels: int = 32
    noise: tuple[float, ...] = (0.0,)

    def __post_init__(self) -> None:
        if not self.noise or min(self.noise) < 0:
            raise ValueError(f"noise to train with must not be negative, and it is {list(self.noise)}")


def train_classifier(
    images: UInt8[Tensor, "n c h w"],
    labels: Int[Tensor, " n"],
    *,
    num_classes: int,
    spec: ClassifierSpec,
    on_step: Callable[[TrainingProgress], None] = lambda progress: None,
) -> ImageNetwork:
    """Trains the small classifier with the cross-entropy loss; returns the average of its weights.

    Raises:
        ValueError: images whose sides are no multiples of 4.
    """
    torch.manual_seed(spec.seed)  # the network's initialisation has no generator argument
    generator = torch.Generator().manual_seed(spec.seed)
    channels, height, width = (int(size) for size in images.shape[1:])
    if height % 4 or width % 4:
        raise ValueError(f"the small classifier takes images whose sides are multiples of 4, not {height} x {width}")
    shape = (channels, height, width)
    network = SmallClassifier(image_shape=shape, num_classes=num_classes, channels=spec.channels)
    half = [0.5] * channels
    classifier = ImageNetwork(network, image_shape=shape, num_classes=num_classes, mean=half, std=half)
    clean, levels = pixels_to_model(images / 255.0), torch.tensor([sigma_to_model(sigma) for sigma in spec.noise])

    def batch_loss() -> Float[Tensor, ""]:
        batch = torch.randint(len(clean), (spec.batch,), generator=generator)
        z = jitter(clean[batch], generator, share=spec.augment_share)
        sigma = levels[torch.randint(len(levels), (spec.batch, 1, 1, 1), generator=generator)]
        noisy = z + sigma * torch.randn(z.shape, generator=generator)
        return F.cross_entropy(classifier(noisy), labels[batch].long())

    return Fitting(classifier, spec=spec, generator=generator).run(batch_loss, on_step=on_step)
