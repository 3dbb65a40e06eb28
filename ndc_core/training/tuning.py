"""Tuning: a diffusion classifier with class heads learns to classify, its scores trained like any classifier's."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from ndc_core.classifiers.diffusion import DiffusionClassifier
from ndc_core.classifiers.losses import Path, squared_errors_of_every_class
from ndc_core.models.class_heads import HeadsDenoiser
from ndc_core.models.execution import placed_for_training
from ndc_core.noise.grid import build_grid
from ndc_core.space import pixels_to_model, sigma_to_model
from ndc_core.training.augmentation import AUGMENTATIONS
from ndc_core.training.denoiser import loss_weight
from ndc_core.training.fitting import ONE_CPU, FitSpec, Fitting, Machine, TrainingProgress

LEVELS_OF_A_STEP = 2
LEVELS_OF_A_JUDGEMENT = 4
PACE_OF_TEMPERATURE = 100.0


@dataclass(frozen=True)
class TuningSpec(FitSpec):
    """How to tune. A share of the images is held out, `held_out_most` at most; every `steps_to_judge` steps they judge
    the average of the weights, and tuning ends when the best judgement is `patience` judgements old."""

    steps: int = 3000
    max_seconds: float | None = 150.0
    batch: int = 48
    learning_rate: float = 5e-4
    augment: str = "none"
    augment_share: float = 0.5
    denoising_share: float = 0.1
    held_out_share: float = 0.1
    held_out_most: int = 1000
    steps_to_judge: int = 100
    patience: int = 8


class Scorer(nn.Module):
    """Heads, and the temperature by which their scores become log-probabilities."""

    def __init__(self, denoiser: HeadsDenoiser) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.log_temperature = nn.Parameter(torch.zeros(()))


@dataclass(frozen=True)
class Judgement:
    step: int
    loss: float
    accuracy: float


@dataclass(frozen=True)
class Tuned:
    """The heads that held-out images judged best, and all judgements; the first is of the heads before tuning."""

    denoiser: HeadsDenoiser
    judgements: tuple[Judgement, ...]


def estimate_without_label(
    denoiser: HeadsDenoiser, z: Float[Tensor, "b c h w"], tau_model: float
) -> Float[Tensor, "b c h w"]:
    last = torch.tensor([denoiser.num_classes], device=z.device)
    sigma = torch.full((len(z),), tau_model, device=z.device)
    return denoiser.clipped(denoiser.unclipped_heads(z, sigma, last)[:, 0])


def sampled_scores(
    classifier: DiffusionClassifier,
    z: Float[Tensor, "b c h w"],
    clean: Float[Tensor, "b c h w"],
    generator: torch.Generator,
    *,
    tau_model: float,
    levels: int,
) -> Float[Tensor, "b classes"]:
    """The classifier's scores from some levels of its grid, drawn with equal chance: an unbiased estimate of the sum
    over all, unless losses are capped. Differentiable in the weights and in `clean`."""
    denoiser = classifier.denoiser
    assert isinstance(denoiser, HeadsDenoiser)
    total = len(build_grid(classifier.grid, tau_model=classifier.grid_start(tau_model)).level)
    drawn = torch.randint(total, (levels,), generator=generator, device=z.device).cpu().numpy()
    noise = torch.randn(len(z), levels, *z.shape[1:], generator=generator, device=z.device)
    unused = z.new_zeros(1).expand(len(z), total, *z.shape[1:])
    whole, weight = classifier.path(z, clean, classifier.grid, unused, tau_model=tau_model)
    path = Path(
        whole.start, noise, whole.level[drawn], whole.input_scale[drawn], whole.anchors, whole.anchor_share[:, drawn]
    )
    draw = torch.arange(len(z), device=z.device).repeat_interleave(levels)
    step = torch.arange(levels, device=z.device).repeat(len(z))
    errors = squared_errors_of_every_class(denoiser, path, draw=draw, step=step)[:, 0]
    if classifier.loss_cap is not None:
        errors = errors.clamp(max=classifier.loss_cap * z[0].numel())
    share = torch.as_tensor(weight[0, drawn] * total / levels, device=z.device)
    return -(errors.unflatten(0, (len(z), levels)) * share[:, None]).sum(dim=1)


def denoising_loss(
    denoiser: HeadsDenoiser,
    clean: Float[Tensor, "b c h w"],
    label: Int[Tensor, " b"],
    level: float,
    generator: torch.Generator,
) -> Float[Tensor, ""]:
    """EDM's weighted loss of the right head at one noise level."""
    sigma = torch.full((len(clean),), level, device=clean.device)
    noise = torch.randn(clean.shape, generator=generator, device=clean.device)
    own = denoiser.unclipped(clean + level * noise, sigma, F.one_hot(label, denoiser.num_classes))
    return (loss_weight(sigma, sigma_data=denoiser.sigma_data).view(-1, 1, 1, 1) * (own - clean).square()).mean()


def tune(
    classifier: DiffusionClassifier,
    images: UInt8[Tensor, "n c h w"],
    labels: Int[Tensor, " n"],
    *,
    sigma_pixel: tuple[float, ...],
    spec: TuningSpec,
    machine: Machine = ONE_CPU,
    on_step: Callable[[TrainingProgress], None] = lambda progress: None,
    on_judgement: Callable[[Judgement], None] = lambda judgement: None,
) -> Tuned:
    """Tunes a copy of the classifier's heads for its own formula, grid and weight at these noise levels.

    The loss of a step is the cross-entropy of its sampled scores, times a learned temperature, plus a share of the
    denoising losses of the right head and of the estimate without a label. The result is a denoiser with heads like any
    other: a function of the noisy image votes, so every certificate stays valid.

    Raises:
        ValueError: the denoiser has no class heads, or there are too few images to hold some out.
        DivergedError: the loss is not finite any more.
    """
    if not isinstance(classifier.denoiser, HeadsDenoiser):
        raise ValueError("only a model with class heads can be tuned: distil one first")
    held_out, train = split(len(images), spec)
    scorer = placed_for_training(
        Scorer(copy.deepcopy(classifier.denoiser)).train().requires_grad_(True),
        device=machine.device,
        channels_last=machine.channels_last,
    )
    taus_model = tuple(sigma_to_model(sigma) for sigma in sigma_pixel)
    generator = machine.generator(spec.seed)
    clean = pixels_to_model(images.to(machine.device) / 255.0)
    labels = labels.to(machine.device).long()
    learner = replace(classifier, denoiser=scorer.denoiser, unconditional=None, device=machine.device)

    def batch_loss() -> Float[Tensor, ""]:
        batch = train[torch.randint(len(train), (spec.batch,), generator=generator, device=machine.device).cpu()]
        x = AUGMENTATIONS[spec.augment](clean[batch], generator, share=spec.augment_share)
        tau = taus_model[int(torch.randint(len(taus_model), (), generator=generator, device=machine.device))]
        with machine.mixed():
            return tuning_loss(learner, scorer, x, labels[batch], generator, tau_model=tau, spec=spec)

    jury = Jury(learner, clean[held_out], labels[held_out], taus_model, spec, on_judgement)
    fitting = Fitting(
        scorer, spec=spec, generator=generator, machine=machine, pace={"log_temperature": PACE_OF_TEMPERATURE}
    )
    jury.judge(fitting)
    average = fitting.run(batch_loss, on_step=on_step, watch=jury.watch)
    if jury.judgements[-1].step < fitting.step:
        jury.judge(fitting)
    average.load_state_dict(jury.best)
    return Tuned(average.denoiser.cpu(), tuple(jury.judgements))


def split(images: int, spec: TuningSpec) -> tuple[Int[Tensor, " held"], Int[Tensor, " train"]]:
    """Which images are held out, and which are trained on."""
    order = torch.randperm(images, generator=torch.Generator().manual_seed(spec.seed))
    held = min(round(images * spec.held_out_share), spec.held_out_most)
    if held < 1 or images - held < spec.batch:
        raise ValueError(
            f"{images:,} images are too few to tune on: {held} would be held out, and a batch has {spec.batch}"
        )
    return order[:held], order[held:]


def tuning_loss(
    classifier: DiffusionClassifier,
    scorer: Scorer,
    x: Float[Tensor, "b c h w"],
    label: Int[Tensor, " b"],
    generator: torch.Generator,
    *,
    tau_model: float,
    spec: TuningSpec,
) -> Float[Tensor, ""]:
    """The loss of one batch at one noise level tau: see `tune`."""
    z = x + tau_model * torch.randn(x.shape, generator=generator, device=x.device)
    clean = estimate_without_label(scorer.denoiser, z, tau_model)
    scores = sampled_scores(classifier, z, clean, generator, tau_model=tau_model, levels=LEVELS_OF_A_STEP)
    classified = F.cross_entropy(scores.float() * scorer.log_temperature.exp(), label)
    grid = build_grid(classifier.grid, tau_model=classifier.grid_start(tau_model))
    level = grid.level[int(torch.randint(len(grid.level), (), generator=generator, device=x.device))]
    at_tau = loss_weight(torch.tensor([tau_model]), sigma_data=scorer.denoiser.sigma_data).item()
    denoised = denoising_loss(scorer.denoiser, x, label, float(level), generator)
    return classified + spec.denoising_share * (denoised + at_tau * (clean - x).square().mean())


class Jury:
    """Held-out images, always with the same noise, that judge the average of the weights and keep the best."""

    def __init__(
        self,
        classifier: DiffusionClassifier,
        images: Float[Tensor, "n c h w"],
        labels: Int[Tensor, " n"],
        taus_model: tuple[float, ...],
        spec: TuningSpec,
        on_judgement: Callable[[Judgement], None],
    ) -> None:
        self.classifier, self.images, self.labels, self.taus_model = classifier, images, labels, taus_model
        self.spec, self.on_judgement = spec, on_judgement
        self.judgements: list[Judgement] = []
        self.best: dict[str, Any] = {}

    def watch(self, fitting: Fitting[Scorer]) -> None:
        """Judges when it is time; ends the tuning after `patience` judgements without improvement."""
        if fitting.step - self.judgements[-1].step < self.spec.steps_to_judge:
            return
        self.judge(fitting)
        best = int(np.argmin([judgement.loss for judgement in self.judgements]))
        fitting.ended = len(self.judgements) - 1 - best >= self.spec.patience

    @torch.no_grad()
    def judge(self, fitting: Fitting[Scorer]) -> None:
        scorer, losses, right = fitting.average, [], []
        classifier = replace(self.classifier, denoiser=scorer.denoiser)
        generator = torch.Generator(self.images.device).manual_seed(self.spec.seed)
        for tau in self.taus_model:
            for first in range(0, len(self.images), self.spec.batch):
                x, label = (part[first : first + self.spec.batch] for part in (self.images, self.labels))
                z = x + tau * torch.randn(x.shape, generator=generator, device=x.device)
                clean = estimate_without_label(scorer.denoiser, z, tau)
                scores = sampled_scores(classifier, z, clean, generator, tau_model=tau, levels=LEVELS_OF_A_JUDGEMENT)
                losses.append(F.cross_entropy(scores * scorer.log_temperature.exp(), label, reduction="none"))
                right.append(scores.argmax(dim=1) == label)
        judgement = Judgement(fitting.step, float(torch.cat(losses).mean()), float(torch.cat(right).double().mean()))
        if not self.judgements or judgement.loss < min(earlier.loss for earlier in self.judgements):
            self.best = copy.deepcopy(scorer.state_dict())
        self.judgements.append(judgement)
        self.on_judgement(judgement)
