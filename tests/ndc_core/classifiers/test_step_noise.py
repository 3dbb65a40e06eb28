"""Noise of steps that is drawn when a vote gets there."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

from ndc_core import vote_requests
from ndc_core.classifiers.diffusion import DiffusionClassifier
from ndc_core.classifiers.racing import RaceSpec
from ndc_core.classifiers.scoring import score_independently
from ndc_core.classifiers.step_noise import StepNoise
from ndc_core.models.forward_passes import answer
from ndc_core.noise.grid import GridSpec
from ndc_core.noise.streams import REFINE, DrawNoise, StepStreams, draw_key
from tests.support.fakes import many_gaussians

CPU = torch.device("cpu")
SHAPE = (1, 2, 3)


def streams(draws: int = 3, steps: int = 5, **changes) -> StepStreams:
    keys = [draw_key(seed=0, image_id="a", phase="estimation", draw=draw) for draw in range(draws)]
    return replace(StepStreams(keys, steps, SHAPE, REFINE), **changes)


def test_a_step_has_the_same_noise_whenever_and_beside_whatever_it_is_drawn() -> None:
    whole = streams().all()
    some = np.empty((3, *SHAPE), dtype=np.float32)
    streams(steps=9).fill(some, np.array([2, 0, 2]), np.array([4, 1, 0]))
    np.testing.assert_array_equal(some, whole[[2, 0, 2], [4, 1, 0]])


def test_threads_draw_the_same() -> None:
    with ThreadPoolExecutor(4) as threads:
        np.testing.assert_array_equal(streams(40, 30, threads=threads).all(), streams(40, 30).all())


def test_steps_of_a_draw_and_draws_of_a_step_are_independent() -> None:
    flat = streams(300, 200).all().reshape(300, 200, -1)
    assert abs(flat.mean()) < 0.01
    assert abs(flat.std() - 1) < 0.01
    for one, other in ((flat[:, :-1], flat[:, 1:]), (flat[:-1], flat[1:]), (flat[..., :-1], flat[..., 1:])):
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.01


def test_what_nobody_asked_for_is_not_there() -> None:
    noise = StepNoise(streams(), CPU)
    reach = noise.reach(4)  # a grid of four levels where there is noise for five
    reach(np.array([1, 1, 2]), np.array([0, 0, 3]))
    reach(np.array([1]), np.array([0]))
    there = noise.values.isfinite().all(dim=(2, 3, 4)).numpy()
    assert set(zip(*map(list, there.nonzero()), strict=True)) == {(1, 1), (2, 4)}
    np.testing.assert_array_equal(noise.values[there].numpy(), streams().all()[there])


@pytest.mark.parametrize("race", [None, RaceSpec(1.2)])
def test_votes_are_those_with_all_noise_drawn_before_and_a_race_draws_less(race, monkeypatch) -> None:
    denoiser = many_gaussians(5, seed=3)
    grid = GridSpec(points=14, sigma_model_min=0.3, sigma_model_max=3.0, spacing="log")
    classifier = DiffusionClassifier(denoiser, "apndc", grid, race=race, rows_per_pass=32)
    image = np.full(denoiser.image_shape, 120, np.uint8)
    request = vote_requests.VoteRequest(image, "x", (0.25,), "integer", 0, "estimation", range(50))
    z, lazy = vote_requests.noisy_inputs(classifier, [(request, request.draws)])
    filled, own = [], StepStreams.fill
    monkeypatch.setattr(StepStreams, "fill", lambda *args: (filled.append(len(args[2])), own(*args))[1])

    def votes(noise: DrawNoise):
        (found,) = answer(score_independently(classifier, z, tau_model=0.5, noise=noise), rows_per_pass=32, device=CPU)
        return found

    late = votes(lazy)
    drawn = sum(filled)
    early = votes(DrawNoise(lazy.input, lazy.refine.all(), lazy.sift.all()))
    np.testing.assert_array_equal(late.scores, early.scores)
    np.testing.assert_array_equal(late.winners, early.winners)
    assert drawn == 50 * 12 if race is None else drawn < 50 * 12
