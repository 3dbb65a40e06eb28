"""Heads whose images are never made give the same votes as the same heads with their images."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ndc_core.analysis.attacks import ScoreObjective
from ndc_core.classifiers.diffusion import DiffusionClassifier
from ndc_core.classifiers.losses import NonFiniteScoreError
from ndc_core.classifiers.racing import RaceSpec
from ndc_core.classifiers.scoring import predict, scores
from ndc_core.models.forward_passes import in_turn
from ndc_core.noise.grid import GridSpec
from ndc_core.noise.smoothing import FloatNoise
from ndc_core.noise.streams import DrawNoise, draw_noise
from ndc_core.vote_requests import VoteRequest
from ndc_core.voting import VoteCounts, stream_votes
from tests.support.linear_heads import SIDE, Explicit, linear_heads

SHAPE, TAU = (3, SIDE, SIDE), 0.25
GRID = GridSpec(points=8, sigma_model_max=1.5, spacing="log", sigma_model_min=0.05)
LEVELS = GridSpec(levels=(0.3, 0.45, 0.7, 1.1, 1.6))
RACES = {"all classes": None, "racing": RaceSpec(gap=2.0)}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Threads wait for each other where cores are busy."""
    torch.set_num_threads(1)


def draws(count: int = 24) -> tuple[np.ndarray, DrawNoise]:
    noise = draw_noise(
        seed=0,
        image_id="image",
        phase="estimation",
        draws=range(count),
        input_noise=FloatNoise(TAU / 2),
        image_shape=SHAPE,
        refine_steps=GRID.steps,
        sift_steps=0,
    )
    return FloatNoise.add(image(), noise.input), noise


def image(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, SHAPE, dtype=np.uint8)


def both(name: str, grid: GridSpec, race: RaceSpec | None, **more: object) -> list[DiffusionClassifier]:
    denoiser = linear_heads()
    linear = DiffusionClassifier(denoiser, name, grid, race=race, rows_per_pass=16, **more)  # type: ignore[arg-type]
    return [linear, replace(linear, denoiser=Explicit(denoiser))]


@pytest.mark.parametrize("race", RACES)
@pytest.mark.parametrize("name", ["dc", "epndc", "apndc", "apndc-ensemble"])
def test_every_classifier_votes_as_with_the_images(name: str, race: str) -> None:
    z, noise = draws()
    linear, explicit = (
        predict(classifier, z, tau_model=TAU, noise=noise) for classifier in both(name, GRID, RACES[race])
    )
    assert len(set(linear.winners)) > 1
    np.testing.assert_array_equal(linear.winners, explicit.winners)
    np.testing.assert_array_equal(linear.cost, explicit.cost)
    np.testing.assert_allclose(linear.scores, explicit.scores, rtol=1e-4)
    of_all = [
        scores(classifier, z, tau_model=TAU, noise=noise) for classifier in both(name, GRID, RACES[race], loss_cap=0.5)
    ]
    np.testing.assert_allclose(*of_all, rtol=1e-4)


def requests(sigmas: tuple[float, ...]) -> list[tuple[str, VoteRequest]]:
    """For three images at all levels, or at fewer: their rows have more targets or fewer."""
    return [
        (
            f"{name}/{own}",
            VoteRequest(image(seed), name, own, "float", 0, "estimation", range(count), all_sigmas=sigmas),
        )
        for seed, (name, count) in enumerate([("a", 7), ("b", 20), ("c", 3)])
        for own in (sigmas, sigmas[1:])
    ]


def votes_of(classifier: DiffusionClassifier, waiting: list[tuple[str, VoteRequest]]) -> dict[str, list[list[int]]]:
    votes = {}
    for name, counts in stream_votes(classifier, in_turn(waiting)):
        assert not isinstance(counts, Exception), counts
        votes[name] = [votes_at(level) for level in counts]
    return votes


def votes_at(counts: VoteCounts) -> list[int]:
    votes: list[int] = counts.votes.tolist()
    return votes


@pytest.mark.parametrize("race", RACES)
@pytest.mark.parametrize("name", ["epndc", "apndc"])
def test_levels_that_share_a_path_vote_as_with_the_images_whatever_else_is_asked(name: str, race: str) -> None:
    sigmas = (0.125, 0.2)
    linear, explicit = both(name, LEVELS, RACES[race], one_path=True)
    together = votes_of(linear, requests(sigmas))
    assert together == votes_of(explicit, requests(sigmas))
    alone: dict[str, list[list[int]]] = {}
    for request in requests(sigmas):
        alone |= votes_of(linear, [request])
    assert together == alone
    for image_id in ("a", "b", "c"):  # a level's votes do not depend on which others vote with it
        assert together[f"{image_id}/{sigmas}"][1] == together[f"{image_id}/{sigmas[1:]}"][0]


def test_a_network_that_is_not_finite_never_votes() -> None:
    z, noise = draws(3)
    (linear, _) = both("apndc", GRID, None)
    linear.denoiser.network.heads[1, 0, 0] = float("nan")  # type: ignore[attr-defined]
    with pytest.raises(NonFiniteScoreError):
        predict(linear, z, tau_model=TAU, noise=noise)


def test_an_attack_differentiates_the_scores_that_vote() -> None:
    gradients = []
    for classifier in both("apndc", GRID, None):
        objective = ScoreObjective(classifier, (1, 0, 3), TAU / 2, 2, True, torch.Generator().manual_seed(0))
        x = torch.from_numpy(image()[None] / 255.0).requires_grad_()
        gradients.append(torch.autograd.grad(objective(x).sum(), x)[0])
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-4)
