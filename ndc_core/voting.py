"""Votes of a smoothed classifier on one image, and the certificate they give."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Shaped, UInt8

from ndc_core.certificates import Certificate, Cohen, Tally, Terms
from ndc_core.classifiers import DiffusionClassifier
from ndc_core.randomness import DrawNoise, Phase, draw_noise
from ndc_core.scores import NonFiniteScoreError
from ndc_core.smoothing import NOISES, InputNoise, NoiseName
from ndc_core.space import sigma_to_model

NOISE_BYTES_AT_ONCE = 64 * 2**20


@dataclass(frozen=True)
class VoteCounts:
    """How many draws each class won, what it cost, and each draw's scores if they were asked for."""

    votes: Int[np.ndarray, " classes"]
    evaluations: int
    scores: Float[np.ndarray, "draws classes"] | None = None


def count_votes(
    classifier: DiffusionClassifier,
    image: Shaped[np.ndarray, "c h w"],
    *,
    sigma_pixel: float,
    noise: NoiseName,
    seed: int,
    image_id: str,
    phase: Phase,
    draws: range,
    keep_scores: bool = False,
) -> VoteCounts:
    """Votes of the named draws; the same draws give the same votes whenever and wherever they are asked for.

    The image is 8-bit, or with another noise than `integer` pixels in double precision.

    Raises:
        ValueError: an image that does not fit the denoiser or the noise.
        NonFiniteScoreError: the denoiser returned NaN or infinity; image, draw, sigma and class are named.
    """
    if image.shape != tuple(classifier.denoiser.image_shape):
        raise ValueError(
            f"image {image_id} has shape {image.shape}, the denoiser takes {tuple(classifier.denoiser.image_shape)}"
        )
    input_noise = NOISES[noise](sigma_pixel)
    votes = np.zeros(classifier.denoiser.num_classes, dtype=np.int64)
    evaluations, scores = 0, []
    for batch in _batches(classifier, draws, image.size):
        drawn = noise_of(classifier, input_noise, seed=seed, image_id=image_id, phase=phase, draws=batch)
        z = input_noise.add(image, drawn.input)
        try:
            prediction = classifier.predict(z, tau_model=sigma_to_model(sigma_pixel), noise=drawn)
        except NonFiniteScoreError as error:
            where = f"image {image_id}, sigma_pixel {sigma_pixel:g}, {phase} draw {batch[error.row]}, {error.where}"
            raise NonFiniteScoreError(where, row=error.row) from error
        votes += np.bincount(prediction.winners, minlength=len(votes))
        evaluations += prediction.evaluations
        if keep_scores:
            scores.append(prediction.scores)
    return VoteCounts(votes, evaluations, np.concatenate(scores) if keep_scores else None)


def noise_of(
    classifier: DiffusionClassifier,
    input_noise: InputNoise,
    *,
    seed: int,
    image_id: str,
    phase: Phase,
    draws: Sequence[int],
) -> DrawNoise:
    """All the noise that the classifier's named draws need."""
    sift = classifier.active_sift
    return draw_noise(
        seed=seed,
        image_id=image_id,
        phase=phase,
        draws=draws,
        input_noise=input_noise,
        image_shape=classifier.denoiser.image_shape,
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
    noise: NoiseName = "integer",
    seed: int = 0,
    image_id: str = "image",
) -> Certificate:
    """Cohen's certificate of one 8-bit image: no change of L2 norm below its radius (pixels in [0, 1])
    changes the smoothed classifier's class, with probability at least 1 - alpha over the votes.

    Images whose certificates shall fail independently need different `image_id`s. With `integer` noise the promise
    is about 8-bit adversarial images and is exact; with `float` about all of them, up to floating-point rounding.

    Raises:
        ValueError: sigma or alpha out of range, no votes, or an image that does not fit the denoiser.
    """
    if not sigma_pixel > 0:
        raise ValueError(f"sigma_pixel must be above 0, not {sigma_pixel}")
    input_noise = NOISES[noise](sigma_pixel)
    terms = Terms(
        sigma_pixel=sigma_pixel,
        alpha=alpha,
        votes=estimation_votes,
        distance=input_noise.distance(image.size),
        scope=input_noise.scope,
    )

    def counts(phase: Phase, votes: int) -> list[int]:
        tally = count_votes(
            classifier,
            image,
            sigma_pixel=sigma_pixel,
            noise=noise,
            seed=seed,
            image_id=image_id,
            phase=phase,
            draws=range(votes),
        )
        return tally.votes.tolist()

    selection, estimation = counts("selection", selection_votes), counts("estimation", estimation_votes)
    return Cohen(terms).certificate(Tally(selection, [estimation]))
