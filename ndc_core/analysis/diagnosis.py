"""What each noise level tells about the class: the network is evaluated at many levels once, grids are judged offline.

For EPNDC and APNDC the levels lie on one path through all tau, so a grid of some of them would see exactly these noisy
images.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from ndc_core.classifiers.diffusion import DiffusionClassifier
from ndc_core.classifiers.formulas import ON_ONE_PATH
from ndc_core.classifiers.losses import Images, Path, refuse_non_finite
from ndc_core.models.denoiser import Denoiser
from ndc_core.models.forward_passes import Ask, Inputs, Task, gather
from ndc_core.noise.draw_generators import draw_path_noise
from ndc_core.noise.grid import GridSpec, build_grid, path_levels
from ndc_core.noise.shared_path import FloatPathNoise, sigmas_on_path
from ndc_core.noise.smoothing import FloatNoise
from ndc_core.space import sigma_to_model, sigma_to_pixel

CANDIDATES = 36
LOWEST_BEYOND_TAU = 1.02
LARGEST_LEVEL = 3.0  # model units: in more noise classes cannot be told apart
CHANCE_ERRORS = 4  # the best of many levels must beat chance by this many standard errors

Losses = Float[np.ndarray, "images draws taus levels classes"]


def candidate_levels(sigma_pixel: Sequence[float]) -> tuple[float, ...]:
    """Levels evenly spaced in ln sigma from just above the smallest tau, rounded to three digits as they are written.

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
    Each level of `levels` after the first has an entry. It counts for a tau where `counts` is true; elsewhere the
    classifier does not use it.
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
        """Whether votes at any level beat chance by more than luck can explain with this few images."""
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
    """1 for a vote for the label, 0 for another; classes that tie share it, else a blind network would look biased."""
    best = losses == losses.min(axis=-1, keepdims=True)
    shares: np.ndarray = np.take_along_axis(best / best.sum(axis=-1, keepdims=True), own_class(losses, labels), axis=-1)
    return shares[..., 0]


def measure(
    classifiers: Sequence[DiffusionClassifier],
    images: UInt8[np.ndarray, "images c h w"],
    labels: Int[np.ndarray, " images"],
    *,
    sigma_pixel: Sequence[float],
    draws: int,
    seed: int,
    on_places: Callable[[int], None] = lambda places: None,
) -> list[MeasuredLosses]:
    """Evaluates the network on every image at the explicit levels that the classifiers share; gives each classifier's
    losses.

    Classifiers that can share a path share the evaluations. APNDC-ensemble, which adds its noise to an estimate, has
    noisy images of its own for each sigma_pixel. `on_places` gets the number of noisy images evaluated since its last
    call (in all `noisy_images_of_a_draw` for each draw and image).

    Raises:
        NonFiniteScoreError: the denoiser returned NaN or infinity.
    """
    first, taus_model = classifiers[0], tuple(sigma_to_model(sigma) for sigma in sigma_pixel)
    waiting = iter(range(len(images)))

    def next_task() -> tuple[int, Task[list[_Image]]] | None:
        index = next(waiting, None)
        if index is None:
            return None
        z, later = noisy_images(first.grid, images[index], sigma_pixel, name=str(index), draws=draws, seed=seed)
        fresh = np.random.default_rng((seed, index)).standard_normal(later.shape, dtype=np.float32)
        return index, _ask_about(classifiers, z, later, fresh, taus_model=taus_model, on_places=on_places)

    outcomes_of: dict[int, list[_Image]] = {}
    for index, outcomes in gather(next_task, rows_per_pass=first.rows_per_pass, device=torch.device(first.device)):
        if isinstance(outcomes, Exception):
            raise outcomes
        outcomes_of[index] = outcomes
    of_classifiers = zip(*(outcomes_of[index] for index in range(len(images))), strict=True)
    return [_together(of_images, first.grid.levels, labels) for of_images in of_classifiers]


def noisy_images_of_a_draw(classifiers: Sequence[DiffusionClassifier], taus_model: tuple[float, ...]) -> int:
    """How many noisy images the network is evaluated on for one draw of an image, each with all classes."""
    grid = classifiers[0].grid
    on_path = len(path_levels(grid, taus_model=taus_model))
    of_each_tau = sum(len(build_grid(grid, tau_model=tau_model).level) for tau_model in taus_model)
    alone = sum(classifier.name not in ON_ONE_PATH for classifier in classifiers)
    return on_path * (alone < len(classifiers)) + of_each_tau * alone


def _together(
    outcomes: Sequence["_Image"], levels: tuple[float, ...], labels: Int[np.ndarray, " images"]
) -> MeasuredLosses:
    likeness = np.mean([outcome.likeness for outcome in outcomes], axis=0)
    losses = np.stack([outcome.losses for outcome in outcomes])
    return MeasuredLosses(levels, labels, losses, outcomes[0].counts, likeness[:, 0], np.sqrt(likeness[:, 1]))


def noisy_images(
    levels: GridSpec,
    image: UInt8[np.ndarray, "c h w"],
    sigma_pixel: Sequence[float],
    *,
    name: str,
    draws: int,
    seed: int,
) -> tuple[list[Float[np.ndarray, "draws c h w"]], Float[np.ndarray, "draws steps c h w"]]:
    """An image in model space with noise tau, for each tau, and with more noise at each level beyond."""
    path_sigmas = sigmas_on_path(levels, sigma_pixel)
    noise = draw_path_noise(
        seed=seed,
        image_id=name,
        phase="selection",  # never the noise of votes that are counted
        draws=range(draws),
        path_noise=FloatPathNoise(path_sigmas),
        image_shape=image.shape,
    )
    z = FloatNoise.add(image, noise).astype(np.float32)
    beyond = path_levels(levels, taus_model=tuple(sigma_to_model(sigma) for sigma in sigma_pixel))
    later = [path_sigmas.index(sigma_to_pixel(level)) for level in beyond]
    return [z[:, path_sigmas.index(sigma)] for sigma in sigma_pixel], z[:, later]


@dataclass(frozen=True)
class _Image:
    losses: Float[np.ndarray, "draws taus levels classes"]
    counts: Bool[np.ndarray, "taus levels"]
    likeness: Float[np.ndarray, "levels 2"]


def _ask_about(
    classifiers: Sequence[DiffusionClassifier],
    z: list[np.ndarray],
    later: np.ndarray,
    fresh: np.ndarray,
    *,
    taus_model: tuple[float, ...],
    on_places: Callable[[int], None],
) -> Task[list[_Image]]:
    device = classifiers[0].device
    noisy = tuple(torch.from_numpy(array).to(device) for array in z)
    clean = yield from _estimates(classifiers, noisy, taus_model)
    images: dict[str, _Image] = {}
    if on_path := [classifier for classifier in classifiers if classifier.name in ON_ONE_PATH]:
        later_on_device = torch.from_numpy(later).to(device)
        paths, weights = zip(
            *(each.shared_path(noisy, clean, later_on_device, taus_model=taus_model) for each in on_path), strict=True
        )
        losses, likeness = yield from _along(on_path[0], paths, on_places)
        for classifier, weight, of_classifier in zip(on_path, weights, losses, strict=True):
            images[classifier.name] = _Image(of_classifier, weight > 0, likeness)
    for classifier in classifiers:
        if classifier.name not in ON_ONE_PATH:
            assert clean is not None
            images[classifier.name] = yield from _each_tau(
                classifier, noisy, clean, torch.from_numpy(fresh).to(device), taus_model, on_places
            )
    return [images[classifier.name] for classifier in classifiers]


def _estimates(
    classifiers: Sequence[DiffusionClassifier], noisy: tuple[Images, ...], taus_model: tuple[float, ...]
) -> Task[tuple[Images, ...] | None]:
    """The clean image behind each z without a label, if a formula needs it."""
    if not any(classifier.formula.needs_estimate for classifier in classifiers):
        return None
    estimator, clean = classifiers[0].estimator, []
    for z, tau_model in zip(noisy, taus_model, strict=True):
        level = torch.full((len(z),), tau_model, device=z.device)
        each = yield from _outputs(estimator.denoiser, z, level, estimator.labels)
        clean.append(each.mean(dim=1))
    return tuple(clean)


def _each_tau(
    classifier: DiffusionClassifier,
    noisy: tuple[Images, ...],
    clean: tuple[Images, ...],
    fresh: Tensor,
    taus_model: tuple[float, ...],
    on_places: Callable[[int], None],
) -> Task[_Image]:
    """For a classifier whose noisy images belong to one tau each; 0 at levels that do not lie beyond it."""
    shape = len(fresh), len(taus_model), fresh.shape[1]
    losses = np.zeros((*shape, classifier.num_classes))
    counts, likeness = np.zeros(shape[1:], dtype=bool), np.zeros((shape[2], 2))
    for tau, tau_model in enumerate(taus_model):
        path, _ = classifier.path(noisy[tau], clean[tau], classifier.grid, fresh, tau_model=tau_model)
        ((of_tau,), alike) = yield from _along(classifier, (path,), on_places)
        losses[:, tau, -len(path.level) :], counts[tau, -len(path.level) :] = of_tau[:, 0], True
        likeness[-len(path.level) :] = alike
    return _Image(losses, counts, likeness)


def _along(
    classifier: DiffusionClassifier, paths: Sequence[Path], on_places: Callable[[int], None]
) -> Task[tuple[list[Float[np.ndarray, "draws taus levels classes"]], Float[np.ndarray, "levels 2"]]]:
    """The losses of paths of the same noisy images, from outputs computed once, and how alike these outputs are."""
    denoiser, path = classifier.denoiser, paths[0]
    shape = (len(path.start), len(path.level))
    labels = None if classifier.all_at_once else torch.eye(denoiser.num_classes)
    at_once = classifier.rows_per_pass // (1 if labels is None else len(labels)) or 1  # bounds the memory of outputs
    losses: list[list[np.ndarray]] = [[] for _ in paths]
    likeness = []
    for places in torch.cartesian_prod(*map(torch.arange, shape)).to(path.start.device).split(at_once):
        draw, step = places.unbind(1)
        outputs = yield from _outputs(denoiser, *path.noisy(draw, step), labels)
        for of_path, pieces in zip(paths, losses, strict=True):
            pieces.append(_losses(of_path, outputs, draw, step))
        likeness.append(likeness_of(outputs).cpu().numpy())
        on_places(len(places))
    taus_before_levels = [np.concatenate(pieces).reshape(*shape, -1, denoiser.num_classes) for pieces in losses]
    return (
        [of_path.swapaxes(1, 2) for of_path in taus_before_levels],
        np.concatenate(likeness).reshape(*shape, 2).mean(axis=0),
    )


def _outputs(denoiser: Denoiser, z: Images, level: Tensor, labels: Tensor | None) -> Task[Tensor]:
    """h for every row of z with each of the labels; without labels, for all classes of a network with heads."""
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
