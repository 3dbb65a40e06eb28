"""The diffusion classifiers of the paper, as formulas over one path of noisy images.

Each scores class y by  - sum_t c_t || h(z_t, sigma_t, y) - target_t ||^2  (a sum over the image's dimensions); they
differ only in how z_t and target_t are drawn. Noise and grid are shared by all classes, so z_t and target_t never
depend on y. docs/mathematics.md says where the four come from.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ndc_core.classifiers.sift import LabelGradientSpec, SiftSpec
from ndc_core.noise.grid import Grid, GridSpec, Levels

Of = Literal["image", "estimate"]  # the noisy image itself, or the denoiser's estimate without a label


def ones(grid: Grid) -> Levels:
    return np.ones_like(grid.level)


def beyond_tau(grid: Grid) -> Levels:
    """s_t = sqrt(sigma_t^2 - tau^2): what is added to an image that has noise tau already."""
    return np.sqrt(grid.level**2 - grid.tau_model**2)


def posterior_share(grid: Grid) -> Levels:
    """The exact posterior mean's target is h* = z_t + (z_tau - z_t) sigma_t^2 / s_t^2."""
    return grid.level**2 / (grid.level**2 - grid.tau_model**2)


@dataclass(frozen=True)
class Formula:
    """What is diffused, by how much, and what its denoised form is compared with (`losses.Path`)."""

    start: Of
    anchor: Of
    input_scale: Callable[[Grid], Levels]
    anchor_share: Callable[[Grid], Levels]

    @property
    def needs_estimate(self) -> bool:
        return "estimate" in (self.start, self.anchor)


CLASSIFIERS = {
    # tau = 0: noise in the image counts as image.
    "dc": Formula("image", "image", lambda grid: grid.level, ones),
    "epndc": Formula("image", "image", beyond_tau, posterior_share),
    "apndc": Formula("image", "estimate", beyond_tau, ones),
    "apndc-ensemble": Formula("estimate", "estimate", lambda grid: grid.level, ones),
}
# Their z_t is z_tau plus more noise, so one path can serve several tau.
ON_ONE_PATH = ("epndc", "apndc")


def refuse_combination(
    name: str, grid: GridSpec, *, sift: SiftSpec | None, label_gradient: LabelGradientSpec | None, one_path: bool
) -> None:
    """Raises ValueError if a classifier cannot combine these settings."""
    if sift and label_gradient:
        raise ValueError("sift and label_gradient both choose the classes to score: set one of them")
    if one_path and (name not in ON_ONE_PATH or not grid.levels or sift):
        raise ValueError(
            f"one_path is for {' and '.join(ON_ONE_PATH)} on explicit grid.levels (`ndc diagnose` proposes some) "
            "without sift, which has a grid of its own; label_gradient and race can be used with it"
        )
