"""Ascents find the optimum where it has a closed form, and stay among the images they may give."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch

from ndc_core.analysis.ascent import ASCENTS, AscentName, Objective, checkpoints

GREY = np.full((1, 4, 4), 128, np.uint8)
BOTH = pytest.mark.parametrize("name", list(ASCENTS))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def climbed(
    name: AscentName,
    objective: Objective,
    image: np.ndarray = GREY,
    *,
    radius: float,
    steps: int = 20,
    restarts: int = 3,
) -> np.ndarray:
    """The changes, a row for each restart."""
    adversarial = ASCENTS[name](
        objective, image, radius_pixel=radius, steps=steps, restarts=restarts, generator=seeded()
    )
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    changes = (adversarial - image / 255).reshape(restarts, -1)
    assert np.linalg.norm(changes, axis=1).max() < radius
    return changes


def bisected(rises: Callable[[float], float], goal: float) -> float:
    low, high = 0.0, 1e6
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if rises(middle) < goal else (low, middle)
    return high


@BOTH
def test_a_linear_objective_is_climbed_to_the_edge_of_the_ball(name: AscentName) -> None:
    slope = torch.randn(1, 4, 4, generator=seeded(), dtype=torch.float64)
    changes = climbed(name, lambda x: (x * slope).sum((1, 2, 3)), radius=0.2)
    assert changes @ slope.numpy().ravel() == pytest.approx(0.2 * float(slope.norm()), rel=0.02)


@BOTH
def test_images_at_the_bounds_of_the_pixels_stay_there(name: AscentName) -> None:
    image = np.array([[[0, 255]]], np.uint8)
    push = torch.tensor([[[-1.0, 1.0]]], dtype=torch.float64)
    assert not climbed(name, lambda x: (x * push).sum((1, 2, 3)), image, radius=0.5).any()


@BOTH
@pytest.mark.parametrize("seed", range(4))
def test_a_linear_classifier_falls_at_the_distance_to_its_nearest_border_and_not_before(
    name: AscentName, seed: int
) -> None:
    """The distance is the smallest ratio of margin to norm over all rivals."""
    weight = torch.randn(5, 16, generator=seeded(seed), dtype=torch.float64)
    scores = weight @ torch.full((16,), 128 / 255, dtype=torch.float64)
    bias = torch.randn(5, generator=seeded(seed + 50), dtype=torch.float64) - scores
    bias[0] += 4 - (scores + bias)[0]
    margins = (scores + bias)[0] - (scores + bias)[1:]
    border = float((margins / (weight[0] - weight[1:]).norm(dim=1)).min())
    assert 0.1 < border < 0.9

    def behind(x: torch.Tensor) -> torch.Tensor:
        """A different rival for each restart."""
        scores = x.flatten(1) @ weight.T + bias
        return scores.diagonal(1) - scores[:, 0]

    for reach, falls in ((0.999, False), (1.02, True)):
        changes = torch.from_numpy(climbed(name, behind, radius=reach * border, restarts=4) + GREY.ravel() / 255)
        assert bool((behind(changes.view(-1, 1, 4, 4)) > 0).any()) == falls


@BOTH
def test_a_border_that_only_some_pixels_can_approach_is_found(name: AscentName) -> None:
    """In a box the shortest way to w x = m is clip(l w): the bounds hold some pixels back, the others go further."""
    image = np.random.default_rng(1).choice([0, 20, 128, 235, 255], (1, 4, 4)).astype(np.uint8)
    pixels, slope = image.ravel() / 255, np.random.default_rng(2).standard_normal(16)

    def change(length: float) -> np.ndarray:
        return np.clip(length * slope, -pixels, 1 - pixels)

    least = change(bisected(lambda length: float(change(length) @ slope), 1.2))
    border = float(np.linalg.norm(least))
    weight = torch.from_numpy(slope.reshape(1, 4, 4))
    for reach, falls in ((0.99, False), (1.03, True)):
        changes = climbed(name, lambda x: (x * weight).sum((1, 2, 3)), image, radius=reach * border, steps=40)
        assert bool((changes @ slope > 1.2).any()) == falls


def test_the_adaptive_ascent_settles_in_a_narrow_valley_where_the_plain_one_does_not() -> None:
    """-||A (d - goal)||^2 in a ball has its optimum at (A^2 + mu)^-1 A^2 goal, with mu that puts it on the edge."""
    curvature = torch.logspace(0, 1.3, 16, dtype=torch.float64)
    goal = torch.randn(16, generator=seeded(3), dtype=torch.float64)
    radius = 0.3

    def value(changes: torch.Tensor) -> torch.Tensor:
        return -((curvature * (changes - goal)) ** 2).sum(1)

    def along(mu: float) -> torch.Tensor:
        return curvature**2 * goal / (curvature**2 + mu)

    best = value(along(bisected(lambda mu: -float(along(mu).norm()), -radius))[None])
    clean = torch.from_numpy(GREY.ravel() / 255)
    lost = {
        name: float(
            (best - value(torch.from_numpy(climbed(name, lambda x: value(x.flatten(1) - clean), radius=radius)))).max()
        )
        for name in ASCENTS
    }
    assert 0 <= lost["apgd"] < 0.01 * -float(best)
    assert lost["apgd"] < lost["pgd"]


def test_the_adaptive_ascent_climbs_what_it_sees_only_through_noise() -> None:
    slope = torch.randn(1, 4, 4, generator=seeded(), dtype=torch.float64)
    generator = seeded(5)

    def noisy(x: torch.Tensor) -> torch.Tensor:
        at_random = slope + 0.5 * torch.randn(len(x), 1, 4, 4, generator=generator, dtype=torch.float64)
        return (x * at_random).sum((1, 2, 3))

    changes = climbed("apgd", noisy, radius=0.2, steps=40)
    assert (changes @ slope.numpy().ravel() > 0.8 * 0.2 * float(slope.norm())).all()


def test_periods_between_checkpoints_shrink() -> None:
    ends = sorted(checkpoints(100))
    assert ends[:4] == [22, 41, 57, 70]
    assert all(second - first >= 6 for first, second in pairwise(ends))
    assert max(ends) < 100
    assert checkpoints(1) == {1}
