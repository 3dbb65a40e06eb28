"""Noise of steps that is drawn when a vote gets there."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ndc_core import vote_requests
from ndc_core.classifiers.diffusion import DiffusionClassifier
from ndc_core.classifiers.racing import RaceSpec
from ndc_core.classifiers.step_noise import StepNoise
from ndc_core.classifiers.voter import IndependentDraws
from ndc_core.models.forward_passes import answer
from ndc_core.noise.draw_generators import draw_key
from ndc_core.noise.grid import GridSpec
from ndc_core.noise.step_streams import REFINE, StepStreams
from ndc_core.noise.streams import DrawNoise
from tests.support.fakes import many_gaussians

CPU = torch.device("cpu")
SHAPE = (1, 2, 3)


def streams(draws: int = 3, steps: int = 5, **changes) -> StepStreams:
    keys = [draw_key(seed=0, image_id="a", phase="estimation", draw=draw) for draw in range(draws)]
    return replace(StepStreams(keys, steps, SHAPE, REFINE), **changes)


def test_a_steps_noise_does_not_depend_on_when_or_with_what_it_is_drawn() -> None:
    draw, step = torch.tensor([2, 0, 2]), torch.tensor([4, 1, 0])
    some = streams(steps=9).draw(streams().key_words[draw], step)
    np.testing.assert_array_equal(some, streams().all()[draw, step])


def test_steps_of_a_draw_and_draws_of_a_step_are_independent() -> None:
    flat = streams(300, 200).all().reshape(300, 200, -1).numpy()
    assert abs(flat.mean()) < 0.01
    assert abs(flat.std() - 1) < 0.01
    for first, second in ((flat[:, :-1], flat[:, 1:]), (flat[:-1], flat[1:]), (flat[..., :-1], flat[..., 1:])):
        assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.01


def test_noise_that_nobody_asked_for_is_not_drawn() -> None:
    noise = StepNoise(streams(), CPU)
    reach = noise.reach(4)  # a grid of four levels where there is noise for five
    reach(np.array([1, 1, 2]), np.array([0, 0, 3]))
    reach(np.array([1]), np.array([0]))
    there = noise.values.isfinite().all(dim=(2, 3, 4)).numpy()
    assert set(zip(*map(list, there.nonzero()), strict=True)) == {(1, 1), (2, 4)}
    np.testing.assert_array_equal(noise.values[there].numpy(), streams().all()[there].numpy())


@pytest.mark.parametrize("race", [None, RaceSpec(1.2)])
def test_votes_are_those_with_all_noise_drawn_before_and_a_race_draws_less(race, monkeypatch) -> None:
    denoiser = many_gaussians(5, seed=3)
    grid = GridSpec(points=14, sigma_model_min=0.3, sigma_model_max=3.0, spacing="log")
    classifier = DiffusionClassifier(denoiser, "apndc", grid, race=race, rows_per_pass=32)
    image = np.full(denoiser.image_shape, 120, np.uint8)
    request = vote_requests.VoteRequest(image, "x", (0.25,), "integer", 0, "estimation", range(50))
    z, lazy = vote_requests.noisy_inputs(classifier, [(request, request.draws)])
    counts, own = [], StepStreams.draw
    monkeypatch.setattr(StepStreams, "draw", lambda *args: (counts.append(len(args[2])), own(*args))[1])

    def votes(noise: DrawNoise):
        draws = IndependentDraws(z, 0.5, noise.refine, noise.sift)
        (prediction,) = answer(classifier.votes(draws), rows_per_pass=32, device=CPU)
        return prediction

    late = votes(lazy)
    drawn = sum(counts)
    early = votes(DrawNoise(lazy.input, lazy.refine.all().numpy(), lazy.sift.all().numpy()))
    np.testing.assert_array_equal(late.scores, early.scores)
    np.testing.assert_array_equal(late.winners, early.winners)
    assert drawn == 50 * 12 if race is None else drawn < 50 * 12
