"""Randomized smoothing's certificate from a fixed number of votes (Cohen et al. 2019, CERTIFY)."""

from collections.abc import Sequence
from dataclasses import dataclass

from ndc_core.certificates.certificate import Certificate, Tally, Terms
from ndc_core.certificates.confidence_bounds import clopper_pearson_lower
from ndc_core.certificates.radius import smoothed


@dataclass(frozen=True)
class Cohen:
    """Randomized smoothing's certificate from a fixed number of votes (Cohen et al. 2019, CERTIFY).

    The selection votes name the class. The estimation votes, which must be different draws (rule S3), bound its
    probability from below (Clopper-Pearson). It abstains if the bound is at most 1/2.
    """

    terms: Terms

    @property
    def looks(self) -> tuple[int, ...]:
        return (self.terms.votes,)

    def decided(self, tally: Tally) -> bool:
        return True

    def certificate(self, tally: Tally) -> Certificate:
        p_lower = clopper_pearson_lower(*tally.wins[-1], alpha=self.terms.alpha)
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
