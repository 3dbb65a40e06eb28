"""Draws that are to vote, and the batches that they vote in: of one request or of several that are alike."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Shaped

from ndc_core.classifiers.voter import NO_CLASS, IndependentDraws, PathDraws, Prediction, Voter
from ndc_core.models.forward_passes import Task
from ndc_core.noise.draw_generators import Phase, draw_key, draw_path_noise, input_generator
from ndc_core.noise.grid import path_levels
from ndc_core.noise.lattice import noisy_images
from ndc_core.noise.shared_path import PATH_NOISES, PathNoise, sigmas_on_path
from ndc_core.noise.smoothing import NOISES, NoiseName, NoNoise
from ndc_core.noise.step_streams import step_streams
from ndc_core.noise.streams import DrawNoise
from ndc_core.space import sigma_to_model, sigma_to_pixel

Image = Shaped[np.ndarray, "c h w"]

# Memory of one actor for noise and losses, of the batches that vote and of those whose noise is drawn ahead.
MEMORY_BYTES = 256 * 2**20
GPU_SHARE = 32  # on a GPU, where many more draws must be under way, a 32nd of its memory
BATCHES_IN_MEMORY = 16
# With rows of one class and step a batch fills at most this share of a pass (1/4): few enough that others go on while
# one waits for answers, and enough draws that the fixed cost of a batch does not matter.
SHARE_OF_A_PASS, FEWEST_DRAWS = 4, 64


@dataclass(frozen=True)
class VoteRequest:
    """Draws of an image that are to vote, at one noise level or at several on one path.

    The noise of a path is drawn for all levels of the run, `all_sigmas`, so that a level's votes do not depend on which
    others vote with it. A vote may stop when its level's candidate is out of the race (see
    `scoring.score_on_shared_path`). The image is 8-bit, or with `float` noise pixels in double precision. The noise
    `none` is for DC, whose steps draw their noise on a lattice (see `lattice`).
    """

    image: Image
    image_id: str
    sigma_pixel: tuple[float, ...]
    noise: NoiseName
    seed: int
    phase: Phase
    draws: range
    keep_scores: bool = False
    candidates: tuple[int, ...] = ()
    all_sigmas: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        assert len(self.draws)

    @property
    def kind(self) -> tuple[tuple[float, ...], NoiseName, tuple[float, ...]]:
        """Draws of requests of one kind can vote in one batch: on the same levels, with noise of the same law."""
        return self.sigma_pixel, self.noise, self.all_sigmas

    @property
    def taus_model(self) -> tuple[float, ...]:
        return tuple(sigma_to_model(sigma) for sigma in self.sigma_pixel)


Piece = tuple[VoteRequest, Sequence[int]]  # some draws of a request


def prepare(classifier: Voter, pieces: Sequence[Piece]) -> Task[list[Prediction]]:
    """Draws the noise that a batch of one kind begins with; gives its task, which draws more as votes reach it.

    Raises:
        ValueError: an image that does not fit the model or the noise.
    """
    for request, _ in pieces:
        if request.image.shape != tuple(classifier.image_shape):
            raise ValueError(
                f"image {request.image_id} has shape {request.image.shape}, "
                f"the model takes {tuple(classifier.image_shape)}"
            )
    if classifier.one_path:
        return classifier.votes(_path_draws(classifier, pieces))
    first = pieces[0][0]
    if first.noise == "none":
        return classifier.votes(_lattice_draws(classifier, pieces))
    z, noise = noisy_inputs(classifier, pieces)
    (tau_model,) = first.taus_model
    return classifier.votes(IndependentDraws(z, tau_model, noise.refine, noise.sift, _candidates_of(pieces)))


def noisy_inputs(classifier: Voter, pieces: Sequence[Piece]) -> tuple[Float[np.ndarray, "draws c h w"], DrawNoise]:
    """The noisy image of each draw in model space, and all noise of the draws; that of the steps is not drawn yet."""
    shape, first = classifier.image_shape, pieces[0][0]
    law, keys, inputs, z = NOISES[first.noise](first.sigma_pixel[0]), [], [], []
    for request, draws in pieces:
        own = [draw_key(seed=request.seed, image_id=request.image_id, phase=request.phase, draw=draw) for draw in draws]
        inputs.append(np.stack([law.draw(input_generator(key), shape) for key in own]))
        z.append(law.add(request.image, inputs[-1]))
        keys += own
    refine_steps, sift_steps = classifier.noise_steps
    streams = step_streams(keys, image_shape=shape, refine_steps=refine_steps, sift_steps=sift_steps)
    return np.concatenate(z), DrawNoise(np.concatenate(inputs), *streams)


def _candidates_of(pieces: Sequence[Piece]) -> np.ndarray:
    """(taus, draws)"""
    return np.concatenate(
        [
            np.tile(np.array(request.candidates or (NO_CLASS,) * len(request.sigma_pixel))[:, None], len(draws))
            for request, draws in pieces
        ],
        axis=1,
    )


def _path_draws(classifier: Voter, pieces: Sequence[Piece]) -> PathDraws:
    """Noise on a path adds up from its lowest level: later noise cannot be drawn without the earlier."""
    first = pieces[0][0]
    assert classifier.grid is not None
    path_sigmas = sigmas_on_path(classifier.grid, first.all_sigmas or first.sigma_pixel)
    path_noise = PATH_NOISES[first.noise](path_sigmas)
    # A level's noisy image is a function of its own noise, not of how it was reached (rules S2 and S8).

    def noisy(request: VoteRequest, draws: Sequence[int]) -> Float[np.ndarray, "draws path_sigmas c h w"]:
        noise = _path_noise(request, draws, path_noise, classifier.image_shape)
        return NOISES[first.noise].add(request.image, noise).astype(np.float32)

    z = np.concatenate([noisy(request, draws) for request, draws in pieces])
    levels = [sigma_to_pixel(level) for level in path_levels(classifier.grid, taus_model=first.taus_model)]
    return PathDraws(
        tuple(z[:, path_sigmas.index(sigma)] for sigma in first.sigma_pixel),
        z[:, [path_sigmas.index(level) for level in levels]],
        first.taus_model,
        _candidates_of(pieces),
    )


def _path_noise(
    request: VoteRequest, draws: Sequence[int], path_noise: PathNoise, image_shape: tuple[int, int, int]
) -> np.ndarray:
    return draw_path_noise(
        seed=request.seed,
        image_id=request.image_id,
        phase=request.phase,
        draws=draws,
        path_noise=path_noise,
        image_shape=image_shape,
    )


def _lattice_draws(classifier: Voter, pieces: Sequence[Piece]) -> PathDraws:
    """The noise of all levels is drawn at once: these votes are for the scores, which need all levels."""
    if classifier.grid is None or not classifier.takes_clean_images:
        raise ValueError("noise = 'none' is for the classifier dc without sift: set noise to 'integer' or 'float'")
    levels, clean, noisy = path_levels(classifier.grid, taus_model=(0.0,)), [], []
    for request, draws in pieces:
        if request.sigma_pixel != (0.0,):
            raise ValueError(f"noise = 'none' has no sigma_pixel, and it is {request.sigma_pixel[0]:g}; set it to 0")
        clean.append(np.repeat(NoNoise.add(request.image, np.zeros((1, *request.image.shape))), len(draws), axis=0))
        noisy.append(
            noisy_images(
                request.image, levels, seed=request.seed, image_id=request.image_id, phase=request.phase, draws=draws
            )
        )
    return PathDraws((np.concatenate(clean),), np.concatenate(noisy), (0.0,), _candidates_of(pieces))


def memory_bytes(device: torch.device) -> int:
    """For noise and losses; no vote depends on it."""
    if device.type != "cuda":
        return MEMORY_BYTES
    return max(MEMORY_BYTES, torch.cuda.get_device_properties(device).total_memory // GPU_SHARE)


def bytes_of_a_draw(classifier: Voter, request: VoteRequest) -> int:
    levels, steps = len(request.sigma_pixel), sum(classifier.noise_steps)
    noise_bytes = request.image.size * ((steps + 2 * levels) * 24 if classifier.one_path else (steps + 2) * 4)
    return noise_bytes + classifier.noise_steps[0] * classifier.num_classes * (8 * (levels + 2) + 2)


def draws_of_a_batch(classifier: Voter, request: VoteRequest) -> int:
    """At most; a function of shapes and of the device's memory."""
    fits = memory_bytes(torch.device(classifier.device)) // BATCHES_IN_MEMORY // bytes_of_a_draw(classifier, request)
    return max(1, min(max(FEWEST_DRAWS, classifier.rows_per_pass // SHARE_OF_A_PASS), fits))
