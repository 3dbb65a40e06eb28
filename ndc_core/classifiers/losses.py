"""Squared distances of a denoiser's output to its target along a path of noisy images, as rows to ask for."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ndc_core.classifiers.step_noise import Reach, nothing_to_draw
from ndc_core.models.denoiser import Denoiser, EveryClass, EveryLoss
from ndc_core.models.forward_passes import Ask, Inputs
from ndc_core.models.transfers import to_device
from ndc_core.noise.grid import Levels

Images = Float[Tensor, "draws c h w"]
Rows = Int[Tensor, " rows"]
# Differences and squares are computed for this many numbers at a time, because outputs alone may take gigabytes: what a
# CPU's cache holds, and what keeps a GPU busy.
NUMBERS_AT_ONCE = {"cpu": 2**20, "cuda": 2**27}


class NonFiniteScoreError(ArithmeticError):
    """The denoiser returned NaN or infinity: this is never turned into a vote (rule S9)."""

    def __init__(self, where: str, *, row: int) -> None:
        super().__init__(f"the network's output is not finite at {where}")
        self.where = where
        self.row = row  # of the batch of draws


@dataclass(frozen=True)
class Path:
    """Noisy images z_t = start + input_scale_t noise_t of a batch of draws, and what they are denoised towards.

    A path may serve several noise levels tau of the input at once. Each has an anchor, and its target at t is
    z_t + anchor_share_t (anchor - z_t): the anchor itself where its share is 1. Rows may use only draws and steps that
    `reach` was called with.
    """

    start: Images
    noise: Float[Tensor, "draws steps c h w"]
    level: Levels
    input_scale: Levels
    anchors: tuple[Images, ...]
    anchor_share: Float[np.ndarray, "taus steps"]
    reach: Reach = nothing_to_draw

    def at_level(self, tau: int) -> "Path":
        """The same noisy images with the targets of one noise level."""
        level = slice(tau, tau + 1)
        return replace(self, anchors=self.anchors[level], anchor_share=self.anchor_share[level])

    def noisy(self, draw: Rows, step: Rows) -> tuple[Float[Tensor, "rows c h w"], Float[Tensor, " rows"]]:
        """z_t and sigma_t of each row's draw and step."""
        level, scale = self._scalars[:2, step]
        return torch.addcmul(self.start[draw], self.noise[draw, step], scale[:, None, None, None]), level

    def squared_errors(
        self, denoised: Float[Tensor, "rows *classes c h w"], *, draw: Rows, step: Rows
    ) -> Float[Tensor, "rows taus *classes"]:
        """|| denoised - target_t ||^2 for each noise level, in double precision; differentiable."""
        return torch.stack([_squared_distances(denoised, target) for target in self._targets(draw, step)], dim=1)

    def targets(self, draw: Rows, step: Rows) -> Float[Tensor, "rows taus c h w"]:
        """target_t for each noise level."""
        return torch.stack([*self._targets(draw, step)], dim=1)

    def _targets(self, draw: Rows, step: Rows) -> Iterator[Float[Tensor, "rows c h w"]]:
        z = self.noisy(draw, step)[0] if (self.anchor_share != 1).any() else None
        for anchor, of_tau, share in zip(self.anchors, self.anchor_share, self._scalars[2:], strict=True):
            target = anchor[draw]
            if (of_tau != 1).any():
                assert z is not None
                target = torch.lerp(z, target, share[step][:, None, None, None])
            yield target

    @cached_property
    def _scalars(self) -> Float[Tensor, "rows steps"]:
        """level, input_scale and the anchor_share of each tau."""
        rows = np.stack([self.level, self.input_scale, *self.anchor_share])
        return to_device(rows.astype(np.float32), self.start.device)


def _squared_distances(
    denoised: Float[Tensor, "rows *classes c h w"], target: Float[Tensor, "rows c h w"]
) -> Float[Tensor, "rows *classes"]:
    """In double precision; outputs for all classes are handled a few classes at a time."""
    if denoised.ndim == target.ndim:
        return (denoised - target).square().flatten(-3).sum(-1, dtype=torch.float64)
    classes_at_once = max(1, NUMBERS_AT_ONCE.get(denoised.device.type, 2**27) // target.numel())
    pieces = denoised.split(classes_at_once, dim=1)
    return torch.cat(
        [(piece - target[:, None]).square().flatten(-3).sum(-1, dtype=torch.float64) for piece in pieces], 1
    )


def ask_losses(
    denoiser: Denoiser,
    path: Path,
    draw: Int[np.ndarray, " rows"],
    step: Int[np.ndarray, " rows"],
    class_id: Int[np.ndarray, " rows"],
) -> Ask:
    """Asks for || h(z_t, sigma_t, y) - target_t ||^2: (rows, taus)."""
    draws, steps, classes = _on_device(path, draw, step, class_id)
    labels = torch.eye(denoiser.num_classes, device=path.start.device)

    def inputs(rows: slice) -> Inputs:
        return *path.noisy(draws[rows], steps[rows]), labels[classes[rows]]

    def read(denoised: Tensor, rows: slice) -> Tensor:
        return path.squared_errors(denoised, draw=draws[rows], step=steps[rows])

    return Ask("forward", denoiser, len(draw), inputs, read, on_host=True)


def _on_device(path: Path, *ids: Int[np.ndarray, " rows"]) -> tuple[Rows, ...]:
    """Draw, step and any other ids of each row on the device; draws their noise there if it is missing."""
    path.reach(ids[0], ids[1])
    return to_device(np.stack(ids), path.start.device).unbind()


def ask_losses_of_every_class(
    denoiser: Denoiser, path: Path, draw: Int[np.ndarray, " rows"], step: Int[np.ndarray, " rows"]
) -> Ask:
    """Asks a network with class heads for the same of all classes at once: (rows, taus, classes)."""
    draws, steps = _on_device(path, draw, step)
    if isinstance(denoiser, EveryLoss):
        return _ask_every_loss(denoiser, path, draws, steps)
    unread = torch.zeros(1, 0, device=path.start.device)

    def inputs(rows: slice) -> Inputs:
        return *path.noisy(draws[rows], steps[rows]), unread.expand(rows.stop - rows.start, 0)

    def read(denoised: Tensor, rows: slice) -> Tensor:
        return path.squared_errors(denoised, draw=draws[rows], step=steps[rows])

    return Ask("every_class", denoiser, len(draw), inputs, read, on_host=True)


def squared_errors_of_every_class(
    denoiser: EveryClass, path: Path, *, draw: Rows, step: Rows
) -> Float[Tensor, "rows taus classes"]:
    """What `ask_losses_of_every_class` asks for, computed directly; differentiable."""
    noisy = path.noisy(draw, step)
    if isinstance(denoiser, EveryLoss):
        return denoiser.every_loss(*noisy, path.targets(draw, step))
    return path.squared_errors(denoiser.every_class(*noisy), draw=draw, step=step)


def _ask_every_loss(denoiser: Denoiser, path: Path, draws: Rows, steps: Rows) -> Ask:
    """The same for a network that computes no class's image for it, and takes the targets into its passes."""

    def inputs(rows: slice) -> Inputs:
        return *path.noisy(draws[rows], steps[rows]), path.targets(draws[rows], steps[rows])

    def read(denoised: Tensor, rows: slice) -> Tensor:
        return denoised

    return Ask("every_loss", denoiser, len(draws), inputs, read, on_host=True, targets=len(path.anchors))


def ask_label_gradients(
    denoiser: Denoiser, path: Path, draw: Int[np.ndarray, " rows"], step: Int[np.ndarray, " rows"]
) -> Ask:
    """Asks for the derivative of the squared error of a path with one tau at the mean label: (rows, classes).

    To first order, the squared error at the label y is that at the mean label plus this derivative's entry y plus a
    term that is the same for all classes.
    """
    draws, steps = _on_device(path, draw, step)
    classes = denoiser.num_classes
    mean = torch.full((1, classes), 1 / classes, device=path.start.device)

    def inputs(rows: slice) -> Inputs:
        return *path.noisy(draws[rows], steps[rows]), mean.expand(rows.stop - rows.start, classes)

    def read(denoised: Tensor, rows: slice) -> Tensor:
        return path.squared_errors(denoised, draw=draws[rows], step=steps[rows])[:, 0]

    return Ask("label_gradient", denoiser, len(draw), inputs, read, on_host=True)


def refuse_non_finite(
    answer: Float[np.ndarray, "rows *more"],
    path: Path,
    *,
    draw: Int[np.ndarray, " rows"],
    step: Int[np.ndarray, " rows"],
    class_id: Int[np.ndarray, " rows"] | None,
) -> None:
    """Raises NonFiniteScoreError for the first row that is not finite, with its level and class."""
    if np.isfinite(answer).all():
        return
    place = np.argwhere(~np.isfinite(answer))[0]
    row = place[0]
    named = place[-1] if class_id is None else class_id[row]
    raise NonFiniteScoreError(f"sigma_model {path.level[step[row]]:g}, class {named}", row=int(draw[row]))
