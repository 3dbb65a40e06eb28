"""Anytime-valid bounds against exact probabilities, 50-digit arithmetic and the formulas written out."""

import math

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ndc_core.certificates.confidence_sequences import (
    LOG_WEALTH_MARGIN,
    STAKES,
    log_wealth_above,
    log_wealth_of_means,
    probability_lower,
    smallest_mean_lower,
)

COUNTS = st.integers(1, 3000).flatmap(lambda draws: st.tuples(st.integers(0, draws), st.just(draws)))


def exact_log_wealth(wins: int, draws: int, p: float) -> mpmath.mpf:
    """The mixture integrated numerically: q over (p, 1] with the arcsine density, normalised."""
    with mpmath.workdps(50):
        top = mpmath.betainc(wins + 0.5, draws - wins + 0.5, p, 1)
        bottom = mpmath.betainc(0.5, 0.5, p, 1)
        return mpmath.log(top / bottom) - wins * mpmath.log(p) - (draws - wins) * mpmath.log(1 - mpmath.mpf(p))


@pytest.mark.parametrize(("wins", "draws", "p"), [(10, 10, 0.5), (99, 100, 0.9), (460, 460, 0.977), (2950, 3000, 0.98)])
def test_wealth_is_the_integral_rounded_down(wins: int, draws: int, p: float) -> None:
    exact = float(exact_log_wealth(wins, draws, p))
    assert 0 < exact - log_wealth_above(wins, draws, p=p) < 2 * LOG_WEALTH_MARGIN


@given(counts=COUNTS, p=st.floats(0.01, 0.98), step=st.floats(1e-6, 0.02))
def test_wealth_never_rises_with_p(counts: tuple[int, int], p: float, step: float) -> None:
    """So rejecting a probability rejects all smaller ones, and one sequence serves all radii."""
    assert log_wealth_above(*counts, p=p + step) <= log_wealth_above(*counts, p=p) + 1e-9


def probability_of_ever_reaching(log_goal: float, p: float, draws: int, *, played_above: float) -> float:
    """Exact: the law of the number of wins, with the paths that reached the goal taken out, one draw at a time."""
    alive, reached = np.array([1.0]), 0.0
    for n in range(1, draws + 1):
        alive = np.append(alive * (1 - p), 0.0) + np.append(0.0, alive * p)
        stopped = np.array([log_wealth_above(wins, n, p=played_above) >= log_goal for wins in range(n + 1)])
        reached += alive[stopped].sum()
        alive = np.where(stopped, 0.0, alive)
    return float(reached)


@pytest.mark.parametrize("p", [0.5, 0.84, 0.95])
def test_a_true_probability_is_rejected_at_any_time_with_probability_at_most_alpha(p: float) -> None:
    alpha = 0.05
    at_the_edge = probability_of_ever_reaching(-math.log(alpha), p, 300, played_above=p)
    assert 0.2 * alpha < at_the_edge <= alpha, "valid, and not by being useless"
    assert probability_of_ever_reaching(-math.log(alpha), p - 0.05, 300, played_above=p) < at_the_edge


@given(counts=COUNTS, alpha=st.sampled_from([0.001, 0.05]))
def test_the_lower_bound_is_where_the_wealth_meets_the_goal(counts: tuple[int, int], alpha: float) -> None:
    lower = probability_lower(*counts, alpha=alpha)
    assert lower < max(counts[0] / counts[1], 1e-300)
    if lower > 0:
        assert log_wealth_above(*counts, p=lower) >= -math.log(alpha)
    assert log_wealth_above(*counts, p=lower + 1e-9) < -math.log(alpha) + 1e-3


def test_unanimous_votes_prove_two_sigmas_with_a_quarter_fewer_votes_than_the_mixture_over_all_p() -> None:
    """The one-sided mixture needs 351 where the two-sided one, which splits alpha, needs 459."""
    p, goal = 0.9772498680518208, math.log(1000)
    assert min(n for n in range(1, 1000) if log_wealth_above(n, n, p=p) >= goal) == 351

    def two_sided(n: int) -> float:
        return float(mpmath.log(mpmath.beta(n + 0.5, 0.5) / mpmath.pi)) - n * math.log(p)

    assert min(n for n in range(1, 1000) if two_sided(n) >= goal) == 459


def test_wealth_of_a_mean_is_the_bettors_average_in_any_order() -> None:
    values = np.random.default_rng(0).uniform(-1, 1, (30, 2))
    log_wealth = log_wealth_of_means(values, lowest=-2.0, mean=-0.5)
    for way in range(2):
        bettors = [np.prod([1 + stake * ((value + 2) / 1.5 - 1) for value in values[:, way]]) for stake in STAKES]
        assert log_wealth[way] == pytest.approx(math.log(np.mean(bettors)), abs=2e-6)
    shuffled = np.random.default_rng(1).permutation(values)
    np.testing.assert_allclose(log_wealth_of_means(shuffled, lowest=-2.0, mean=-0.5), log_wealth)


def test_the_smallest_mean_is_bounded_by_its_own_column_alone() -> None:
    """Other columns neither tighten nor loosen it: they do not share alpha."""
    generator = np.random.default_rng(2)
    values = np.stack([generator.uniform(-0.1, 0.3, 400), generator.uniform(0.5, 0.9, 400)], axis=1)
    both = smallest_mean_lower(values, lowest=-1.0, alpha=0.01)
    assert both == pytest.approx(smallest_mean_lower(values[:, :1], lowest=-1.0, alpha=0.01))
    assert 0 < both < 0.1
    few = smallest_mean_lower(values[:50], lowest=-1.0, alpha=0.01)
    assert few < both, "more draws bound more tightly"


def test_a_value_below_the_stated_lowest_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"a value of -0\.5 is below the lowest possible one, -0\.4"):
        log_wealth_of_means(np.array([[-0.5], [1.0]]), lowest=-0.4, mean=0.0)
