"""Certified accuracy as numbers that methods are compared by."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pipeline.curves import Curve, interval_of


def test_a_radius_that_just_holds_counts_and_wrong_images_count_zero() -> None:
    curve = Curve("fast", "0.25", images=4, radii=(0.1, 0.2), abstained=1)
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


def test_intervals_of_none_and_of_all_reach_the_end() -> None:
    assert interval_of(0, 10)[0] == 0.0
    assert interval_of(10, 10)[1] == 1.0
