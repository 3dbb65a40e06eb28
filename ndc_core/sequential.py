"""The sequential certificate: as few votes as the declared radii need, valid whenever it stops."""

import math
from dataclasses import dataclass
from functools import cached_property

from scipy.special import ndtr

from ndc_core.certificates import Certificate, Tally, Terms, smoothed
from ndc_core.sequences import log_wealth_above, probability_lower

FIRST_WAVE = 100
GROWTH = 1.5
RELATIVE_MARGIN = 1e-12  # of ndtr, as for ndtri (rule S7)


def wave_ends(votes: int) -> tuple[int, ...]:
    """Numbers of draws at which a wave ends: 100, then half as many again each time, the last at `votes`."""
    ends = [min(FIRST_WAVE, votes)]
    while ends[-1] < votes:
        ends.append(min(votes, math.ceil(GROWTH * ends[-1])))
    return tuple(ends)


@dataclass(frozen=True)
class Sequential:
    """A certificate that draws until each of the declared radii is proved or given up.

    The class's probability has one lower confidence sequence (`sequences.probability_lower`), valid at all numbers of
    votes at once; the radius is read from its highest value. So stopping costs no alpha, and neither do several radii.
    A radius is given up when the mirrored sequence shows it to be out of reach, or when even unanimous votes could not
    prove it before `terms.votes`. Giving up may be wrong without making any certificate wrong.
    """

    terms: Terms

    @property
    def looks(self) -> tuple[int, ...]:
        return wave_ends(self.terms.votes)

    @cached_property
    def targets(self) -> tuple[float, ...]:
        """The probability that each declared radius needs; radii that no votes could prove are not among them."""
        needed = (self._probability(radius) for radius in sorted(self.terms.radii))
        return tuple(p for p in needed if self._proves(self.terms.votes, self.terms.votes, p))

    def _probability(self, radius: float) -> float:
        """Phi(r / sigma), rounded up, and for radius 0 just above 1/2."""
        p = float(ndtr(radius / self.terms.sigma_pixel)) * (1 + RELATIVE_MARGIN)
        return min(1.0, math.nextafter(p + self.terms.distance, 1.0))

    def _proves(self, wins: int, votes: int, p: float) -> bool:
        return log_wealth_above(wins, votes, p=p) >= -math.log(self.terms.alpha)

    def decided(self, tally: Tally) -> bool:
        wins = [(int(look[tally.top]), int(sum(look))) for look in tally.looks]
        return all(any(self._settles(w, n, p) for w, n in wins) for p in self.targets)

    def _settles(self, wins: int, votes: int, p: float) -> bool:
        most = self.terms.votes
        return (
            self._proves(wins, votes, p)
            or not self._proves(wins + most - votes, most, p)
            or self._proves(votes - wins, votes, 1 - p)
        )

    def certificate(self, tally: Tally) -> Certificate:
        lower = max(
            probability_lower(int(look[tally.top]), int(sum(look)), alpha=self.terms.alpha) for look in tally.looks
        )
        return smoothed("sequential", self.terms, tally, lower)

    @property
    def largest_radius(self) -> float:
        return self.certificate(Tally([1], [[self.terms.votes]])).radius
