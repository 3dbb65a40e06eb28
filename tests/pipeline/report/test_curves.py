"""Certified accuracy as numbers that methods are compared by."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ndc_core.radius_curves import interval_of
from pipeline.certificates.reduce import LARGEST
from pipeline.declaration.declaration import Declaration
from pipeline.report.curves import Curve, best_of, stopping_radii
from pipeline.report.figures import certified_accuracy_figure
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


def sequential(*radii: float, votes: int = 1000) -> Declaration:
    law = {
        "dataset": {"image_shape": [1, 8, 8]},
        "classifier": {"name": "plain"},
        "sigma_pixel": [0.125, 0.25],
        "noise": "integer",
        "votes": {"selection": 10, "estimation": votes},
        "certificate": {"method": "sequential", "alpha": 0.001, "maximum_over_sigmas": False, "radii": list(radii)},
    }
    return Declaration(law)


def test_sampling_stops_at_the_last_declared_radius_that_a_levels_votes_can_prove() -> None:
    assert stopping_radii(sequential(0.0, 0.25, 0.5)) == {"0.125": 0.25, "0.25": 0.5, LARGEST: 0.5}
    assert stopping_radii(sequential(0.0, 0.5, 9.0)) == {"0.125": 0.0, "0.25": 0.5, LARGEST: 0.5}
    assert stopping_radii(sequential(9.0)) == {}
    fixed = sequential().recorded["certificate"] | {"method": "cohen"}
    del fixed["radii"]
    assert stopping_radii(Declaration({**sequential().recorded, "certificate": fixed})) == {}


def test_the_best_of_levels_stops_where_the_last_of_them_did_if_all_stopped() -> None:
    curves = [Curve(4, (0.1, 0.3), 0, "m", str(stop), stopped_at=stop) for stop in (0.1, 0.2)]
    assert best_of(curves).stopped_at == 0.2
    assert best_of([*curves, Curve(4, (0.4,), 0, "m", "1")]).stopped_at is None


@pytest.mark.parametrize("stop", [0.0, 0.1, 0.25, 0.5])
def test_a_figure_says_that_sampling_stopped_and_no_other_does(stop: float) -> None:
    curve = Curve(4, (0.1, 0.2, 0.3), 0, "m", "0.25")
    stopped = certified_accuracy_figure([Curve(4, (0.1, 0.2, 0.3), 0, "m", "0.25", stopped_at=stop)])
    assert stopped.svg != certified_accuracy_figure([curve]).svg
    assert stopped == certified_accuracy_figure([Curve(4, (0.1, 0.2, 0.3), 0, "m", "0.25", stopped_at=stop)])
