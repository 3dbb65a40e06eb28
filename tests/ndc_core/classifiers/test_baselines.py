"""Votes of the baselines against closed forms, and that a vote is a function of its own noise."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from ndc_core.analysis.attacks import ScoreObjective
from ndc_core.classifiers.baselines import Baseline
from ndc_core.classifiers.losses import NonFiniteScoreError
from ndc_core.classifiers.unconditional import label_mean, null_label
from ndc_core.classifiers.voter import IndependentDraws
from ndc_core.models.forward_passes import answer
from ndc_core.voting import count_votes
from tests.support.fakes import GaussianDenoiser, many_gaussians, two_gaussians


class NearestMean:
    """Scores a class by how near its mean is."""

    def __init__(self, means: Tensor) -> None:
        self.means = means.float()
        self.num_classes, dimension = means.shape
        self.image_shape = (1, 1, dimension)
        self.rows = 0

    def __call__(self, z: Tensor) -> Tensor:
        self.rows += len(z)
        return -(torch.cdist(z.flatten(1), self.means) ** 2)


class Recorder:
    """A denoiser whose data is one image; records its inputs."""

    image_shape, num_classes = (1, 1, 4), 0

    def __init__(self) -> None:
        self.asked: list[tuple[float, Tensor]] = []

    def __call__(self, z: Tensor, sigma_model: Tensor, label: Tensor) -> Tensor:
        self.asked.append((float(sigma_model[0]), z))
        return torch.full_like(z, 0.5)


def accuracy(baseline: Baseline, truth: GaussianDenoiser, *, tau_model: float, draws: int = 4000) -> float:
    """Of votes on fresh images of class 0."""
    z = truth.sample(0, draws, tau_model=tau_model, seed=3)
    shape = (draws, baseline.noise_steps[0], *truth.image_shape)
    noise = np.random.default_rng(4).standard_normal(shape, dtype=np.float32)
    task = replace(baseline, rows_per_pass=4000).votes(IndependentDraws(z, tau_model, noise, noise[:, :0]))
    (prediction,) = answer(task, rows_per_pass=4000, device=torch.device("cpu"))
    return float((prediction.winners == 0).mean())


def four_errors(share: float, draws: int = 4000) -> float:
    return 4 * math.sqrt(share * (1 - share) / draws)


@pytest.mark.parametrize("tau_model", [0.25, 0.5, 1.0])
def test_a_plain_classifier_and_one_behind_the_exact_denoiser_vote_as_well_as_theory_allows(tau_model: float) -> None:
    truth = two_gaussians()
    best = 1 - truth.bayes_error(tau_model=tau_model)
    network = NearestMean(truth.means)
    for baseline in (Baseline(network), Baseline(network, null_label(truth))):
        assert abs(accuracy(baseline, truth, tau_model=tau_model) - best) < four_errors(best)


def test_one_path_of_many_steps_samples_a_class_and_many_paths_find_the_best() -> None:
    truth, tau_model = two_gaussians(variance=0.01), 1.0
    z = truth.sample(0, 4000, tau_model=tau_model, seed=3)
    of_sampling = float(np.mean(1 / (1 + np.exp(-truth.log_likelihood_ratio(z, tau_model=tau_model)))))
    best = 1 - truth.bayes_error(tau_model=tau_model)
    assert best - of_sampling > 0.05
    single = Baseline(NearestMean(truth.means), null_label(truth), steps=20)
    assert abs(accuracy(single, truth, tau_model=tau_model) - of_sampling) < four_errors(of_sampling) + 0.01
    many = replace(single, paths=21)
    share = accuracy(many, truth, tau_model=tau_model, draws=1000)
    assert abs(share - best) < four_errors(best, 1000) + 0.01


def test_noise_is_removed_in_steps_of_the_right_size() -> None:
    """From one image x, the denoiser's input at level s must be x with Gaussian noise of s, at every step."""
    recorder = Recorder()
    baseline = Baseline(NearestMean(torch.eye(4)), null_label(recorder), steps=4, paths=2, rows_per_pass=20_000)
    rng, draws, tau_model = np.random.default_rng(0), 20_000, 0.8
    z = 0.5 + tau_model * rng.standard_normal((draws, 1, 1, 4))
    noise = rng.standard_normal((draws, baseline.noise_steps[0], 1, 1, 4), dtype=np.float32)
    answer(
        baseline.votes(IndependentDraws(z, tau_model, noise, noise[:, :0])),
        rows_per_pass=20_000,
        device=torch.device("cpu"),
    )
    by_level = dict(recorder.asked)
    assert list(by_level) == pytest.approx([0.8, 0.6, 0.4, 0.2])
    for level, noisy in by_level.items():
        added = (noisy - 0.5).flatten()
        assert float(added.std()) == pytest.approx(level, rel=0.02)
        assert abs(float(added.mean())) < 5 * level / math.sqrt(len(added) / 2)


@pytest.mark.parametrize(("steps", "paths", "estimate"), [(1, 1, null_label), (3, 5, null_label), (2, 2, label_mean)])
def test_every_row_that_goes_through_a_network_is_an_evaluation(steps: int, paths: int, estimate) -> None:
    truth = many_gaussians(3)
    rows = {"denoiser": 0}

    class Counting(GaussianDenoiser):
        def __call__(self, z: Tensor, sigma_model: Tensor, label: Tensor) -> Tensor:
            rows["denoiser"] += len(z)
            return super().__call__(z, sigma_model, label)

    network = NearestMean(truth.means)
    baseline = Baseline(network, estimate(Counting(truth.means, truth.variance)), steps, paths, rows_per_pass=1)
    counts = count_votes(baseline, image_of(truth), sigma_pixel=0.25, **DRAWS)
    assert counts.evaluations == rows["denoiser"] + network.rows == 6 * baseline.most_evaluations_per_vote


DRAWS = {"noise": "integer", "seed": 0, "image_id": "a", "phase": "estimation", "draws": range(6)}


def image_of(truth: GaussianDenoiser) -> np.ndarray:
    return np.full(truth.image_shape, 128, dtype=np.uint8)


def test_votes_do_not_depend_on_the_rows_of_a_pass_or_on_other_draws() -> None:
    truth = two_gaussians()
    baseline = Baseline(NearestMean(truth.means), null_label(truth), steps=3, paths=3, rows_per_pass=64)

    def winners(rows: int, *pieces: range) -> list[int]:
        each = [
            count_votes(
                replace(baseline, rows_per_pass=rows), image_of(truth), sigma_pixel=0.4, **{**DRAWS, "draws": piece}
            )
            for piece in pieces
        ]
        return [int(n) for n in sum(counts.votes for counts in each)]

    whole = winners(64, range(40))
    assert min(whole) > 0
    assert whole == winners(7, range(40)) == winners(64, range(3), range(3, 25), range(25, 40))


def test_a_score_that_is_not_finite_is_an_error_with_image_draw_and_class() -> None:
    class Broken(NearestMean):
        def __call__(self, z: Tensor) -> Tensor:
            scores = super().__call__(z)
            scores[:, 1] = torch.nan
            return scores

    with pytest.raises(
        NonFiniteScoreError, match=r"image a, sigma_pixel 0.25, estimation draw 0, class 1 of the image"
    ):
        count_votes(Baseline(Broken(torch.eye(4))), np.zeros((1, 1, 4), np.uint8), sigma_pixel=0.25, **DRAWS)


def test_impossible_settings_are_refused() -> None:
    network, truth = NearestMean(torch.eye(4)), many_gaussians(3)
    with pytest.raises(ValueError, match="3 paths of 1 step are all the same"):
        Baseline(network, null_label(two_gaussians()), paths=3)
    with pytest.raises(ValueError, match=r"the denoiser makes images of shape \(1, 1, 16\), the classifier takes"):
        Baseline(network, null_label(truth))
    with pytest.raises(ValueError, match="steps and paths must be at least 1"):
        Baseline(network, null_label(two_gaussians()), steps=0)


def test_the_attack_sees_through_all_steps_of_a_baseline() -> None:
    """The gradient that an attack follows is the derivative of what it raises, by differences."""
    truth = two_gaussians()
    baseline = Baseline(NearestMean(truth.means), null_label(truth), steps=3, paths=2)
    x = torch.full((1, *truth.image_shape), 0.45, dtype=torch.float64)

    def value(x: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        scores = ScoreObjective(baseline, (0, 1), 0.25, 8, True, generator).scores((2 * x - 1).repeat(8, 1, 1, 1))
        return (scores[:, 1] - scores[:, 0]).sum()

    (gradient,) = torch.autograd.grad(value(x.requires_grad_()), x)
    for pixel in range(4):
        step = torch.zeros_like(x)
        step[0, 0, 0, pixel] = 1e-2
        with torch.no_grad():
            slope = (value(x + step) - value(x - step)) / 2e-2
        assert float(gradient[0, 0, 0, pixel]) == pytest.approx(float(slope), rel=0.05)
