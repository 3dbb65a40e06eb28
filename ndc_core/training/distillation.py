"""Distillation: a network with class heads learns a conditional denoiser's output for every class."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from ndc_core.models.class_heads import HeadsDenoiser
from ndc_core.models.denoiser import Denoiser
from ndc_core.models.execution import placed_for_training
from ndc_core.models.forward_passes import Ask, Inputs, Task, answer
from ndc_core.space import pixels_to_model
from ndc_core.training.augmentation import AUGMENTATIONS
from ndc_core.training.denoiser import DenoisingSpec, draw_sigma, loss_weight
from ndc_core.training.fitting import ONE_CPU, Fitting, Machine, TrainingProgress

ROWS_OF_A_PASS = {"cpu": 256, "cuda": 2048}  # of the teacher, at most


@dataclass(frozen=True)
class DistillationSpec(DenoisingSpec):
    """How to distil. A batch asks for at most `classes` classes, drawn anew each time, so that its cost does not grow
    with their number.

    The teacher answers one batch for every `reuse` steps; a step takes one of its last `kept` answers. A teacher is
    evaluated once for each class, which costs more than a step of the student.
    """

    steps: int = 3000
    max_seconds: float | None = 60.0
    batch: int = 32
    learning_rate: float = 4e-3
    classes: int = 16
    reuse: int = 8
    kept: int = 64


@dataclass(frozen=True)
class Answer:
    """The teacher's outputs for noisy images: for some classes, and last the one without a class."""

    z: Float[Tensor, "b c h w"]
    sigma_model: Float[Tensor, " b"]
    heads: Int[Tensor, " heads"]
    outputs: Float[Tensor, "b heads c h w"]


def distil(
    teacher: Denoiser,
    student: HeadsDenoiser,
    images: UInt8[Tensor, "n c h w"],
    *,
    knows_no_label: bool,
    spec: DistillationSpec,
    machine: Machine = ONE_CPU,
    state: dict[str, Any] | None = None,
    on_step: Callable[[TrainingProgress], None] = lambda progress: None,
    watch: Callable[[Fitting[HeadsDenoiser]], None] = lambda fitting: None,
) -> HeadsDenoiser:
    """The student, taught on noisy versions of the images; the teacher is on the machine already.

    Its last head learns the teacher without a label, or the mean over classes if not `knows_no_label`. Distillation
    resumes from `state`, of `Fitting`: on a CPU the result has the same bits as an uninterrupted one.

    Raises:
        ValueError: an output of the teacher is not finite.
        DivergedError: the loss is not finite any more.
    """
    answers = Answers(teacher, images, knows_no_label=knows_no_label, spec=spec, machine=machine)
    generator = machine.generator(spec.seed)
    placed = placed_for_training(student, device=machine.device, channels_last=machine.channels_last)
    fitting = Fitting(placed, spec=spec, generator=generator, machine=machine)
    if state:
        fitting.resume(state)

    def batch_loss() -> Float[Tensor, ""]:
        lesson = answers.for_step(fitting.step, generator)
        with machine.mixed():
            return distillation_loss(placed, lesson)

    return fitting.run(batch_loss, on_step=on_step, watch=watch).to("cpu")


class Answers:
    """The teacher's answers by number. Each is a function of the seed and of its number, so a resumed distillation asks
    again for what it needs, and no answers are stored on disk."""

    def __init__(
        self,
        teacher: Denoiser,
        images: UInt8[Tensor, "n c h w"],
        *,
        knows_no_label: bool,
        spec: DistillationSpec,
        machine: Machine,
    ) -> None:
        self.teacher, self.images, self.knows_no_label = teacher, images, knows_no_label
        self.spec, self.machine = spec, machine
        self.recent: dict[int, Answer] = {}

    def for_step(self, step: int, generator: torch.Generator) -> Answer:
        """One of the last answers; every few steps there is a new one."""
        newest = step // self.spec.reuse
        oldest = max(0, newest - self.spec.kept + 1)
        back = torch.randint(newest - oldest + 1, (), generator=generator, device=generator.device)
        number = newest - int(back)
        if number not in self.recent:
            self.recent = {known: given for known, given in self.recent.items() if known >= oldest}
            self.recent[number] = self.ask(number)
        return self.recent[number]

    def ask(self, number: int) -> Answer:
        """The teacher's outputs at noisy images, all images for all classes in full passes.

        Raises:
            ValueError: an output is not finite.
        """
        seed = int(np.random.SeedSequence([self.spec.seed, number]).generate_state(1, np.uint64)[0])
        generator, device = self.machine.generator(seed), torch.device(self.machine.device)
        spec, teacher = self.spec, self.teacher
        batch = torch.randint(len(self.images), (spec.batch,), generator=generator, device=device)
        clean = pixels_to_model(self.images[batch.to(self.images.device)].to(device) / 255.0)
        clean = AUGMENTATIONS[spec.augment](clean, generator, share=spec.augment_share)
        sigma = draw_sigma(len(clean), generator, spec)
        z = clean + torch.randn(clean.shape, generator=generator, device=device) * sigma.view(-1, 1, 1, 1)
        classes = torch.randperm(teacher.num_classes, generator=generator, device=device)[: spec.classes]
        labels = torch.eye(teacher.num_classes, device=device)[classes]
        if self.knows_no_label:
            labels = torch.cat([labels, torch.zeros_like(labels[:1])])
        outputs = asked_in_full_passes(teacher, z, sigma, labels)
        if not self.knows_no_label:
            outputs = torch.cat([outputs, outputs.mean(dim=1, keepdim=True)], dim=1)
        if not outputs.isfinite().all():
            raise ValueError(
                "the teacher's output is not finite: nothing can be learned from it; convert or train it again"
            )
        return Answer(z, sigma, torch.cat([classes, classes.new_tensor([teacher.num_classes])]), outputs)


def asked_in_full_passes(
    teacher: Denoiser,
    z: Float[Tensor, "b c h w"],
    sigma_model: Float[Tensor, " b"],
    labels: Float[Tensor, "labels classes"],
) -> Float[Tensor, "b labels c h w"]:
    """The teacher's outputs for every image with each label, in as few passes as possible, all of one size."""
    rows = len(z) * len(labels)
    passes = -(-rows // ROWS_OF_A_PASS[z.device.type])

    def inputs(window: slice) -> Inputs:
        row = torch.arange(window.start, window.stop, device=z.device)
        return z[row // len(labels)], sigma_model[row // len(labels)], labels[row % len(labels)]

    def task() -> Task[Tensor]:
        return (yield Ask("forward", teacher, rows, inputs, lambda outputs, window: outputs))

    outputs = answer(task(), rows_per_pass=-(-rows // passes), device=z.device)
    return outputs.clone().unflatten(0, (len(z), len(labels)))  # a copy outside of inference mode, for autograd


def distillation_loss(student: HeadsDenoiser, answer: Answer) -> Float[Tensor, ""]:
    """EDM's weighted loss (Karras et al. 2022, Eq. 8), with the teacher's outputs in place of clean images."""
    error = student.unclipped_heads(answer.z, answer.sigma_model, answer.heads) - answer.outputs
    weight = loss_weight(answer.sigma_model, sigma_data=student.sigma_data)
    return (weight.view(-1, 1, 1, 1, 1) * error.square()).mean()
