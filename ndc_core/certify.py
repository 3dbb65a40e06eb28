"""The whole thing for one image: votes, and the certificate they give."""

import numpy as np
from jaxtyping import UInt8

from ndc_core.certificates.certificate import Certificate, Tally, Terms
from ndc_core.certificates.cohen import Cohen
from ndc_core.classifiers.voter import Voter
from ndc_core.noise.smoothing import NOISES, NoiseName
from ndc_core.noise.streams import Phase
from ndc_core.voting import count_votes


def certify(
    classifier: Voter,
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
        ValueError: sigma or alpha out of range, no votes, or an image that does not fit the model.
    """
    if not sigma_pixel > 0:
        raise ValueError(f"sigma_pixel must be above 0, not {sigma_pixel}")
    if noise == "none":
        raise ValueError("a smoothed classifier's certificate needs noise: set noise to 'integer' or 'float'")
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
