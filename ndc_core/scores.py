"""The score loop: squared distances of the denoiser's output to its target, in passes of one fixed shape."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ndc_core.denoiser import Denoiser
from ndc_core.grid import Levels

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


class ScoreLoop:
    """A denoiser called on exactly `rows_per_pass` rows at a time, and how many rows it was asked for."""

    def __init__(self, denoiser: Denoiser, *, rows_per_pass: int, device: torch.device) -> None:
        self.denoiser = denoiser
        self.rows_per_pass = rows_per_pass
        self.device = device
        self.evaluations = 0

    def _passes(self, total: int) -> Iterator[tuple[int, int, Int[Tensor, " rows"]]]:
        """First row, number of rows that count, and all row indices of each pass; padding repeats the last row."""
        for first in range(0, total, self.rows_per_pass):
            count = min(self.rows_per_pass, total - first)
            rows = torch.arange(first, first + self.rows_per_pass, device=self.device)
            yield first, count, rows.clamp_(max=total - 1)
        self.evaluations += total

    def estimate(self, z: Images, *, sigma_model: float) -> Images:
        """The unconditional estimate of the clean image behind each z."""
        estimate = torch.empty_like(z)
        label = torch.zeros(self.rows_per_pass, self.denoiser.num_classes, device=self.device)
        sigma = torch.full((self.rows_per_pass,), sigma_model, device=self.device)
        for first, count, rows in self._passes(len(z)):
            estimate[first : first + count] = self.denoiser(z[rows], sigma, label)[:count]
        return estimate

    def losses(
        self, path: Path, draw_of_pair: Int[np.ndarray, " pairs"], class_of_pair: Int[np.ndarray, " pairs"]
    ) -> Float[np.ndarray, "pairs steps"]:
        """|| h(z_t, sigma_t, y) - target_t ||^2 of each (draw, class) pair at each level of the path.

        Raises:
            NonFiniteScoreError: naming the first draw, level and class where the output is not finite.
        """
        steps = len(path.level)
        level, input_scale, target_scale = (
            torch.as_tensor(scale, dtype=torch.float32, device=self.device)
            for scale in (path.level, path.input_scale, path.target_scale)
        )
        draws = torch.as_tensor(draw_of_pair, device=self.device)
        classes = torch.as_tensor(class_of_pair, device=self.device)
        labels = torch.eye(self.denoiser.num_classes, device=self.device)
        losses = torch.empty(len(draw_of_pair) * steps, dtype=torch.float64, device=self.device)
        for first, count, rows in self._passes(len(losses)):
            pair, step = rows // steps, rows % steps
            draw = draws[pair]
            noise = path.noise[draw, step]
            z = torch.addcmul(path.start[draw], noise, input_scale[step, None, None, None])
            residual = self.denoiser(z, level[step], labels[classes[pair]]) - path.anchor[draw]
            residual = torch.addcmul(residual, noise, target_scale[step, None, None, None], value=-1)
            losses[first : first + count] = residual.square().flatten(1).sum(1, dtype=torch.float64)[:count]
        result = losses.view(-1, steps).cpu().numpy()
        if not np.isfinite(result).all():
            pair, step = np.argwhere(~np.isfinite(result))[0]
            where = f"sigma_model {path.level[step]:g}, class {class_of_pair[pair]}"
            raise NonFiniteScoreError(where, row=int(draw_of_pair[pair]))
        return result
