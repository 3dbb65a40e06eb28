"""How many votes the sequential certificate takes, against a fixed 10,000.

    .venv/bin/python -m tests.bench.sequential [--simulations 400]

Simulated images of known probability p, the preset's cap of 10,000 votes, alpha 0.001, one declared radius of two
sigmas or of one; waves as in a run. Prints mean and median votes, 10,000 over the mean, how many were certified, and
how many a fixed 10,000 certifies. On digits, `ndc certify --certificate sequential` prints the mean in its table.
"""

from bisect import bisect_left

import click
import numpy as np
from scipy.stats import binom

from ndc_core.certificates.certificate import Tally, Terms
from ndc_core.certificates.cohen import Cohen
from ndc_core.certificates.sequential import Sequential

PROBABILITIES = (1.0, 0.999, 0.995, 0.99, 0.98, 0.95, 0.9, 0.6)
VOTES, ALPHA, SIGMA = 10_000, 0.001, 0.25


def simulate(method: Sequential, votes: np.ndarray) -> tuple[int, bool]:
    """Votes taken, and whether the declared radius was certified."""
    looks: list[list[int]] = []
    for end in method.looks:
        won = int(votes[:end].sum())
        looks.append([end - won, won])
        if end == method.looks[-1] or method.decided(Tally([0, 1], looks)):
            break
    return end, method.certificate(Tally([0, 1], looks)).radius >= method.terms.radii[0]


def share_certified_by_fixed_votes(terms: Terms, p: float) -> float:
    """How many images of probability p the fixed number of votes certifies at the declared radius; exact."""
    method = Cohen(terms)

    def proves(wins: int) -> bool:
        return method.certificate(Tally([0, 1], [[VOTES - wins, wins]])).radius >= terms.radii[0]

    needed = bisect_left(range(VOTES + 1), True, key=proves)
    return float(binom.sf(needed - 1, VOTES, p))


@click.command()
@click.option("--simulations", default=400, show_default=True)
def main(simulations: int) -> None:
    generator = np.random.default_rng(0)
    click.echo("| p | r / sigma | mean votes | median | 10,000 / mean | certified | by 10,000 fixed |")
    click.echo("| --- " * 7 + "|")
    for sigmas in (2, 1):
        terms = Terms(sigma_pixel=SIGMA, alpha=ALPHA, votes=VOTES, radii=(sigmas * SIGMA,))
        method = Sequential(terms)
        for p in PROBABILITIES:
            simulated = [simulate(method, generator.random(VOTES) < p) for _ in range(simulations)]
            taken = np.array([votes for votes, _ in simulated])
            certified = sum(proved for _, proved in simulated) / simulations
            click.echo(
                f"| {p} | {sigmas} | {taken.mean():,.0f} | {np.median(taken):,.0f} | "
                f"{VOTES / taken.mean():.1f} | {100 * certified:.0f} % | "
                f"{100 * share_certified_by_fixed_votes(terms, p):.0f} % |"
            )


if __name__ == "__main__":
    main()
