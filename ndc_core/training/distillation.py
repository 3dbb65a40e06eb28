"""Distillation: a network with class heads learns what a conditional denoiser says of every class."""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from ndc_core.models.class_heads import HeadsDenoiser
from ndc_core.models.denoiser import Denoiser, EDMDenoiser
from ndc_core.models.networks.small import SmallHeadsUNet, SmallUNet
from ndc_core.space import pixels_to_model
from ndc_core.training.augmentation import jitter
from ndc_core.training.denoiser import DenoisingSpec, draw_sigma, loss_weight
from ndc_core.training.fitting import Fitting, TrainingProgress


@dataclass(frozen=True)
class DistillationSpec(DenoisingSpec):
    """How to distil. A batch asks for at most `classes` classes, drawn anew each time, so that its cost does not grow
    with their number.

    The teacher answers one batch for every `reuse` steps; a step takes one of its last `kept` answers. A teacher is
    evaluated once for each class, which costs more than a step of the student.
    """

    steps: int = 3000
    max_seconds: float = 60.0
    batch: int = 32
    learning_rate: float = 4e-3
    classes: int = 16
    reuse: int = 8
    kept: int = 64


@dataclass(frozen=True)
class Answer:
    """What the teacher makes of noisy images: its outputs for some classes, and last the one without a class."""

    z: Float[Tensor, "b c h w"]
    sigma_model: Float[Tensor, " b"]
    heads: Int[Tensor, " heads"]
    outputs: Float[Tensor, "b heads c h w"]


def distil(
    teacher: Denoiser,
    images: UInt8[Tensor, "n c h w"],
    *,
    knows_no_label: bool,
    spec: DistillationSpec,
    on_step: Callable[[TrainingProgress], None] = lambda progress: None,
) -> HeadsDenoiser:
    """A small network with heads for the teacher's classes, taught on noisy versions of the images.

    Its last head learns the teacher without a label; where the teacher `knows_no_label` not, the mean over classes.
    """
    torch.manual_seed(spec.seed)  # the network's initialisation has no generator argument
    classes, image_shape = teacher.num_classes, teacher.image_shape
    network = SmallHeadsUNet(image_channels=image_shape[0], num_classes=classes, channels=spec.channels)
    if isinstance(teacher, EDMDenoiser):
        start_from(network, teacher.network)
    student = HeadsDenoiser(network, image_shape=image_shape, num_classes=classes)
    generator = torch.Generator().manual_seed(spec.seed)
    answers = answers_of(teacher, images, generator, knows_no_label=knows_no_label, spec=spec)
    fitting = Fitting(student, spec=spec, generator=generator)
    return fitting.run(lambda: distillation_loss(student, next(answers)), on_step=on_step)


def answers_of(
    teacher: Denoiser,
    images: UInt8[Tensor, "n c h w"],
    generator: torch.Generator,
    *,
    knows_no_label: bool,
    spec: DistillationSpec,
) -> Iterator[Answer]:
    """An endless lesson: after each new answer, some of the last ones again."""
    recent: deque[Answer] = deque(maxlen=spec.kept)
    while True:
        batch = images[torch.randint(len(images), (spec.batch,), generator=generator)]
        clean = jitter(pixels_to_model(batch / 255.0), generator, share=spec.augment_share)
        recent.append(ask(teacher, clean, generator, knows_no_label=knows_no_label, spec=spec))
        for _ in range(spec.reuse):
            yield recent[int(torch.randint(len(recent), (), generator=generator))]


def start_from(network: SmallHeadsUNet, teacher: nn.Module) -> None:
    """Takes over the weights of a small network of the same width: every head starts as the teacher without a label."""
    if not isinstance(teacher, SmallUNet):
        return
    known, own = teacher.state_dict(), network.state_dict()
    del known["label.weight"]
    for name in ("conv_out.weight", "conv_out.bias"):
        known[name] = torch.cat([known[name]] * (len(own[name]) // len(known[name])))
    if all(known[name].shape == weight.shape for name, weight in own.items()):
        network.load_state_dict(known)


@torch.no_grad()
def ask(
    teacher: Denoiser,
    clean: Float[Tensor, "b c h w"],
    generator: torch.Generator,
    *,
    knows_no_label: bool,
    spec: DistillationSpec,
) -> Answer:
    """The teacher's outputs at noisy images, one class after the other: as many rows at a time as there are images.

    Raises:
        ValueError: an output is not finite.
    """
    sigma = draw_sigma(len(clean), generator, spec)
    z = clean + torch.randn(clean.shape, generator=generator) * sigma.view(-1, 1, 1, 1)
    classes = torch.randperm(teacher.num_classes, generator=generator)[: spec.classes]
    null = torch.zeros(1, teacher.num_classes)
    labels = [*torch.eye(teacher.num_classes)[classes], *(null if knows_no_label else ())]
    outputs = torch.stack([teacher(z, sigma, label.expand(len(z), -1)) for label in labels], dim=1)
    if not knows_no_label:
        outputs = torch.cat([outputs, outputs.mean(dim=1, keepdim=True)], dim=1)
    if not outputs.isfinite().all():
        raise ValueError(
            "the teacher's output is not finite: nothing can be learned from it; convert or train it again"
        )
    return Answer(z, sigma, torch.cat([classes, torch.tensor([teacher.num_classes])]), outputs)


def distillation_loss(student: HeadsDenoiser, answer: Answer) -> Float[Tensor, ""]:
    """EDM's weighted loss (Karras et al. 2022, Eq. 8), with the teacher's outputs in place of clean images."""
    error = student.unclipped_heads(answer.z, answer.sigma_model, answer.heads) - answer.outputs
    weight = loss_weight(answer.sigma_model, sigma_data=student.sigma_data)
    return (weight.view(-1, 1, 1, 1, 1) * error.square()).mean()
