"""The Lipschitz constant against gradients of exact expected scores, and the certificate against known margins."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import ndtr

from ndc_core.certificates.certificate import LipschitzTerms, Tally, Terms
from ndc_core.certificates.lipschitz import Lipschitz, effective_cap, margin_constant_model
from ndc_core.classifiers.diffusion import DiffusionClassifier
from ndc_core.noise.grid import WEIGHTS, GridSpec, build_grid
from ndc_core.voting import count_votes

POINTS, STEP, DRAWS = 10_000, 1e-5, 6_000


@dataclass(frozen=True)
class StepDenoiser:
    """For each class one of two images, on either side of a hyperplane: the steepest a clipped denoiser can be.

    Every expected loss has a closed form: P(v . (z + sigma e) > b) is a normal probability.
    """

    above: np.ndarray  # classes, dimension
    below: np.ndarray
    normal: np.ndarray  # classes, dimension; of length 1
    offset: np.ndarray  # classes

    @property
    def num_classes(self) -> int:
        return len(self.above)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return 1, 1, self.above.shape[1]

    def __call__(self, z: torch.Tensor, sigma_model: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        y = label.argmax(1).numpy()
        side = (z.flatten(1).double().numpy() * self.normal[y]).sum(1) > self.offset[y]
        chosen = np.where(side[:, None], self.above[y], self.below[y])
        return torch.from_numpy(chosen).float().view_as(z)

    def expected_scores(
        self, z: np.ndarray, level: np.ndarray, weight: np.ndarray, *, loss_cap: float | None
    ) -> np.ndarray:
        """Exact expected score of each class for each row of z."""
        limit = effective_cap(loss_cap) * z.shape[1]
        up, down = (
            np.minimum(((side[None] - z[:, None]) ** 2).sum(2), limit)[..., None] for side in (self.above, self.below)
        )
        share = ndtr((z @ self.normal.T - self.offset)[..., None] / level)
        return -((up * share + down * (1 - share)) @ weight)


def random_denoiser(generator: np.random.Generator, dimension: int, *, near: float = 2.0) -> StepDenoiser:
    """Corners of [-1, 1]^D mostly, where slopes are largest; `near` draws the classes' images together."""
    above = generator.choice([-1.0, 1.0], (2, dimension))
    below = np.clip(above + near * generator.uniform(-1, 1, (2, dimension)), -1, 1)
    below = np.where(generator.random((2, 1)) < 0.5, -above, below)
    normal = np.where(generator.random((2, 1)) < 0.5, above, generator.standard_normal((2, dimension)))
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    return StepDenoiser(above, below, normal, generator.normal(0, 0.3, 2))


def margins(denoiser: StepDenoiser, z: np.ndarray, grid: GridSpec, weight: str, loss_cap: float | None) -> np.ndarray:
    levels = build_grid(grid, tau_model=0.0)
    scores = denoiser.expected_scores(z, levels.level, WEIGHTS[weight](levels), loss_cap=loss_cap)
    return scores[:, 0] - scores[:, 1]


def slopes(denoiser: StepDenoiser, z: np.ndarray, *args) -> np.ndarray:
    """Norm of the margin's gradient at each row, by central differences."""
    rows, dimension = z.shape
    steps = STEP * np.eye(dimension)
    moved = np.concatenate([z[:, None] + steps, z[:, None] - steps], axis=1).reshape(-1, dimension)
    ahead, behind = np.split(margins(denoiser, moved, *args).reshape(rows, 2 * dimension), 2, axis=1)
    return np.linalg.norm((ahead - behind) / (2 * STEP), axis=1)


def steepest(denoiser: StepDenoiser, grid: GridSpec, loss_cap: float | None, generator: np.random.Generator) -> float:
    """The largest slope over random points and the hyperplanes, then climbed from the best by an optimiser."""
    dimension = denoiser.above.shape[1]
    z = generator.uniform(-1, 1, (POINTS // 50, dimension))
    on_plane = z - ((z @ denoiser.normal[0]) - denoiser.offset[0])[:, None] * denoiser.normal[0]
    z = np.concatenate([z, on_plane.clip(-1, 1), np.sign(on_plane)])
    norms = slopes(denoiser, z, grid, "edm", loss_cap)
    start = z[norms.argmax()]
    climbed = minimize(
        lambda point: -slopes(denoiser, point[None], grid, "edm", loss_cap)[0],
        start,
        bounds=[(-1, 1)] * dimension,
        method="L-BFGS-B",
        options={"maxiter": 8},
    )
    return max(float(norms.max()), -float(climbed.fun))


@pytest.mark.parametrize("loss_cap", [None, 0.2, 1.0])
def test_no_gradient_of_the_exact_expected_score_exceeds_the_constant(loss_cap: float | None) -> None:
    """50 denoisers, 600 random points each and an adversarial search: 30,000 points and more for each cap."""
    generator, largest, points = np.random.default_rng(0), 0.0, 0
    for trial in range(50):
        dimension = int(generator.choice([1, 2, 4, 8]))
        # One step at a time is where the bound is tightest; several are what a classifier sums up.
        grid = GridSpec(3 + trial % 3, 2.0, "log", float(generator.choice([0.1, 0.3, 1.0])))
        level = build_grid(grid, tau_model=0.0)
        bound = margin_constant_model(level.level, WEIGHTS["edm"](level), dimension=dimension, loss_cap=loss_cap)
        near = 2.0 if loss_cap is None else 2 * math.sqrt(loss_cap)
        denoiser = random_denoiser(generator, dimension, near=near)
        largest = max(largest, steepest(denoiser, grid, loss_cap, generator) / bound)
        points += 3 * (POINTS // 50)
    print(
        f"\nloss cap {loss_cap}: the largest slope found is {largest:.3f} of the bound ({points:,} points and climbs)"
    )
    assert points >= POINTS
    assert 0.2 < largest <= 1 + 1e-6, "the bound holds and is not idle"


def test_the_bound_through_the_noise_is_reached_by_a_step() -> None:
    """In one dimension and near the target 1 the losses of -1 and 1 are 4 and 0, and they swap at a step."""
    sigma = np.array([0.01])
    swap = StepDenoiser(np.array([[1.0], [-1.0]]), np.array([[-1.0], [1.0]]), np.ones((2, 1)), np.array([0.999, 0.999]))
    z = np.array([[0.999]])

    def margin(x: np.ndarray) -> np.ndarray:
        scores = swap.expected_scores(x, sigma, np.ones(1), loss_cap=None)
        return scores[:, 0] - scores[:, 1]

    slope = abs(margin(z + 1e-6) - margin(z - 1e-6))[0] / 2e-6
    bound = margin_constant_model(sigma, np.ones(1), dimension=1, loss_cap=None)
    assert 0.95 < slope / bound <= 1


def test_the_scores_that_the_classifier_computes_are_those_of_the_closed_form() -> None:
    """So the constant is that of the score as computed: a sum over dimensions, capped before it is weighted."""
    generator = np.random.default_rng(3)
    denoiser = random_denoiser(generator, 4)
    image = generator.integers(0, 256, (1, 1, 4)).astype(np.uint8)
    grid = GridSpec(6, 2.0, "log", 0.3)
    levels = build_grid(grid, tau_model=0.0)
    for loss_cap in (None, 1.5):
        classifier = DiffusionClassifier(denoiser, "dc", grid=grid, weight="edm", rows_per_pass=4096, loss_cap=loss_cap)
        drawn = count_votes(
            classifier,
            image,
            sigma_pixel=0.0,
            noise="none",
            seed=0,
            image_id="a",
            phase="estimation",
            draws=range(DRAWS),
            keep_scores=True,
        )
        exact = denoiser.expected_scores(
            2 * (image.reshape(1, -1) / 255) - 1, levels.level, WEIGHTS["edm"](levels), loss_cap=loss_cap
        )
        error = drawn.scores.std(axis=0) / math.sqrt(DRAWS)
        assert (abs(drawn.scores.mean(axis=0) - exact[0]) <= 4.5 * error + 1e-6).all()


TERMS = Terms(
    sigma_pixel=0.0,
    alpha=0.01,
    votes=5_000,
    lipschitz=LipschitzTerms(GridSpec(6, 2.0, "log", 0.3), weight="edm", loss_cap=0.2, dimension=16, precision=0.1),
)


def scores_with_margin(margin: float, draws: int, seed: int) -> np.ndarray:
    """Class 2 leads class 0 by the margin on average, class 1 by five times as much."""
    generator = np.random.default_rng(seed)
    spread = margin * generator.uniform(-3, 3, (draws, 3))
    return spread + np.array([-margin, -5 * margin, 0.0])


def test_the_certificate_is_the_margins_bound_over_the_constant() -> None:
    method = Lipschitz(TERMS)
    margin = -method.lowest_margin / 40
    scores = scores_with_margin(margin, 2000, seed=0)
    tally = Tally([0, 0, 9], [[0, 0, 2000]], scores[:50], scores)
    certificate = method.certificate(tally)
    assert certificate.predicted == 2
    assert certificate.p_lower is None
    assert certificate.radius == pytest.approx(certificate.margin_lower / method.constant_pixel)
    assert 0.7 * margin < certificate.margin_lower < margin
    assert method.decided(tally) == (certificate.margin_lower >= 0.9 * _smallest_mean(scores))


def _smallest_mean(scores: np.ndarray) -> float:
    return float((scores[:, [2]] - scores[:, :2]).mean(axis=0).min())


def test_it_abstains_where_no_margin_is_proved_and_stops_where_a_rival_is_ahead() -> None:
    method = Lipschitz(TERMS)
    margin = -method.lowest_margin / 40
    scores = scores_with_margin(margin, 2000, seed=0)
    few = Tally([0, 0, 9], [[0, 0, 20]], scores[:50], scores[:20])
    assert method.certificate(few).predicted is None
    assert not method.decided(few)
    behind = Tally([0, 0, 9], [[2000, 0, 0]], scores[:50], scores[:, [2, 1, 0]])
    assert method.decided(behind)
    assert method.certificate(behind).radius == 0


def test_the_capped_constant_is_an_order_smaller() -> None:
    grid = build_grid(GridSpec(10, 2.0, "log", 0.6), tau_model=0.0)
    weight = WEIGHTS["edm"](grid)
    plain, capped = (margin_constant_model(grid.level, weight, dimension=3072, loss_cap=cap) for cap in (None, 0.2))
    assert 15 < plain / capped < 21
