"""Squared distances of a denoiser's output to its target along a path of noisy images, as rows to be asked for."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ndc_core.models.denoiser import Denoiser
from ndc_core.models.forward_passes import Ask, Inputs
from ndc_core.noise.grid import Levels

Images = Float[Tensor, "draws c h w"]
Rows = Int[Tensor, " rows"]


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
    z_t + anchor_share_t (anchor - z_t): the anchor itself where its share is 1.
    """

    start: Images
    noise: Float[Tensor, "draws steps c h w"]
    level: Levels
    input_scale: Levels
    anchors: tuple[Images, ...]
    anchor_share: Float[np.ndarray, "taus steps"]

    def of(self, tau: int) -> "Path":
        """The same noisy images with the targets of one noise level."""
        one = slice(tau, tau + 1)
        return Path(self.start, self.noise, self.level, self.input_scale, self.anchors[one], self.anchor_share[one])

    def noisy(self, draw: Rows, step: Rows) -> tuple[Float[Tensor, "rows c h w"], Float[Tensor, " rows"]]:
        """z_t and sigma_t of each row's draw and step."""
        level, scale = (self._scalars(values)[step] for values in (self.level, self.input_scale))
        return torch.addcmul(self.start[draw], self.noise[draw, step], scale[:, None, None, None]), level

    def squared_errors(
        self, found: Float[Tensor, "rows *classes c h w"], *, draw: Rows, step: Rows
    ) -> Float[Tensor, "rows taus *classes"]:
        """|| found - target_t ||^2 for each noise level, in double precision; differentiable."""
        errors = []
        z, _ = self.noisy(draw, step)
        for anchor, shares in zip(self.anchors, self.anchor_share, strict=True):
            target = anchor[draw]
            if (shares != 1).any():
                target = torch.lerp(z, target, self._scalars(shares)[step][:, None, None, None])
            residual = found - (target if found.ndim == target.ndim else target[:, None])
            errors.append(residual.square().flatten(-3).sum(-1, dtype=torch.float64))
        return torch.stack(errors, dim=1)

    def _scalars(self, values: Levels) -> Float[Tensor, " steps"]:
        return torch.as_tensor(values, dtype=torch.float32, device=self.start.device)


def ask_losses(
    denoiser: Denoiser,
    path: Path,
    draw: Int[np.ndarray, " rows"],
    step: Int[np.ndarray, " rows"],
    class_id: Int[np.ndarray, " rows"],
) -> Ask:
    """Asks for || h(z_t, sigma_t, y) - target_t ||^2: (rows, taus)."""
    draws, steps, classes = (torch.as_tensor(ids, device=path.start.device) for ids in (draw, step, class_id))
    labels = torch.eye(denoiser.num_classes, device=path.start.device)

    def inputs(rows: slice) -> Inputs:
        return *path.noisy(draws[rows], steps[rows]), labels[classes[rows]]

    def read(found: Tensor, rows: slice) -> Tensor:
        return path.squared_errors(found, draw=draws[rows], step=steps[rows])

    return Ask("forward", denoiser, len(draw), inputs, read)


def ask_losses_of_every_class(
    denoiser: Denoiser, path: Path, draw: Int[np.ndarray, " rows"], step: Int[np.ndarray, " rows"]
) -> Ask:
    """Asks for the same of all classes at once, of a network with class heads: (rows, taus, classes)."""
    draws, steps = (torch.as_tensor(ids, device=path.start.device) for ids in (draw, step))
    unread = torch.zeros(1, 0, device=path.start.device)

    def inputs(rows: slice) -> Inputs:
        return *path.noisy(draws[rows], steps[rows]), unread.expand(rows.stop - rows.start, 0)

    def read(found: Tensor, rows: slice) -> Tensor:
        return path.squared_errors(found, draw=draws[rows], step=steps[rows])

    return Ask("every_class", denoiser, len(draw), inputs, read)


def ask_label_gradients(
    denoiser: Denoiser, path: Path, draw: Int[np.ndarray, " rows"], step: Int[np.ndarray, " rows"]
) -> Ask:
    """Asks for the derivative of the squared error of a path with one tau at the mean label: (rows, classes).

    To first order, the squared error at the label y is that at the mean label plus this derivative's entry y plus what
    is the same for all classes.
    """
    draws, steps = (torch.as_tensor(ids, device=path.start.device) for ids in (draw, step))
    classes = denoiser.num_classes
    mean = torch.full((1, classes), 1 / classes, device=path.start.device)

    def inputs(rows: slice) -> Inputs:
        return *path.noisy(draws[rows], steps[rows]), mean.expand(rows.stop - rows.start, classes)

    def read(found: Tensor, rows: slice) -> Tensor:
        return path.squared_errors(found, draw=draws[rows], step=steps[rows])[:, 0]

    return Ask("label_gradient", denoiser, len(draw), inputs, read)


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
