"""Votes on images in memory, and the certificates that they give."""

from collections.abc import Sequence
from typing import Literal

from ndc_core.certificates.certificate import Certificate, Procedure, Tally, Terms
from ndc_core.certificates.registry import CERTIFICATES
from ndc_core.classifiers.voter import Voter
from ndc_core.image_votes import Draws, Sampling, sample_images
from ndc_core.images import Images, as_images
from ndc_core.noise.smoothing import NOISES, NoiseName

Method = Literal["cohen", "sequential"]


def certify(
    classifier: Voter,
    images: Images,
    *,
    sigma_pixel: float,
    alpha: float = 0.001,
    method: Method = "cohen",
    radii: Sequence[float] = (),
    selection_votes: int = 100,
    estimation_votes: int = 10_000,
    noise: NoiseName = "integer",
    seed: int = 0,
) -> Certificate | list[Certificate]:
    """A certificate of one 8-bit image, (c, h, w), or one of each of a batch, (n, c, h, w): no change of L2 norm below
    its radius (pixels in [0, 1]) changes the smoothed classifier's class, with probability at least 1 - alpha over the
    votes of that image.

    `cohen` draws all estimation votes (Cohen et al. 2019, CERTIFY); `sequential` at most as many, until each of `radii`
    is proved or given up. With `integer` noise the promise is about 8-bit adversarial images and is exact. With `float`
    noise, which takes pixels in [0, 1] too, it is about all images, up to floating-point rounding. An image has the
    same certificate alone and in every batch.

    Raises:
        ValueError: a setting out of range, a radius that no votes could prove, or images that do not fit the model.
        NonFiniteScoreError: the network returned NaN or infinity.
    """
    pixels, batch = as_images(images, image_shape=classifier.image_shape, noise=noise)
    refuse_settings(sigma_pixel, noise, votes=min(selection_votes, estimation_votes))
    if method not in ("cohen", "sequential"):
        raise ValueError(f"method must be 'cohen' or 'sequential', not {method!r}")
    if (method == "sequential") != bool(radii):
        raise ValueError("radii say when the method 'sequential' stops: give them with it, and with no other")
    input_noise = NOISES[noise](sigma_pixel)
    terms = Terms(
        sigma_pixel=sigma_pixel,
        alpha=alpha,
        votes=estimation_votes,
        radii=tuple(radii),
        distance=input_noise.distance(pixels[0].size),
        scope=input_noise.scope,
    )
    procedure = CERTIFICATES[method](terms)
    if radii and max(radii) > procedure.largest_radius:
        raise ValueError(
            f"radius {max(radii):g} can never be certified: if all {estimation_votes:,} estimation votes agree at "
            f"sigma_pixel {sigma_pixel:g}, the radius is {procedure.largest_radius:.4g}"
        )
    certificates = sample_images(
        classifier,
        pixels,
        lambda: certification(procedure, selection_votes),
        sigma_pixel=sigma_pixel,
        noise=noise,
        seed=seed,
    )
    return certificates if batch else certificates[0]


def certification(procedure: Procedure, selection_votes: int) -> Sampling[Certificate]:
    """Selection votes name the class; estimation votes, from other draws (rule S3), follow up to the deciding look."""
    selection = yield Draws("selection", range(selection_votes))
    tally = Tally(selection, [[0] * len(selection)])
    looks: list[list[int]] = []
    for start, end in zip((0, *procedure.looks), procedure.looks, strict=False):
        votes = yield Draws("estimation", range(start, end), candidate=tally.top)
        so_far = looks[-1] if looks else [0] * len(votes)
        looks.append([before + new for before, new in zip(so_far, votes, strict=True)])
        tally = Tally(selection, looks)
        if procedure.decided(tally):
            break
    return procedure.certificate(tally)


def refuse_settings(sigma_pixel: float, noise: NoiseName, *, votes: int) -> None:
    """Raises ValueError for settings that no smoothed classifier accepts."""
    if not sigma_pixel > 0:
        raise ValueError(f"sigma_pixel must be above 0, not {sigma_pixel}")
    if noise not in ("integer", "float"):
        raise ValueError(f"a smoothed classifier needs noise: set noise to 'integer' or 'float', not {noise!r}")
    if votes < 1:
        raise ValueError(f"there must be at least 1 vote of each kind, not {votes}")
