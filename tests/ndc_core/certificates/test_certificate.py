import math

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ndc_core.certificates.certificate import Terms
from ndc_core.certificates.cohen import Cohen, cohen
from ndc_core.certificates.confidence_bounds import clopper_pearson_lower
from ndc_core.certificates.radius import gaussian_radius


def test_radius_of_unanimous_votes_is_the_closed_form() -> None:
    certificate = cohen([0, 100], [0, 1000], sigma_pixel=0.25, alpha=0.001)
    with mpmath.workdps(40):
        p = mpmath.mpf("0.001") ** (mpmath.mpf(1) / 1000)
        exact = mpmath.mpf("0.25") * mpmath.sqrt(2) * mpmath.erfinv(2 * p - 1)
    assert certificate.predicted == 1
    assert 0 <= float(exact) - certificate.radius < 1e-9
    assert certificate.radius == Cohen(Terms(sigma_pixel=0.25, alpha=0.001, votes=1000)).largest_radius


def test_class_comes_from_selection_and_bound_from_estimation_only() -> None:
    certificate = cohen([60, 40], [10, 90], sigma_pixel=0.5, alpha=0.001)
    assert certificate.votes_top == 10
    assert certificate.predicted is None
    assert certificate.radius == 0


def test_abstains_exactly_when_the_bound_is_at_most_one_half() -> None:
    for wins in range(101):
        certificate = cohen([1, 0], [wins, 100 - wins], sigma_pixel=1, alpha=0.05)
        certain = clopper_pearson_lower(wins, 100, alpha=0.05) > 0.5
        assert (certificate.predicted is not None) == certain
        assert (certificate.radius > 0) == certain


def test_an_abstention_is_wrong_at_every_radius() -> None:
    abstained = cohen([1, 0], [50, 50], sigma_pixel=1, alpha=0.05)
    assert not any(abstained.holds(label=label, radius=0.0) for label in (0, 1))
    right = cohen([1, 0], [100, 0], sigma_pixel=1, alpha=0.05)
    assert right.holds(label=0, radius=right.radius)
    assert not right.holds(label=0, radius=math.nextafter(right.radius, 9))
    assert not right.holds(label=1, radius=0.0)


@given(p=st.floats(0.5, 1, exclude_max=True), sigma_pixel=st.floats(0.01, 10))
def test_radius_is_never_above_the_exact_one(p: float, sigma_pixel: float) -> None:
    radius = gaussian_radius(p, sigma_pixel=sigma_pixel)
    with mpmath.workdps(60):
        exact = mpmath.mpf(sigma_pixel) * mpmath.sqrt(2) * mpmath.erfinv(2 * mpmath.mpf(p) - 1)
        assert radius <= exact
        assert radius >= exact * (1 - mpmath.mpf("1e-11"))


@pytest.mark.parametrize(
    ("selection", "estimation", "sigma_pixel"),
    [([0, 0], [1, 1], 1.0), ([1], [1, 0], 1.0), ([], [], 1.0), ([1, -1], [1, 1], 1.0), ([1, 0], [1, 0], 0.0)],
)
def test_unusable_counts_are_refused(selection: list[int], estimation: list[int], sigma_pixel: float) -> None:
    with pytest.raises(ValueError, match=r"classes|counts|sigma_pixel"):
        cohen(selection, estimation, sigma_pixel=sigma_pixel, alpha=0.001)


def test_rate_of_false_certificates_stays_below_alpha() -> None:
    """Simulated votes of known law: the certified radius exceeds the true one in at most alpha of the cases."""
    generator, alpha, simulations = np.random.default_rng(1), 0.05, 20_000
    p_true = 0.9
    wins = generator.binomial(300, p_true, simulations)
    bounds = {int(k): clopper_pearson_lower(int(k), 300, alpha=alpha) for k in np.unique(wins)}
    false = sum(bounds[int(k)] > p_true for k in wins)
    assert false / simulations <= alpha + 3 * np.sqrt(alpha * (1 - alpha) / simulations)
    assert false > 0, "a simulation in which nothing can go wrong proves nothing"
