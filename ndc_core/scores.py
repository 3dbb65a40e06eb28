"""The score loop: squared distances of the denoiser's output to its target, in passes of one fixed shape."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ndc_core.denoiser import Denoiser
from ndc_core.grid import Levels
from ndc_core.unconditional import Unconditional

Images = Float[Tensor, "draws c h w"]


class NonFiniteScoreError(ArithmeticError):
    """The denoiser returned NaN or infinity: this is never turned into a vote (rule S9)."""

    def __init__(self, where: str, *, row: int) -> None:
        super().__init__(f"the denoiser's output is not finite at {where}")
        self.where = where
        self.row = row  # of the batch of draws


@dataclass(frozen=True)
class Path:
    """z_t = start + input_scale_t e_t  and  target_t = anchor + target_scale_t e_t, at the given levels."""

    start: Images
    anchor: Images
    level: Levels
    input_scale: Levels
    target_scale: Levels
    noise: Float[Tensor, "draws steps c h w"]

    def at(self, step: int) -> "Path":
        """The path's one step as a path of its own."""
        one = slice(step, step + 1)
        return Path(
            self.start,
            self.anchor,
            self.level[one],
            self.input_scale[one],
            self.target_scale[one],
            self.noise[:, one],
        )


def squared_errors(
    denoiser: Denoiser,
    path: Path,
    *,
    draw: Int[Tensor, " rows"],
    step: Int[Tensor, " rows"],
    label: Float[Tensor, "rows classes"],
) -> Float[Tensor, " rows"]:
    """|| h(z_t, sigma_t, y) - target_t ||^2 of each row's draw, step and label, in double precision; differentiable."""
    level, input_scale, target_scale = (
        torch.as_tensor(scale, dtype=torch.float32, device=path.start.device)[step]
        for scale in (path.level, path.input_scale, path.target_scale)
    )
    e, start = path.noise[draw, step], path.start[draw]
    target = start if path.anchor is path.start else path.anchor[draw]
    z = torch.addcmul(start, e, input_scale[:, None, None, None])
    if path.target_scale.any():
        target = torch.addcmul(target, e, target_scale[:, None, None, None])
    residual = denoiser(z, level, label) - target
    return residual.square().flatten(1).sum(1, dtype=torch.float64)


class ScoreLoop:
    """A denoiser called on exactly `rows_per_pass` rows at a time, and how many rows it was asked for."""

    def __init__(self, denoiser: Denoiser, *, rows_per_pass: int, device: torch.device) -> None:
        self.denoiser = denoiser
        self.rows_per_pass = rows_per_pass
        self.device = device
        self.evaluations = 0

    def _rows(self, total: int) -> tuple[Int[Tensor, " rows"], list[slice]]:
        """All row indices, padded to whole passes by repeating the last, and the window of each pass."""
        self.evaluations += total
        padded = -(-total // self.rows_per_pass) * self.rows_per_pass
        rows = torch.arange(padded, device=self.device).clamp_(max=total - 1)
        return rows, [slice(first, first + self.rows_per_pass) for first in range(0, padded, self.rows_per_pass)]

    def estimate(self, z: Images, unconditional: Unconditional, *, sigma_model: float) -> Images:
        """The unconditional estimate of the clean image behind each z."""
        labels = unconditional.labels.to(self.device)
        at_once = max(1, self.rows_per_pass // len(labels))  # draws, so that memory does not grow with the labels
        return torch.cat(
            [
                self._estimate(z[first : first + at_once], unconditional.denoiser, labels, sigma_model)
                for first in range(0, len(z), at_once)
            ]
        )

    def _estimate(
        self, z: Images, denoiser: Denoiser, labels: Float[Tensor, "labels classes"], sigma_model: float
    ) -> Images:
        sigma = torch.full((self.rows_per_pass,), sigma_model, device=self.device)
        rows, windows = self._rows(len(z) * len(labels))
        draw, label = rows // len(labels), rows % len(labels)
        found = torch.cat([denoiser(z[draw[window]], sigma, labels[label[window]]) for window in windows])
        return found[: len(z) * len(labels)].unflatten(0, (len(z), len(labels))).mean(dim=1)

    def losses(
        self, path: Path, draw_of_pair: Int[np.ndarray, " pairs"], class_of_pair: Int[np.ndarray, " pairs"]
    ) -> Float[np.ndarray, "pairs steps"]:
        """|| h(z_t, sigma_t, y) - target_t ||^2 of each (draw, class) pair at each level of the path.

        Raises:
            NonFiniteScoreError: naming the first draw, level and class where the output is not finite.
        """
        steps = len(path.level)
        total = len(draw_of_pair) * steps
        rows, windows = self._rows(total)
        pair, step = rows // steps, rows % steps
        draw = torch.as_tensor(draw_of_pair, device=self.device)[pair]
        class_of_row = torch.as_tensor(class_of_pair, device=self.device)[pair]
        labels = torch.eye(self.denoiser.num_classes, device=self.device)
        losses = torch.empty(len(rows), dtype=torch.float64, device=self.device)
        for window in windows:
            losses[window] = squared_errors(
                self.denoiser, path, draw=draw[window], step=step[window], label=labels[class_of_row[window]]
            )
        result = losses[:total].view(-1, steps).cpu().numpy()
        if not np.isfinite(result).all():
            bad_pair, bad_step = np.argwhere(~np.isfinite(result))[0]
            where = f"sigma_model {path.level[bad_step]:g}, class {class_of_pair[bad_pair]}"
            raise NonFiniteScoreError(where, row=int(draw_of_pair[bad_pair]))
        return result
