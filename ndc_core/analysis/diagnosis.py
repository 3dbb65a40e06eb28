"""What each noise level tells of the class: the network asked at many levels once, and grids judged from that offline.

The levels lie on one path through all tau, so that a grid of some of them would have met exactly these noisy images.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from ndc_core.classifiers.diffusion import DiffusionClassifier
from ndc_core.classifiers.losses import Images, Path, refuse_non_finite
from ndc_core.models.denoiser import Denoiser
from ndc_core.models.forward_passes import Ask, Inputs, Task, gather
from ndc_core.noise.grid import GridSpec, path_levels
from ndc_core.noise.shared_path import FloatPathNoise, sigmas_on_path
from ndc_core.noise.smoothing import FloatNoise
from ndc_core.noise.streams import draw_path_noise
from ndc_core.space import sigma_to_model, sigma_to_pixel

CANDIDATES = 36
LOWEST_BEYOND_TAU = 1.02
LARGEST_LEVEL = 3.0  # model units: no class is told apart in more noise
CHANCE_ERRORS = 4  # standard errors above chance, by which the best of many levels must beat it

Losses = Float[np.ndarray, "images draws taus levels classes"]


def candidate_levels(sigma_pixel: Sequence[float]) -> tuple[float, ...]:
    """Levels evenly spaced in ln sigma from just above the smallest tau on, of three digits, as they will be written.

    Raises:
        ValueError: a sigma_pixel that leaves no room for a grid above it, is not positive, or comes twice.
    """
    if not sigma_pixel or min(sigma_pixel) <= 0 or len(set(sigma_pixel)) != len(sigma_pixel):
        raise ValueError(f"sigma_pixel must be positive and different levels, not {list(sigma_pixel)}")
    smallest, largest = sigma_to_model(min(sigma_pixel)), sigma_to_model(max(sigma_pixel))
    spaced = np.geomspace(LOWEST_BEYOND_TAU * smallest, LARGEST_LEVEL, CANDIDATES)
    levels = tuple(sorted({float(f"{level:.3g}") for level in spaced}))
    if sum(largest < level <= LARGEST_LEVEL for level in levels) < 2:
        raise ValueError(
            f"sigma_pixel {max(sigma_pixel):g} is {largest:g} in model units, which leaves no two levels between it "
            f"and {LARGEST_LEVEL:g}, where the search ends; give a lower sigma_pixel"
        )
    return levels


@dataclass(frozen=True)
class MeasuredLosses:
    """|| h(z_t, y) - target_t ||^2 of all classes at all levels but the lowest, and how alike the outputs h are.

    `cosine` is the mean over pairs of classes, `difference` the root mean square of |h_y - h_y'| over that of |h_y|.
    Each level of `levels` after the first has an entry; it counts for a tau where `counts`, elsewhere it is no number
    of the classifier's.
    """

    levels: tuple[float, ...]
    labels: Int[np.ndarray, " images"]
    losses: Losses
    counts: Bool[np.ndarray, "taus levels"]
    cosine: Float[np.ndarray, " levels"]
    difference: Float[np.ndarray, " levels"]

    @property
    def classes(self) -> int:
        return self.losses.shape[-1]

    @cached_property
    def one_level_accuracy(self) -> Float[np.ndarray, "taus levels"]:
        """Share of votes for the label if a level were the only one."""
        return np.where(self.counts, credit(self.losses, self.labels).mean(axis=(0, 1)), np.nan)

    @cached_property
    def gaps(self) -> Float[np.ndarray, "images draws taus levels"]:
        """Loss of the nearest rival less that of the label, on the same noise."""
        rivals = self.losses.copy()
        own = own_class(self.losses, self.labels)
        np.put_along_axis(rivals, own, np.inf, axis=-1)
        gaps = rivals.min(axis=-1) - np.take_along_axis(self.losses, own, axis=-1)[..., 0]
        return np.where(self.counts, gaps, np.nan)

    @property
    def told_apart(self) -> bool:
        """Whether at any level a vote beats chance by more than so few images can by luck."""
        chance = 1 / self.classes
        luck = CHANCE_ERRORS * (chance * (1 - chance) / len(self.labels)) ** 0.5
        return bool(np.nanmax(self.one_level_accuracy) > chance + luck)


def own_class(losses: Float[np.ndarray, "images *more"], labels: Int[np.ndarray, " images"]) -> np.ndarray:
    """Indices that take each image's own class along the last axis."""
    column = labels.reshape(-1, *[1] * (losses.ndim - 1))
    return np.broadcast_to(column, (*losses.shape[:-1], 1))


def credit(
    losses: Float[np.ndarray, "images *more"], labels: Int[np.ndarray, " images"]
) -> Float[np.ndarray, "images *fewer"]:
    """1 for a vote for the label, 0 for another; classes that tie share it, or a blind network would look biased."""
    best = losses == losses.min(axis=-1, keepdims=True)
    shares: np.ndarray = np.take_along_axis(best / best.sum(axis=-1, keepdims=True), own_class(losses, labels), axis=-1)
    return shares[..., 0]


def measure(
    classifier: DiffusionClassifier,
    images: UInt8[np.ndarray, "images c h w"],
    labels: Int[np.ndarray, " images"],
    *,
    sigma_pixel: Sequence[float],
    draws: int,
    seed: int,
    on_image: Callable[[], None] = lambda: None,
) -> MeasuredLosses:
    """Asks the network about every image on paths of the classifier's explicit levels.

    Raises:
        NonFiniteScoreError: the denoiser returned NaN or infinity.
    """
    taus_model = tuple(sigma_to_model(sigma) for sigma in sigma_pixel)
    waiting = iter(range(len(images)))

    def next_task() -> tuple[int, Task[_Image]] | None:
        index = next(waiting, None)
        if index is None:
            return None
        z = noisy_images(classifier.grid, images[index], sigma_pixel, name=str(index), draws=draws, seed=seed)
        return index, _ask_about(classifier, *z, taus_model=taus_model)

    outcome_of: dict[int, _Image] = {}
    for index, outcome in gather(
        next_task, rows_per_pass=classifier.rows_per_pass, device=torch.device(classifier.device)
    ):
        if isinstance(outcome, Exception):
            raise outcome
        outcome_of[index] = outcome
        on_image()
    outcomes = [outcome_of[index] for index in range(len(images))]
    likeness = np.mean([outcome.likeness for outcome in outcomes], axis=0)
    losses = np.stack([outcome.losses for outcome in outcomes])
    return MeasuredLosses(
        classifier.grid.levels, labels, losses, outcomes[0].counts, likeness[:, 0], np.sqrt(likeness[:, 1])
    )


def noisy_images(
    levels: GridSpec,
    image: UInt8[np.ndarray, "c h w"],
    sigma_pixel: Sequence[float],
    *,
    name: str,
    draws: int,
    seed: int,
) -> tuple[list[Float[np.ndarray, "draws c h w"]], Float[np.ndarray, "draws steps c h w"]]:
    """An image in model space with noise tau, for each tau, and with more of it at each level beyond."""
    at = sigmas_on_path(levels, sigma_pixel)
    noise = draw_path_noise(
        seed=seed,
        image_id=name,
        phase="selection",  # never the noise of votes that are counted
        draws=range(draws),
        path_noise=FloatPathNoise(at),
        image_shape=image.shape,
    )
    z = FloatNoise.add(image, noise).astype(np.float32)
    beyond = path_levels(levels, taus_model=tuple(sigma_to_model(sigma) for sigma in sigma_pixel))
    later = [at.index(sigma_to_pixel(level)) for level in beyond]
    return [z[:, at.index(sigma)] for sigma in sigma_pixel], z[:, later]


@dataclass(frozen=True)
class _Image:
    losses: Float[np.ndarray, "draws taus levels classes"]
    counts: Bool[np.ndarray, "taus levels"]
    likeness: Float[np.ndarray, "levels 2"]


def _ask_about(
    classifier: DiffusionClassifier, z: list[np.ndarray], later: np.ndarray, *, taus_model: tuple[float, ...]
) -> Task[_Image]:
    denoiser, device = classifier.denoiser, classifier.device
    on_device = [torch.from_numpy(array).to(device) for array in z]
    clean = None
    if classifier.formula.needs_estimate:
        clean = []
        for noisy, tau_model in zip(on_device, taus_model, strict=True):
            level = torch.full((len(noisy),), tau_model, device=device)
            each = yield from _outputs(classifier.estimator.denoiser, noisy, level, classifier.estimator.labels)
            clean.append(each.mean(dim=1))
    path, weight = classifier.shared_path(
        tuple(on_device), tuple(clean) if clean else None, torch.from_numpy(later).to(device), taus_model=taus_model
    )
    shape = (len(later), len(path.level))
    labels = None if classifier.all_at_once else torch.eye(denoiser.num_classes)
    at_once = classifier.rows_per_pass // (1 if labels is None else len(labels)) or 1  # bounds the memory of outputs
    losses, likeness = [], []
    for places in torch.cartesian_prod(*map(torch.arange, shape)).to(device).split(at_once):
        draw, step = places.unbind(1)
        outputs = yield from _outputs(denoiser, *path.noisy(draw, step), labels)
        losses.append(_losses(path, outputs, draw, step))
        likeness.append(likeness_of(outputs).cpu().numpy())
    taus_before_levels = np.concatenate(losses).reshape(*shape, len(z), -1).swapaxes(1, 2)
    return _Image(taus_before_levels, weight > 0, np.concatenate(likeness).reshape(*shape, 2).mean(axis=0))


def _outputs(denoiser: Denoiser, z: Images, level: Tensor, labels: Tensor | None) -> Task[Tensor]:
    """h for every row of z with each of the labels, or of a network with class heads for all classes."""
    if labels is None:
        unread = torch.zeros(len(z), 0, device=z.device)
        return (yield Ask("every_class", denoiser, len(z), lambda rows: (z[rows], level[rows], unread[rows]), _keep))
    count, labels = len(labels), labels.to(z.device)

    def inputs(rows: slice) -> Inputs:
        row = torch.arange(rows.start, rows.stop, device=z.device)
        return z[row // count], level[row // count], labels[row % count]

    outputs = yield Ask("forward", denoiser, len(z) * count, inputs, _keep)
    return outputs.unflatten(0, (len(z), count))


def _keep(outputs: Tensor, rows: slice) -> Tensor:
    return outputs


def _losses(path: Path, outputs: Tensor, draw: Tensor, step: Tensor) -> Float[np.ndarray, "rows taus classes"]:
    losses = path.squared_errors(outputs, draw=draw, step=step).cpu().numpy()
    refuse_non_finite(losses, path, draw=draw.cpu().numpy(), step=step.cpu().numpy(), class_id=None)
    return losses


def likeness_of(denoised: Float[Tensor, "rows classes c h w"]) -> Float[Tensor, "rows 2"]:
    """Over pairs of classes: the mean cosine of outputs, and the mean squared difference over the mean square."""
    outputs = denoised.flatten(2).double()
    classes = outputs.shape[1]
    lengths = outputs.square().sum(-1)
    unit = outputs / lengths.sqrt().clamp_min(torch.finfo(torch.float64).tiny)[..., None]
    # Sums over pairs from sums over classes: there may be a million pairs.
    cosine = (unit.sum(1).square().sum(-1) - unit.square().sum((1, 2))) / (classes * (classes - 1))
    spread = (outputs - outputs.mean(1, keepdim=True)).square().sum(-1).mean(1) * 2 * classes / (classes - 1)
    return torch.stack([cosine, spread / lengths.mean(1).clamp_min(torch.finfo(torch.float64).tiny)], dim=1)
