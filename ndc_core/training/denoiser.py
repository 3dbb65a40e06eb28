"""EDM training of the embedded denoiser: class-conditional, and unconditional through label dropout."""

import copy
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from ndc_core.checkpoints.denoisers import DENOISERS, NETWORKS, save_denoiser
from ndc_core.models.denoiser import EDMDenoiser
from ndc_core.space import pixels_to_model

Trained = TypeVar("Trained", bound=nn.Module)


@dataclass(frozen=True)
class FitSpec:
    """How to fit a small network. Ends after `steps`, or at `max_seconds` on a slow machine: the learning rate follows
    whichever is nearer, so that it always ends at zero. The result is reproducible if the steps end it."""

    steps: int = 2000
    max_seconds: float = 100.0
    batch: int = 192
    learning_rate: float = 2e-3
    channels: int = 32
    augment_share: float = 0.5
    seed: int = 0


@dataclass(frozen=True)
class DenoisingSpec(FitSpec):
    """At which noise levels, in model space, to fit a denoiser."""

    log_sigma_mean: float = -0.4
    log_sigma_std: float = 0.8


@dataclass(frozen=True)
class TrainingSpec(DenoisingSpec):
    """How to train on labelled images, of which a share loses its label."""

    label_dropout: float = 0.1


@dataclass(frozen=True)
class TrainingProgress:
    step: int
    share_done: float
    loss: float
    seconds: float


def jitter(images: Float[Tensor, "b c h w"], generator: torch.Generator, *, share: float) -> Float[Tensor, "b c h w"]:
    """Small random rotations, scalings, shears and shifts of a share of the images; outside is black (-1)."""
    count = len(images)

    def normal(std: float) -> Tensor:
        return torch.randn(count, generator=generator) * std

    angle, scale = normal(0.1), 1 + normal(0.06)
    matrix = torch.zeros(count, 2, 3)
    matrix[:, 0, 0] = angle.cos() * scale
    matrix[:, 0, 1] = -angle.sin() * scale + normal(0.08)
    matrix[:, 1, 0] = angle.sin() * scale
    matrix[:, 1, 1] = angle.cos() * scale
    matrix[:, 0, 2], matrix[:, 1, 2] = normal(0.1), normal(0.1)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    moved = F.grid_sample(images + 1, grid, align_corners=False) - 1
    chosen = torch.rand(count, 1, 1, 1, generator=generator) < share
    return torch.where(chosen, moved, images)


def draw_sigma(count: int, generator: torch.Generator, spec: DenoisingSpec) -> Float[Tensor, " b"]:
    """Log-normal noise levels (Karras et al. 2022, Table 1)."""
    return torch.exp(torch.randn(count, generator=generator) * spec.log_sigma_std + spec.log_sigma_mean)


def loss_weight(sigma_model: Float[Tensor, " b"], *, sigma_data: float) -> Float[Tensor, " b"]:
    """lambda(sigma) of EDM's loss (Karras et al. 2022, Table 1)."""
    return (sigma_model**2 + sigma_data**2) / (sigma_model * sigma_data) ** 2


def edm_loss(
    denoiser: EDMDenoiser,
    clean: Float[Tensor, "b c h w"],
    label: Float[Tensor, "b classes"],
    generator: torch.Generator,
    spec: TrainingSpec,
) -> Float[Tensor, ""]:
    """EDM's weighted denoising loss (Karras et al. 2022, Eq. 8) at log-normal noise levels, before clipping."""
    sigma = draw_sigma(len(clean), generator, spec)
    kept = torch.rand(len(clean), 1, generator=generator) >= spec.label_dropout
    noise = torch.randn(clean.shape, generator=generator) * sigma.view(-1, 1, 1, 1)
    error = denoiser.unclipped(clean + noise, sigma, label * kept) - clean
    weight = loss_weight(sigma, sigma_data=denoiser.sigma_data)
    return (weight.view(-1, 1, 1, 1) * error.square()).mean()


def train_denoiser(
    images: UInt8[Tensor, "n c h w"],
    labels: Int[Tensor, " n"],
    *,
    num_classes: int,
    spec: TrainingSpec,
    network: str = "small",
    on_step: Callable[[TrainingProgress], None] = lambda progress: None,
) -> EDMDenoiser:
    """Trains a small denoiser, its network one of those in `small`; returns the average of its weights."""
    torch.manual_seed(spec.seed)  # the network's initialisation has no generator argument
    generator = torch.Generator().manual_seed(spec.seed)
    image_shape = (int(images.shape[1]), int(images.shape[2]), int(images.shape[3]))
    built = NETWORKS[network](image_channels=image_shape[0], num_classes=num_classes, channels=spec.channels)
    denoiser = DENOISERS.get(network, EDMDenoiser)(built, image_shape=image_shape, num_classes=num_classes)
    clean, one_hot = pixels_to_model(images / 255.0), F.one_hot(labels.long(), num_classes).float()

    def batch_loss() -> Float[Tensor, ""]:
        batch = torch.randint(len(clean), (spec.batch,), generator=generator)
        jittered = jitter(clean[batch], generator, share=spec.augment_share)
        return edm_loss(denoiser, jittered, one_hot[batch], generator, spec)

    return fit(denoiser, batch_loss, spec=spec, on_step=on_step)


def fit(
    network: Trained,
    batch_loss: Callable[[], Float[Tensor, ""]],
    *,
    spec: FitSpec,
    on_step: Callable[[TrainingProgress], None],
) -> Trained:
    """Minimises the loss of one batch after another; returns the exponential moving average of the weights."""
    average = copy.deepcopy(network)
    optimizer = torch.optim.AdamW(network.parameters(), lr=spec.learning_rate, betas=(0.9, 0.99), weight_decay=0)
    started, mean_loss, share_done, step = time.monotonic(), math.nan, 0.0, 0
    while share_done < 1:
        for group in optimizer.param_groups:
            warm_up = min(1.0, (step + 1) / 100)
            group["lr"] = spec.learning_rate * warm_up * (1 + math.cos(math.pi * share_done)) / 2
        loss = batch_loss()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        step += 1
        update_average(average, network, decay=min(0.999, step / (step + 10)))
        mean_loss = loss.item() if step == 1 else 0.98 * mean_loss + 0.02 * loss.item()
        seconds = time.monotonic() - started
        share_done = max(step / spec.steps, seconds / spec.max_seconds)
        on_step(TrainingProgress(step, min(1.0, share_done), mean_loss, seconds))
    return average.eval().requires_grad_(False)


@torch.no_grad()
def update_average(average: nn.Module, current: nn.Module, *, decay: float) -> None:
    for slow, fast in zip(average.parameters(), current.parameters(), strict=True):
        slow.lerp_(fast, 1 - decay)


def save_trained(
    folder: Path, denoiser: EDMDenoiser, *, spec: FitSpec, notes: dict[str, object], network: str = "small"
) -> None:
    """Writes a denoiser around one of the small networks as a checkpoint."""
    arguments = {
        "image_channels": denoiser.image_shape[0],
        "num_classes": denoiser.num_classes,
        "channels": spec.channels,
    }
    save_denoiser(folder, denoiser, network=network, arguments=arguments, notes={"training": asdict(spec), **notes})
