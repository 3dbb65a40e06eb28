"""Plain and adaptive projected gradient ascent on an objective within a ball around an image."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ndc_core.space import bytes_to_pixels

Pixels = Float[Tensor, "restarts c h w"]
Objective = Callable[[Pixels], Float[Tensor, " restarts"]]  # what the ascent raises; pixels in [0, 1]
AscentName = Literal["apgd", "pgd"]

# The first steps go far, the last ones settle: the step falls linearly from this share of the radius.
FIRST_STEP = 0.5
# Source of these: Croce and Hein 2020, section 3.
FIRST_STRIDE, MOMENTUM, SHARE_OF_INCREASES = 2.0, 0.75, 0.75
FIRST_PERIOD, PERIODS_SHRINK_BY, SHORTEST_PERIOD = 0.22, 0.03, 0.06
ROUNDING = 1e-9  # of the sum of a few periods


class Ascent(Protocol):
    def __call__(
        self,
        objective: Objective,
        image: UInt8[np.ndarray, "c h w"],
        *,
        radius_pixel: float,
        steps: int,
        restarts: int,
        generator: torch.Generator,
    ) -> Float[np.ndarray, "restarts c h w"]:
        """Images in [0, 1] closer than radius_pixel to the image (L2) for which the objective is high, one per restart.

        The first restart begins at the image, the others at random places in the ball.
        """


@dataclass(frozen=True)
class Ball:
    """Images in [0, 1] at most `reach` away from `clean` (L2)."""

    clean: Float[Tensor, "c h w"]
    reach: float

    def starts(self, restarts: int, generator: torch.Generator) -> Pixels:
        delta = torch.randn(restarts, *self.clean.shape, generator=generator, dtype=torch.float64)
        share = torch.rand(restarts, 1, 1, 1, generator=generator, dtype=torch.float64)
        delta = delta / norms(delta) * self.reach * share
        delta[0] = 0
        return (self.clean + delta).clamp(0, 1)

    def projected(self, x: Pixels) -> Pixels:
        """The box contains the clean image, so clamping to it never leaves the ball."""
        delta = x - self.clean
        return (self.clean + delta * (self.reach / norms(delta).clamp_min(1e-30)).clamp_max(1)).clamp(0, 1)


def ball_around(image: UInt8[np.ndarray, "c h w"], radius_pixel: float) -> Ball:
    return Ball(torch.from_numpy(bytes_to_pixels(image)), radius_pixel * (1 - 1e-6))


def ascend(
    objective: Objective,
    image: UInt8[np.ndarray, "c h w"],
    *,
    radius_pixel: float,
    steps: int,
    restarts: int,
    generator: torch.Generator,
) -> Float[np.ndarray, "restarts c h w"]:
    """Projected gradient ascent with steps that shrink; see `Ascent`."""
    ball = ball_around(image, radius_pixel)
    x = ball.starts(restarts, generator)
    for step in range(steps):
        _, direction = value_and_direction(objective, x)
        x = ball.projected(x + FIRST_STEP * ball.reach * (1 - step / steps) * direction)
    return x.numpy()


def ascend_adaptively(
    objective: Objective,
    image: UInt8[np.ndarray, "c h w"],
    *,
    radius_pixel: float,
    steps: int,
    restarts: int,
    generator: torch.Generator,
) -> Float[np.ndarray, "restarts c h w"]:
    """Auto-PGD: steps with momentum, halved at checkpoints where too few raised the objective; see `Ascent`.

    Gives the best image that each restart saw. The objective may be random; its values are then compared as drawn.
    Source: Croce and Hein 2020, Reliable evaluation of adversarial robustness with an ensemble of diverse
    parameter-free attacks, Algorithm 1, in L2.
    """
    ball = ball_around(image, radius_pixel)
    x = before = best = ball.starts(restarts, generator)
    value, direction = value_and_direction(objective, x)
    best_value, best_direction = value, direction
    stride = torch.full((restarts, 1, 1, 1), FIRST_STRIDE * ball.reach, dtype=x.dtype)
    increases, halved_last, best_at_checkpoint = torch.zeros(restarts), torch.zeros(restarts, dtype=torch.bool), value
    begun, ends = 0, checkpoints(steps)
    for step in range(1, steps + 1):
        momentum = MOMENTUM if step > 1 else 1.0
        ahead = ball.projected(x + stride * direction)
        x, before = ball.projected(x + momentum * (ahead - x) + (1 - momentum) * (x - before)), x
        last_value = value
        value, direction = value_and_direction(objective, x)
        increases += value > last_value
        better = value > best_value
        best, best_direction = chosen(better, x, best), chosen(better, direction, best_direction)
        best_value = torch.where(better, value, best_value)
        if step in ends:
            few = increases < SHARE_OF_INCREASES * (step - begun)
            halve = few | (~halved_last & (best_value <= best_at_checkpoint))
            stride = torch.where(halve.view(-1, 1, 1, 1), stride / 2, stride)
            x, before = chosen(halve, best, x), chosen(halve, best, before)
            value, direction = torch.where(halve, best_value, value), chosen(halve, best_direction, direction)
            begun, increases, halved_last, best_at_checkpoint = step, torch.zeros(restarts), halve, best_value
    return best.numpy()


ASCENTS: dict[AscentName, Ascent] = {"apgd": ascend_adaptively, "pgd": ascend}


def checkpoints(steps: int) -> set[int]:
    """Numbers of steps after which the stride may halve: a first period of 22 % of all steps, then shorter ones."""
    ends, period, reached = set[int](), FIRST_PERIOD, FIRST_PERIOD
    while reached < 1:
        ends.add(math.ceil(reached * steps - ROUNDING))
        period = max(period - PERIODS_SHRINK_BY, SHORTEST_PERIOD)
        reached += period
    return ends


def value_and_direction(objective: Objective, x: Pixels) -> tuple[Float[Tensor, " restarts"], Pixels]:
    """The objective, and its gradient scaled to length 1."""
    at = x.clone().requires_grad_()
    value = objective(at)
    (gradient,) = torch.autograd.grad(value.sum(), at)
    return value.detach(), gradient / norms(gradient).clamp_min(1e-30)


def chosen(take: Tensor, these: Pixels, others: Pixels) -> Pixels:
    return torch.where(take.view(-1, 1, 1, 1), these, others)


def norms(delta: Pixels) -> Float[Tensor, "restarts 1 1 1"]:
    return delta.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
