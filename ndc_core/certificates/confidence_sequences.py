"""Anytime-valid bounds: they hold at every number of draws at once, so that looking and stopping early cost nothing.

Each is a bet against "the mean is at most m": if that is so, the wealth is a non-negative supermartingale that starts
at 1, so it ever reaches 1 / alpha with probability at most alpha (Ville's inequality). See docs/certificates.md.
"""

import math

import numpy as np
from jaxtyping import Float
from scipy.special import betaincc, betaln, logsumexp

# Far above the rounding of the sums below, far below anything that matters (rule S7).
LOG_WEALTH_MARGIN = 1e-6
BISECTIONS = 50

# Shares of its wealth that each bettor on a mean stakes on every draw, from nearly all to a sixtieth.
STAKES = (0.98, 0.8, 0.5, 0.25, 0.12, 0.06, 0.03, 0.015)


def log_wealth_above(wins: int, draws: int, *, p: float) -> float:
    """Log of the wealth won, after `wins` of `draws`, by betting that the probability is above p; rounded down.

    The bet is Krichevsky and Trofimov's mixture (the arcsine law) restricted to (p, 1], so that all of alpha is spent
    on this side. It does not increase in p: what rejects p rejects every smaller value too.
    """
    if not 0 < p < 1:
        return math.inf if p <= 0 else -math.inf
    losses = draws - wins
    mass = float(betaincc(wins + 0.5, losses + 0.5, p) / betaincc(0.5, 0.5, p))
    if mass == 0:
        return -math.inf
    mixture = float(betaln(wins + 0.5, losses + 0.5)) - math.log(math.pi) + math.log(mass)
    return mixture - wins * math.log(p) - losses * math.log1p(-p) - LOG_WEALTH_MARGIN


def probability_lower(wins: int, draws: int, *, alpha: float) -> float:
    """Lower bound on a probability that holds at all numbers of draws at once with probability 1 - alpha."""
    low, high = 0.0, wins / draws if draws else 0.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if log_wealth_above(wins, draws, p=middle) >= -math.log(alpha):
            low = middle
        else:
            high = middle
    return low


def log_wealth_of_means(
    values: Float[np.ndarray, "draws ways"], *, lowest: float, mean: float
) -> Float[np.ndarray, " ways"]:
    """Log of the wealth won by betting that the mean of a column, whose values are at least `lowest`, is above `mean`.

    A bettor with stake kappa multiplies its wealth by 1 + kappa (X / m - 1) at each draw, where X and m are counted
    from `lowest`; the wealth is the average over STAKES. It decreases in the mean, does not depend on the order of the
    draws and needs no upper bound of the values.
    Source: Waudby-Smith and Ramdas, Estimating means of bounded random variables by betting, 2023, with fixed stakes,
    mixed as in Cover's universal portfolio, in place of predicted ones.

    Raises:
        ValueError: a value below `lowest`.
    """
    if not (values >= lowest).all():
        raise ValueError(f"a value of {values.min():g} is below the lowest possible one, {lowest:g}")
    if mean <= lowest:
        return np.full(values.shape[1], math.inf)
    excess = (values - lowest) / (mean - lowest) - 1
    growth = np.stack([np.log1p(stake * excess).sum(axis=0) for stake in STAKES])
    return np.asarray(logsumexp(growth, axis=0)) - math.log(len(STAKES)) - LOG_WEALTH_MARGIN


def smallest_mean_lower(values: Float[np.ndarray, "draws ways"], *, lowest: float, alpha: float) -> float:
    """Lower bound on the smallest of the columns' means, at all numbers of draws at once, with probability 1 - alpha.

    The columns need not share alpha: the bound fails only where that of the column with the smallest mean does, and
    which column that is does not depend on the draws.
    """
    goal = -math.log(alpha)
    means = values.mean(axis=0)
    bound = math.inf
    for way in np.argsort(means):
        column = values[:, way : way + 1]
        if bound < math.inf and log_wealth_of_means(column, lowest=lowest, mean=bound)[0] >= goal:
            continue  # this column's own bound is higher
        low, high = lowest, min(bound, float(means[way]))
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            won = log_wealth_of_means(column, lowest=lowest, mean=middle)[0] >= goal
            low, high = (middle, high) if won else (low, middle)
        bound = low
    return bound
