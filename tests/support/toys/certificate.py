"""A certificate from outside: Cohen's with Hoeffding's bound instead of Clopper and Pearson's."""

import math
from dataclasses import dataclass

from ndc_core.certificates.certificate import Certificate, Tally, Terms
from ndc_core.certificates.radius import smoothed


@dataclass(frozen=True)
class Hoeffding:
    terms: Terms

    @property
    def looks(self) -> tuple[int, ...]:
        return (self.terms.votes,)

    def decided(self, tally: Tally) -> bool:
        return True

    def certificate(self, tally: Tally) -> Certificate:
        wins, draws = tally.wins[-1]
        deviation = math.sqrt(-math.log(self.terms.alpha) / (2 * draws))
        return smoothed("hoeffding", self.terms, tally, wins / draws - deviation)

    @property
    def largest_radius(self) -> float:
        return self.certificate(Tally([1], [[self.terms.votes]])).radius
