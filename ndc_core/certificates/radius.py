"""The certified radius of a Gaussian-smoothed classifier (Cohen et al. 2019, Theorem 1)."""

import math

from scipy.special import ndtri

from ndc_core.certificates.certificate import Certificate, Tally, Terms

# ndtri is accurate to a few units in the last place; this is a thousand times as much (rule S7).
RELATIVE_MARGIN = 1e-12


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
    votes_top, votes = tally.wins[-1]
    return Certificate(
        method,
        terms.sigma_pixel,
        terms.alpha,
        predicted=tally.top if p_lower > 0.5 else None,
        radius=gaussian_radius(p_lower, sigma_pixel=terms.sigma_pixel),
        p_lower=p_lower,
        votes_top=votes_top,
        votes=votes,
        scope=terms.scope,
    )
