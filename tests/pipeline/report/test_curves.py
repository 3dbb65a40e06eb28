"""Certified accuracy as numbers that methods are compared by."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ndc_core.radius_curve import interval_of
from pipeline.report.curves import Curve
from tests.bench import evaluations


def test_a_radius_that_just_holds_counts_and_wrong_images_count_zero() -> None:
    curve = Curve(4, (0.1, 0.2), 1, method="fast", level="0.25")
    assert [curve.accuracy_at(r) for r in (0.0, 0.1, 0.15, 0.2, 0.21)] == [0.5, 0.5, 0.25, 0.25, 0.0]
    assert curve.average_radius == pytest.approx(0.075)


@given(images=st.integers(1, 60), share=st.floats(0.01, 0.99))
def test_intervals_cover_nineteen_times_in_twenty(images: int, share: float) -> None:
    """The exact probability that the interval of a binomial count holds its share."""
    law = stats.binom(images, share)
    covered = sum(
        law.pmf(k) for k in range(images + 1) if interval_of(k, images)[0] <= share <= interval_of(k, images)[1]
    )
    assert covered >= 0.95


@pytest.mark.parametrize("share", [0.6, 0.75, 0.9])
def test_the_interval_of_the_best_of_three_levels_accounts_for_the_choice(share: float) -> None:
    """The exact probability that the bench's interval of the highest count of three holds the share of all three."""
    images, levels = 12, len(evaluations.SIGMAS)
    below = stats.binom(images, share).cdf(range(-1, images + 1)) ** levels  # the highest of all is at most so many
    law = below[1:] - below[:-1]
    held = [low <= share <= high for low, high in (evaluations.interval(k, images) for k in range(images + 1))]
    assert law @ held >= 0.95


def test_intervals_of_none_and_of_all_reach_the_end() -> None:
    assert interval_of(0, 10)[0] == 0.0
    assert interval_of(10, 10)[1] == 1.0
