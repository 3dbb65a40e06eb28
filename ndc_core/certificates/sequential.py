"""The sequential certificate: as few votes as the declared radii need, valid whenever it stops."""

import math
from bisect import bisect_left
from dataclasses import dataclass
from functools import cached_property

from scipy.special import betaincc, ndtr

from ndc_core.certificates.certificate import Certificate, Tally, Terms
from ndc_core.certificates.confidence_sequences import log_wealth_above, probability_lower
from ndc_core.certificates.radius import smoothed

FIRST_LOOK = 100
GROWTH = 1.5
GIVE_UP_BELOW = 0.01
RELATIVE_MARGIN = 1e-12  # of ndtr, as for ndtri (rule S7)


def look_schedule(votes: int) -> tuple[int, ...]:
    """Numbers of draws at which a wave ends: 100, then half as many again each time, the last at `votes`."""
    ends = [min(FIRST_LOOK, votes)]
    while ends[-1] < votes:
        ends.append(min(votes, math.ceil(GROWTH * ends[-1])))
    return tuple(ends)


@dataclass(frozen=True)
class Target:
    """What a declared radius needs: the class's probability, and the votes that prove it if all are drawn."""

    probability: float
    wins_at_most_votes: int


@dataclass(frozen=True)
class Sequential:
    """A certificate that draws until each of the declared radii is proved or given up.

    The class's probability has one lower confidence sequence (`confidence_sequences.probability_lower`), valid at all
    numbers of votes at once; the radius is read from its highest value. So stopping costs no alpha, and neither do
    several radii. A radius is given up when, by the votes so far, the chance that all of `terms.votes` would prove it
    is below one in a hundred. A wrong decision to give up makes no certificate wrong: the sequence holds at every stop.
    """

    terms: Terms

    @property
    def looks(self) -> tuple[int, ...]:
        return look_schedule(self.terms.votes)

    @cached_property
    def targets(self) -> tuple[Target, ...]:
        """Those of the declared radii that votes could prove."""
        most, targets = self.terms.votes, []
        for radius in sorted(self.terms.radii):
            p = self._probability(radius)
            if self._proves(most, most, p):
                targets.append(Target(p, self._wins_to_prove(p)))
        return tuple(targets)

    def _probability(self, radius: float) -> float:
        """Phi(r / sigma), rounded up, and for radius 0 just above 1/2."""
        p = float(ndtr(radius / self.terms.sigma_pixel)) * (1 + RELATIVE_MARGIN)
        return min(1.0, math.nextafter(p + self.terms.distance, 1.0))

    def _wins_to_prove(self, p: float) -> int:
        most = self.terms.votes
        return bisect_left(range(most + 1), True, key=lambda wins: self._proves(wins, most, p))

    def _proves(self, wins: int, votes: int, p: float) -> bool:
        return log_wealth_above(wins, votes, p=p) >= -math.log(self.terms.alpha)

    def decided(self, tally: Tally) -> bool:
        return all(
            any(self._proves(*reached, target.probability) for reached in tally.wins)
            or self._chance(*tally.wins[-1], target) < GIVE_UP_BELOW
            for target in self.targets
        )

    def _chance(self, wins: int, votes: int, target: Target) -> float:
        """The chance that the votes to come have enough wins for all votes together to prove the target.

        The number of wins is beta-binomial (Jeffreys' prior); its share is approximated by a beta of equal mean and
        variance.
        """
        to_come, needed = self.terms.votes - votes, target.wins_at_most_votes - wins
        if to_come < 2:
            return float(needed <= to_come)
        known = (to_come - 1) / (to_come + votes + 1)
        share = min(1.0, max(0.0, needed / to_come))
        return float(betaincc(known * (wins + 0.5), known * (votes - wins + 0.5), share))

    def certificate(self, tally: Tally) -> Certificate:
        lower = max(probability_lower(*reached, alpha=self.terms.alpha) for reached in tally.wins)
        return smoothed("sequential", self.terms, tally, lower)

    @property
    def largest_radius(self) -> float:
        return self.certificate(Tally([1], [[self.terms.votes]])).radius
