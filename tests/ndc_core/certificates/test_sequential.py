import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import ndtr

from ndc_core.certificates.certificate import Tally, Terms
from ndc_core.certificates.cohen import Cohen
from ndc_core.certificates.sequential import Sequential, look_schedule

TERMS = Terms(sigma_pixel=0.25, alpha=0.001, votes=10_000, radii=(0.25, 0.5))
METHOD = Sequential(TERMS)


def tally_of(wins: list[int], method: Sequential = METHOD) -> Tally:
    """Class 1 is selected and has `wins` at the first looks."""
    return Tally([0, 9], [[end - won, won] for won, end in zip(wins, method.looks, strict=False)])


@given(votes=st.integers(1, 100_000))
def test_waves_grow_by_half_and_end_at_the_cap(votes: int) -> None:
    ends = look_schedule(votes)
    assert ends[-1] == votes
    assert ends[0] == min(100, votes)
    assert all(a < b <= math.ceil(1.5 * a) for a, b in pairwise(ends))


def run(method: Sequential, votes: np.ndarray) -> Tally:
    """Draws wave by wave until decided, as a run does."""
    looks = []
    for end in method.looks:
        won = int(votes[:end].sum())
        looks.append([end - won, won])
        if end == method.looks[-1] or method.decided(Tally([0, 9], looks)):
            return Tally([0, 9], looks)
    raise AssertionError


def test_a_certified_radius_is_one_that_the_certificate_reaches() -> None:
    generator = np.random.default_rng(0)
    for p in (1.0, 0.999, 0.99, 0.9, 0.7, 0.3):
        tally = run(METHOD, generator.random(10_000) < p)
        certificate = METHOD.certificate(tally)
        true_radius = 0.25 * math.inf if p == 1 else float(0.25 * np.sqrt(2) * _erfinv(2 * p - 1))
        assert certificate.radius <= max(0.0, true_radius), p
        assert certificate.predicted == (1 if certificate.p_lower > 0.5 else None)


def _erfinv(x: float) -> float:
    from scipy.special import erfinv

    return float(erfinv(x))


def test_unanimous_votes_stop_as_soon_as_the_largest_radius_is_proved() -> None:
    tally = run(METHOD, np.ones(10_000, dtype=bool))
    assert sum(tally.looks[-1]) == 507, "the first wave's end from 351 votes on"
    assert METHOD.certificate(tally).radius >= 0.5


def test_a_hopeless_class_is_given_up_in_the_first_wave() -> None:
    tally = run(METHOD, np.random.default_rng(1).random(10_000) < 0.3)
    assert sum(tally.looks[-1]) == 100
    assert METHOD.certificate(tally).predicted is None


def test_a_radius_that_the_remaining_votes_cannot_prove_ends_the_sampling() -> None:
    short = Sequential(Terms(sigma_pixel=0.25, alpha=0.001, votes=400, radii=(0.5,)))
    assert short.targets, "400 unanimous votes prove it"
    assert short.decided(tally_of([97], short)), "with three lost votes nothing proves it any more"
    assert not METHOD.decided(tally_of([97])), "10,000 might"


def test_the_chance_to_prove_a_radius_is_that_of_the_votes_to_come() -> None:
    generator = np.random.default_rng(3)
    near, far = METHOD.targets
    for wins, votes, target in (
        (98, 100, far),
        (990, 1000, far),
        (984, 1000, far),
        (86, 100, near),
        (6000, 7000, near),
    ):
        p = generator.beta(wins + 0.5, votes - wins + 0.5, 20_000)
        in_the_end = wins + generator.binomial(10_000 - votes, p)
        proved = float(np.mean(in_the_end >= target.wins_at_most_votes))
        assert METHOD._chance(wins, votes, target) == pytest.approx(proved, abs=0.03), (wins, votes)


def test_a_radius_that_is_unlikely_to_be_proved_is_given_up() -> None:
    method = Sequential(Terms(sigma_pixel=0.25, alpha=0.001, votes=10_000, radii=(0.5,)))
    generator = np.random.default_rng(4)
    taken = [sum(run(method, generator.random(10_000) < 0.97).looks[-1]) for _ in range(100)]
    assert np.mean(taken) < 1_500, "two sigmas need 0.977: a proof that it is out of reach takes 6,600"


def test_giving_up_costs_few_certificates() -> None:
    method = Sequential(Terms(sigma_pixel=0.25, alpha=0.001, votes=10_000, radii=(0.5,)))
    generator = np.random.default_rng(5)
    tallies = [run(method, generator.random(10_000) < 0.99) for _ in range(200)]
    assert sum(method.certificate(tally).radius >= 0.5 for tally in tallies) >= 196


def test_the_cap_ends_in_the_radius_proved_so_far() -> None:
    p = 0.5 * (float(ndtr(1)) + float(ndtr(2)))  # between the two radii
    short = Sequential(Terms(sigma_pixel=0.25, alpha=0.001, votes=900, radii=(0.25, 0.5)))
    tally = run(short, np.random.default_rng(2).random(900) < p)
    certificate = short.certificate(tally)
    assert 0.25 <= certificate.radius < 0.5


def test_the_best_look_counts_whatever_comes_after() -> None:
    early, late = tally_of([100]), tally_of([100, 140])
    assert METHOD.certificate(late).radius == METHOD.certificate(early).radius > 0


def test_radii_out_of_reach_are_no_aims() -> None:
    method = Sequential(Terms(sigma_pixel=0.125, alpha=0.001, votes=10_000, radii=(0.25, 0.5)))
    assert len(method.targets) == 1, "0.5 is four sigmas: 10,000 unanimous votes prove 3.2"


def test_the_price_of_stopping_early_is_a_slightly_smaller_radius_at_the_same_votes() -> None:
    fixed = Cohen(TERMS).largest_radius
    assert 0.9 * fixed < METHOD.largest_radius < fixed


@pytest.mark.parametrize("distance", [0.0, 1e-4])
def test_the_distance_of_the_noise_from_its_law_lowers_the_bound(distance: float) -> None:
    terms = Terms(sigma_pixel=0.25, alpha=0.001, votes=10_000, radii=(0.25,), distance=distance)
    certificate = Sequential(terms).certificate(tally_of([100]))
    exact = METHOD.certificate(tally_of([100]))
    assert exact.p_lower - certificate.p_lower == pytest.approx(distance, abs=1e-12)
    if distance:
        assert certificate.radius < exact.radius
