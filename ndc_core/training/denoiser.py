"""EDM training of a denoiser: class-conditional, and unconditional through label dropout."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from ndc_core.checkpoints.denoisers import DENOISERS, save_denoiser
from ndc_core.models.denoiser import EDMDenoiser
from ndc_core.models.execution import placed_for_training
from ndc_core.space import pixels_to_model
from ndc_core.training.architectures import network_of
from ndc_core.training.augmentation import AUGMENTATIONS
from ndc_core.training.fitting import ONE_CPU, FitSpec, Fitting, Machine, TrainingProgress

Unclipped = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class DenoisingSpec(FitSpec):
    """A denoiser's width, and at which noise levels, in model space, to fit it."""

    channels: int = 32
    log_sigma_mean: float = -0.4
    log_sigma_std: float = 0.8


@dataclass(frozen=True)
class TrainingSpec(DenoisingSpec):
    """How to train on labelled images, a share of which loses its label."""

    label_dropout: float = 0.1
    weight_decay: float = 0.0
    average_memory: float = 0.999


def draw_sigma(count: int, generator: torch.Generator, spec: DenoisingSpec) -> Float[Tensor, " b"]:
    """Log-normal noise levels (Karras et al. 2022, Table 1), on the generator's device."""
    normal = torch.randn(count, generator=generator, device=generator.device)
    return torch.exp(normal * spec.log_sigma_std + spec.log_sigma_mean)


def loss_weight(sigma_model: Float[Tensor, " b"], *, sigma_data: float) -> Float[Tensor, " b"]:
    """lambda(sigma) of EDM's loss (Karras et al. 2022, Table 1)."""
    return (sigma_model**2 + sigma_data**2) / (sigma_model * sigma_data) ** 2


def edm_loss(
    unclipped: Unclipped,
    clean: Float[Tensor, "b c h w"],
    label: Float[Tensor, "b classes"],
    generator: torch.Generator,
    spec: TrainingSpec,
    *,
    sigma_data: float,
) -> Float[Tensor, ""]:
    """EDM's weighted denoising loss (Karras et al. 2022, Eq. 8) at log-normal noise levels, before clipping."""
    sigma = draw_sigma(len(clean), generator, spec)
    kept = torch.rand(len(clean), 1, generator=generator, device=clean.device) >= spec.label_dropout
    noise = torch.randn(clean.shape, generator=generator, device=clean.device) * sigma.view(-1, 1, 1, 1)
    error = unclipped(clean + noise, sigma, label * kept) - clean
    weight = loss_weight(sigma, sigma_data=sigma_data)
    return (weight.view(-1, 1, 1, 1) * error.square()).mean()


def new_denoiser(
    network: str,
    *,
    image_shape: tuple[int, int, int],
    num_classes: int,
    spec: TrainingSpec,
    options: Mapping[str, Any],
) -> EDMDenoiser:
    """A denoiser before its training, as the seed makes it.

    Raises:
        ValueError: there is no such network, or it does not fit the images.
    """
    torch.manual_seed(spec.seed)  # the network's initialisation has no generator argument
    built = network_of(
        network, image_shape=image_shape, num_classes=num_classes, channels=spec.channels, options=options
    )
    return DENOISERS.get(network, EDMDenoiser)(built, image_shape=image_shape, num_classes=num_classes)


def train_denoiser(
    images: UInt8[Tensor, "n c h w"],
    labels: Int[Tensor, " n"],
    *,
    num_classes: int,
    spec: TrainingSpec,
    network: str = "small",
    options: Mapping[str, Any] | None = None,
    machine: Machine = ONE_CPU,
    state: dict[str, Any] | None = None,
    on_step: Callable[[TrainingProgress], None] = lambda progress: None,
    watch: Callable[[Fitting[EDMDenoiser]], None] = lambda fitting: None,
) -> EDMDenoiser:
    """Trains a denoiser around one of our networks; returns the average of its weights.

    Training resumes from `state`, of `Fitting`: on a CPU the result has the same bits as an uninterrupted training.

    Raises:
        ValueError: the network does not fit the images.
        DivergedError: the loss is not finite any more.
    """
    image_shape = (int(images.shape[1]), int(images.shape[2]), int(images.shape[3]))
    fresh = new_denoiser(network, image_shape=image_shape, num_classes=num_classes, spec=spec, options=options or {})
    generator = machine.generator(spec.seed)
    denoiser = placed_for_training(fresh, device=machine.device, channels_last=machine.channels_last)
    unclipped = torch.compile(denoiser.unclipped) if machine.compile else denoiser.unclipped
    one_hot = F.one_hot(labels.long(), num_classes).float()

    def batch_loss() -> Float[Tensor, ""]:
        batch = torch.randint(len(images), (spec.batch,), generator=generator, device=machine.device).to(images.device)
        clean = pixels_to_model(images[batch].to(machine.device) / 255.0)
        clean = AUGMENTATIONS[spec.augment](clean, generator, share=spec.augment_share)
        with machine.mixed():
            label = one_hot[batch].to(machine.device)
            return edm_loss(unclipped, clean, label, generator, spec, sigma_data=denoiser.sigma_data)

    fitting = Fitting(
        denoiser,
        spec=spec,
        generator=generator,
        machine=machine,
        weight_decay=spec.weight_decay,
        average_memory=spec.average_memory,
    )
    if state:
        fitting.resume(state)
    return fitting.run(batch_loss, on_step=on_step, watch=watch).to("cpu")


def save_trained(
    folder: Path, denoiser: EDMDenoiser, *, spec: DenoisingSpec, notes: dict[str, object], network: str = "small"
) -> None:
    """Writes a denoiser around one of the small networks as a checkpoint."""
    arguments = {
        "image_channels": denoiser.image_shape[0],
        "num_classes": denoiser.num_classes,
        "channels": spec.channels,
    }
    save_denoiser(folder, denoiser, network=network, arguments=arguments, notes={"training": asdict(spec), **notes})
