"""The class of images in memory, from a few votes and without a radius."""

from collections.abc import Sequence
from dataclasses import dataclass

from scipy.special import betainc

from ndc_core.certification import refuse_settings
from ndc_core.classifiers.voter import Voter
from ndc_core.image_votes import Draws, Sampling, sample_images
from ndc_core.images import Images, as_images
from ndc_core.noise.smoothing import NOISES, NoiseName

RELATIVE_MARGIN = 1e-11  # of betainc (rule S7)


@dataclass(frozen=True)
class PredictedClass:
    """With probability at least 1 - alpha over the votes, `predicted` is the smoothed classifier's class, or None where
    the two leading classes were too close to tell (it abstains). This says nothing about changed images."""

    predicted: int | None
    alpha: float
    votes: tuple[int, ...]

    def __repr__(self) -> str:
        named = "abstains" if self.predicted is None else f"class {self.predicted}"
        first, second = sorted(self.votes, reverse=True)[:2]
        return f"<{named}: {first} votes to {second}, of {sum(self.votes)}; alpha {self.alpha:g}>"


def predict(
    classifier: Voter,
    images: Images,
    *,
    sigma_pixel: float,
    alpha: float = 0.001,
    votes: int = 100,
    noise: NoiseName = "integer",
    seed: int = 0,
) -> PredictedClass | list[PredictedClass]:
    """The smoothed classifier's class of one 8-bit image, (c, h, w), or of each of a batch, (n, c, h, w), or None.

    A class that is not the smoothed classifier's is named with probability at most alpha over the votes of that image.
    Source: Cohen et al. 2019, PREDICT.

    Raises:
        ValueError: a setting out of range, or images that do not fit the model.
        NonFiniteScoreError: the network returned NaN or infinity.
    """
    pixels, batch = as_images(images, image_shape=classifier.image_shape, noise=noise)
    refuse_settings(sigma_pixel, noise, votes=votes)
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must lie between 0 and 1, not {alpha}")
    distance = NOISES[noise](sigma_pixel).distance(pixels[0].size)

    def prediction() -> Sampling[PredictedClass]:
        counts = yield Draws("selection", range(votes))
        return PredictedClass(class_ahead(counts, alpha=alpha - votes * distance), alpha, tuple(counts))

    predictions = sample_images(
        classifier, pixels, prediction, sigma_pixel=sigma_pixel, noise=noise, seed=seed, purpose="predict "
    )
    return predictions if batch else predictions[0]


def class_ahead(counts: Sequence[int], *, alpha: float) -> int | None:
    """The class with most votes, if it is ahead of the second by more than chance explains; else None.

    The probability that it is not the most probable class is at most alpha. Source: Hung and Fithian 2019, Rank
    verification for exponential families: the two leading classes are tested as if they were the only ones.
    """
    top, second = sorted(range(len(counts)), key=lambda c: -counts[c])[:2]
    # Twice the chance that a fair coin falls on one side at least that often.
    chance = 2 * float(betainc(counts[top], counts[second] + 1, 0.5)) * (1 + RELATIVE_MARGIN)
    return top if chance <= alpha else None
