"""Training of the embedded image classifier, on clean images or on noisy ones (Cohen et al. 2019)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from ndc_core.models.execution import placed_for_training
from ndc_core.models.image_classifier import ImageNetwork
from ndc_core.models.networks.small_classifier import SmallClassifier
from ndc_core.space import pixels_to_model, sigma_to_model
from ndc_core.training.augmentation import AUGMENTATIONS
from ndc_core.training.fitting import ONE_CPU, FitSpec, Fitting, Machine, TrainingProgress


@dataclass(frozen=True)
class ClassifierSpec(FitSpec):
    """How to train on labelled images. Each gets Gaussian noise of one of these levels, for pixels in [0, 1]."""

    steps: int = 600
    max_seconds: float = 40.0
    channels: int = 32
    noise: tuple[float, ...] = (0.0,)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.noise or min(self.noise) < 0:
            raise ValueError(f"noise to train with must not be negative, and it is {list(self.noise)}")


def train_classifier(
    images: UInt8[Tensor, "n c h w"],
    labels: Int[Tensor, " n"],
    *,
    num_classes: int,
    spec: ClassifierSpec,
    machine: Machine = ONE_CPU,
    on_step: Callable[[TrainingProgress], None] = lambda progress: None,
) -> ImageNetwork:
    """Trains the small classifier with the cross-entropy loss; returns the average of its weights.

    Raises:
        ValueError: images whose sides are not multiples of 4.
    """
    torch.manual_seed(spec.seed)  # the network's initialisation has no generator argument
    generator = machine.generator(spec.seed)
    channels, height, width = (int(size) for size in images.shape[1:])
    if height % 4 or width % 4:
        raise ValueError(f"the small classifier takes images whose sides are multiples of 4, not {height} x {width}")
    shape = (channels, height, width)
    network = SmallClassifier(image_shape=shape, num_classes=num_classes, channels=spec.channels)
    half = [0.5] * channels
    fresh = ImageNetwork(network, image_shape=shape, num_classes=num_classes, mean=half, std=half)
    classifier = placed_for_training(fresh, device=machine.device, channels_last=machine.channels_last)
    device = torch.device(machine.device)
    images, labels = images.to(device), labels.long().to(device)
    levels = torch.tensor([sigma_to_model(sigma) for sigma in spec.noise], device=device)

    def batch_loss() -> Float[Tensor, ""]:
        batch = torch.randint(len(images), (spec.batch,), generator=generator, device=device)
        clean = pixels_to_model(images[batch] / 255.0)
        z = AUGMENTATIONS[spec.augment](clean, generator, share=spec.augment_share)
        sigma = levels[torch.randint(len(levels), (spec.batch, 1, 1, 1), generator=generator, device=device)]
        noisy = z + sigma * torch.randn(z.shape, generator=generator, device=device)
        with machine.mixed():
            return F.cross_entropy(classifier(noisy), labels[batch])

    fitting = Fitting(classifier, spec=spec, generator=generator, machine=machine)
    return fitting.run(batch_loss, on_step=on_step).to("cpu")
