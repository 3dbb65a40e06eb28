"""What a certificate is, what it is made from, and randomized smoothing's own (Cohen et al. 2019)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import Float
from scipy.special import ndtri

from ndc_core.certificates.confidence_bounds import clopper_pearson_lower
from ndc_core.noise.grid import GridSpec

# ndtri is accurate to a few units in the last place; this is a thousand times as much (rule S7).
RELATIVE_MARGIN = 1e-12


@dataclass(frozen=True)
class Certificate:
    """What was proved about one image by one classifier.

    With probability at least 1 - alpha over the draws: no change of the image of L2 norm (pixels in [0, 1])
    below `radius` changes the class, for the adversarial images that `scope` names. `predicted` is None where it
    abstains. What was shown with confidence is that the class's probability is at least `p_lower` (smoothing), or the
    margin of its expected score at least `margin_lower` (lipschitz).
    """

    method: str
    sigma_pixel: float
    alpha: float
    predicted: int | None
    radius: float
    p_lower: float | None
    votes_top: int
    votes: int
    scope: str
    margin_lower: float | None = None

    def holds(self, *, label: int, radius: float) -> bool:
        """Right and certified at the radius: an abstention is wrong at every radius, also at 0 (rule S6)."""
        return self.predicted == label and self.radius >= radius


@dataclass(frozen=True)
class Terms:
    """What is declared about a certificate before the first draw.

    `votes` is the number of estimation draws, the most of them where a method may stop early. `distance` bounds how far
    (total variation, per draw) the noise is from the law that the theorem speaks of: that of the input, or for the
    lipschitz certificate that of all steps. The last five are of the
    lipschitz certificate.
    """

    sigma_pixel: float
    alpha: float
    votes: int
    radii: tuple[float, ...] = ()
    distance: float = 0.0
    scope: str = "all images"
    grid: GridSpec | None = None
    weight: str = "elbo"
    loss_cap: float | None = None
    dimension: int = 1
    precision: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise ValueError(f"alpha must lie between 0 and 1, not {self.alpha}")
        if not 0 <= self.sigma_pixel < math.inf:
            raise ValueError(f"sigma_pixel must not be negative, and it is {self.sigma_pixel}")


@dataclass(frozen=True)
class Tally:
    """What one image's draws gave at one noise level.

    `looks` holds the estimation votes of each class after each look so far, in whole counts as drawn (rule S4). The
    scores of each draw are kept only where a method needs them.
    """

    selection: Sequence[int]
    looks: Sequence[Sequence[int]]
    selection_scores: Float[np.ndarray, "draws classes"] | None = None
    estimation_scores: Float[np.ndarray, "draws classes"] | None = None

    def __post_init__(self) -> None:
        if not self.looks or len({len(self.selection), *map(len, self.looks)}) != 1 or not len(self.selection):
            raise ValueError("selection and estimation votes must be counts of the same classes")
        if min(*self.selection, *(min(look) for look in self.looks)) < 0 or sum(self.selection) == 0:
            raise ValueError("vote counts must not be negative, and there must be selection votes")

    @property
    def top(self) -> int:
        """The class with the most selection votes."""
        return max(range(len(self.selection)), key=lambda c: self.selection[c])


class Method(Protocol):
    """A certificate as a procedure: when it looks at an image's draws, when it stops, what it then proves."""

    @property
    def looks(self) -> tuple[int, ...]:
        """Numbers of estimation draws at which it may stop, the last being the most it takes."""

    def decided(self, tally: Tally) -> bool:
        """Whether to stop at the tally's last look; more draws would not serve what was declared."""

    def certificate(self, tally: Tally) -> Certificate:
        """What the draws prove, also if they are not decided yet."""

    @property
    def largest_radius(self) -> float:
        """No certificate of these terms exceeds it."""


def gaussian_radius(p_lower: float, *, sigma_pixel: float) -> float:
    """sigma_pixel * Phi^-1(p_lower), rounded down (Cohen et al. 2019, Theorem 1); 0 for p_lower <= 1/2."""
    if p_lower <= 0.5:
        return 0.0
    return max(0.0, math.nextafter(sigma_pixel * float(ndtri(p_lower)) * (1 - RELATIVE_MARGIN), 0.0))


def smoothed(method: str, terms: Terms, tally: Tally, p_lower: float) -> Certificate:
    """The certificate of a smoothed classifier whose top class has at least the probability p_lower as drawn.

    The noise may be `terms.distance` away from the law of the theorem, and the probability with it.
    """
    p_lower = max(0.0, math.nextafter(p_lower - terms.distance, 0.0)) if terms.distance else p_lower
    top, counts = tally.top, tally.looks[-1]
    return Certificate(
        method,
        terms.sigma_pixel,
        terms.alpha,
        predicted=top if p_lower > 0.5 else None,
        radius=gaussian_radius(p_lower, sigma_pixel=terms.sigma_pixel),
        p_lower=p_lower,
        votes_top=int(counts[top]),
        votes=int(sum(counts)),
        scope=terms.scope,
    )


@dataclass(frozen=True)
class Cohen:
    """Randomized smoothing's certificate from a fixed number of votes (Cohen et al. 2019, CERTIFY).

    The selection votes name the class, the estimation votes, which must be other ones (rule S3), bound its
    probability from below (Clopper-Pearson). It abstains if the bound is at most 1/2.
    """

    terms: Terms

    @property
    def looks(self) -> tuple[int, ...]:
        return (self.terms.votes,)

    def decided(self, tally: Tally) -> bool:
        return True

    def certificate(self, tally: Tally) -> Certificate:
        counts = tally.looks[-1]
        p_lower = clopper_pearson_lower(int(counts[tally.top]), int(sum(counts)), alpha=self.terms.alpha)
        return smoothed("cohen", self.terms, tally, p_lower)

    @property
    def largest_radius(self) -> float:
        return self.certificate(Tally([1], [[self.terms.votes]])).radius


def cohen(selection: Sequence[int], estimation: Sequence[int], *, sigma_pixel: float, alpha: float) -> Certificate:
    """Cohen's certificate of the counts per class of selection and estimation votes.

    Raises:
        ValueError: empty or negative counts, different numbers of classes, sigma or alpha out of range.
    """
    if not sigma_pixel > 0:
        raise ValueError(f"sigma_pixel must be above 0, not {sigma_pixel}")
    terms = Terms(sigma_pixel=sigma_pixel, alpha=alpha, votes=int(sum(estimation)))
    return Cohen(terms).certificate(Tally(selection, [estimation]))
