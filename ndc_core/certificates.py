"""From vote counts to a certified radius."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from scipy.special import ndtri

from ndc_core.statistics import clopper_pearson_lower

# ndtri is accurate to a few units in the last place; this is a thousand times as much (rule S7).
RELATIVE_MARGIN = 1e-12


@dataclass(frozen=True)
class Certificate:
    """What was proved about one image at one noise level.

    With probability at least 1 - alpha over the votes: no change of the image of L2 norm (pixels in [0, 1])
    below `radius` changes the smoothed classifier's class. `predicted` is None where it abstains.
    """

    method: str
    sigma_pixel: float
    alpha: float
    predicted: int | None
    radius: float
    p_lower: float
    votes_top: int
    votes: int

    def holds(self, *, label: int, radius: float) -> bool:
        """Right and certified at the radius: an abstention is wrong at every radius, also at 0 (rule S6)."""
        return self.predicted == label and self.radius >= radius


def gaussian_radius(p_lower: float, *, sigma_pixel: float) -> float:
    """sigma_pixel * Phi^-1(p_lower), rounded down (Cohen et al. 2019, Theorem 1); 0 for p_lower <= 1/2."""
    if p_lower <= 0.5:
        return 0.0
    return max(0.0, math.nextafter(sigma_pixel * float(ndtri(p_lower)) * (1 - RELATIVE_MARGIN), 0.0))


def cohen(selection: Sequence[int], estimation: Sequence[int], *, sigma_pixel: float, alpha: float) -> Certificate:
    """Randomized smoothing's certificate (Cohen et al. 2019, CERTIFY), abstaining if p_lower <= 1/2.

    The selection votes name the class, the estimation votes, which must be other ones (rule S3), bound its
    probability. Both are counts per class.

    Raises:
        ValueError: empty or negative counts, different numbers of classes, sigma or alpha out of range.
    """
    if len(selection) != len(estimation) or not len(selection):
        raise ValueError(f"{len(selection)} classes in the selection votes, {len(estimation)} in the estimation votes")
    if min(*selection, *estimation) < 0 or sum(selection) == 0:
        raise ValueError("vote counts must not be negative, and there must be selection votes")
    if not (0 < sigma_pixel < math.inf):
        raise ValueError(f"sigma_pixel must be above 0, not {sigma_pixel}")
    top = max(range(len(selection)), key=lambda c: selection[c])
    votes_top, votes = int(estimation[top]), int(sum(estimation))
    p_lower = clopper_pearson_lower(votes_top, votes, alpha=alpha)
    radius = gaussian_radius(p_lower, sigma_pixel=sigma_pixel)
    predicted = top if p_lower > 0.5 else None
    return Certificate("cohen", sigma_pixel, alpha, predicted, radius, p_lower, votes_top, votes)


def largest_cohen_radius(votes: int, *, sigma_pixel: float, alpha: float) -> float:
    """The radius when every estimation vote agrees: no certificate from so many votes can exceed it."""
    return gaussian_radius(clopper_pearson_lower(votes, votes, alpha=alpha), sigma_pixel=sigma_pixel)


Certify = Callable[..., Certificate]
CERTIFICATES: dict[str, Certify] = {"cohen": cohen}
