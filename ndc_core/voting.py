"""Votes of a smoothed classifier on one image, and the certificate they give."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, UInt8

from ndc_core.certificates import Certificate, cohen
from ndc_core.classifiers import DiffusionClassifier
from ndc_core.randomness import DrawNoise, Phase, draw_noise
from ndc_core.scores import NonFiniteScoreError
from ndc_core.space import bytes_to_pixels, pixels_to_model, sigma_to_model

NOISE_BYTES_AT_ONCE = 64 * 2**20


@dataclass(frozen=True)
class VoteCounts:
    """How many draws each class won, and what it cost."""

    votes: Int[np.ndarray, " classes"]
    evaluations: int


def noisy_inputs(
    image: UInt8[np.ndarray, "c h w"], noise: Float[np.ndarray, "draws c h w"], *, sigma_pixel: float
) -> Float[np.ndarray, "draws c h w"]:
    """The image plus Gaussian noise of sigma_pixel, in model space and double precision."""
    return pixels_to_model(bytes_to_pixels(image) + sigma_pixel * noise)


def count_votes(
    classifier: DiffusionClassifier,
    image: UInt8[np.ndarray, "c h w"],
    *,
    sigma_pixel: float,
    seed: int,
    image_id: str,
    phase: Phase,
    draws: range,
) -> VoteCounts:
    """Votes of the named draws; the same draws give the same votes whenever and wherever they are asked for.

    Raises:
        ValueError: an image that does not fit the denoiser.
        NonFiniteScoreError: the denoiser returned NaN or infinity; image, draw, sigma and class are named.
    """
    if image.shape != tuple(classifier.denoiser.image_shape):
        raise ValueError(
            f"image {image_id} has shape {image.shape}, the denoiser takes {tuple(classifier.denoiser.image_shape)}"
        )
    votes = np.zeros(classifier.denoiser.num_classes, dtype=np.int64)
    evaluations = 0
    for batch in _batches(classifier, draws, image.size):
        noise = _noise(classifier, image, seed=seed, image_id=image_id, phase=phase, draws=batch)
        z = noisy_inputs(image, noise.input, sigma_pixel=sigma_pixel)
        try:
            prediction = classifier.predict(z, tau_model=sigma_to_model(sigma_pixel), noise=noise)
        except NonFiniteScoreError as error:
            where = f"image {image_id}, sigma_pixel {sigma_pixel:g}, {phase} draw {batch[error.row]}, {error.where}"
            raise NonFiniteScoreError(where, row=error.row) from error
        votes += np.bincount(prediction.winners, minlength=len(votes))
        evaluations += prediction.evaluations
    return VoteCounts(votes, evaluations)


def _noise(
    classifier: DiffusionClassifier,
    image: np.ndarray,
    *,
    seed: int,
    image_id: str,
    phase: Phase,
    draws: Sequence[int],
) -> DrawNoise:
    sift = classifier.active_sift
    return draw_noise(
        seed=seed,
        image_id=image_id,
        phase=phase,
        draws=draws,
        image_shape=image.shape,
        refine_steps=classifier.grid.steps,
        sift_steps=sift.grid.steps if sift else 0,
    )


def _batches(classifier: DiffusionClassifier, draws: range, dimension: int) -> list[range]:
    """As many draws at once as their noise fits in memory; a function of shapes only."""
    sift = classifier.active_sift
    steps = classifier.grid.steps + (sift.grid.steps if sift else 0)
    at_once = max(1, NOISE_BYTES_AT_ONCE // (4 * dimension * (steps + 2)))
    return [draws[first : first + at_once] for first in range(0, len(draws), at_once)]


def certify(
    classifier: DiffusionClassifier,
    image: UInt8[np.ndarray, "c h w"],
    *,
    sigma_pixel: float,
    alpha: float,
    selection_votes: int = 100,
    estimation_votes: int = 10_000,
    seed: int = 0,
    image_id: str = "image",
) -> Certificate:
    """Certifies one 8-bit image: no change of L2 norm below the certificate's radius (pixels in [0, 1])
    changes the smoothed classifier's class, with probability at least 1 - alpha over the votes.

    Images whose certificates shall fail independently need different `image_id`s.

    Raises:
        ValueError: sigma or alpha out of range, no votes, or an image that does not fit the denoiser.
    """

    def counts(phase: Phase, votes: int) -> list[int]:
        tally = count_votes(
            classifier,
            image,
            sigma_pixel=sigma_pixel,
            seed=seed,
            image_id=image_id,
            phase=phase,
            draws=range(votes),
        )
        return tally.votes.tolist()

    selection, estimation = counts("selection", selection_votes), counts("estimation", estimation_votes)
    return cohen(selection, estimation, sigma_pixel=sigma_pixel, alpha=alpha)
