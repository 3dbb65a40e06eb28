import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ndc_core.classifiers.racing import RaceSpec, strided, survivors, turns_to_leave

Losses = st.integers(0, 2**32 - 1).map(lambda seed: np.random.default_rng(seed).exponential(size=(5, 6, 8)))


@given(st.integers(1, 130))
def test_a_strided_order_takes_every_step_once_and_spreads_early(steps: int) -> None:
    order = strided(steps)
    assert sorted(order) == list(range(steps))
    if steps >= 8:
        early = sorted(order[:4])
        assert max(np.diff([*early, steps])) <= steps / 2


def test_a_class_leaves_when_its_paired_gap_exceeds_the_root_of_its_squares() -> None:
    # Differences to class 0: 1, 1, 1 (ratio sqrt 3) and 3, -1, 1 (ratio 3 / sqrt 11, below one).
    losses = np.array([[[0.0, 1.0, 3.0], [1.0, 2.0, 0.0], [0.0, 1.0, 1.0]]])
    everyone = np.ones((1, 3), dtype=bool)
    assert survivors(losses, everyone, gap=1.7).tolist() == [[True, False, True]]
    assert survivors(losses, everyone, gap=1.8).tolist() == [[True, True, True]]
    assert survivors(losses[:, :1], everyone, gap=1.0).all(), "one step is never enough for a gap of 1"


@given(losses=Losses, gap=st.floats(0.1, 3))
def test_nobody_leaves_before_it_is_possible(losses: np.ndarray, gap: float) -> None:
    everyone = np.ones((5, 8), dtype=bool)
    for steps in range(1, min(7, turns_to_leave(gap))):
        assert survivors(losses[:, :steps], everyone, gap=gap).all()
        # Differences that are all alike come nearest to it.
        alike = np.broadcast_to(losses[:, :1], (5, steps, 8))
        assert survivors(alike, everyone, gap=gap).all()


def test_after_as_many_steps_as_it_takes_someone_may_leave() -> None:
    for gap in (0.5, 1.0, 1.01, 1.7, 2.0, 2.5):
        alike = np.broadcast_to(np.array([0.0, 1.0]), (1, turns_to_leave(gap) + (gap**2 == round(gap**2)), 2))
        assert survivors(alike, np.ones((1, 2), dtype=bool), gap=gap).tolist() == [[True, False]]


@given(losses=Losses, gap=st.floats(0.1, 3))
def test_the_leader_stays_and_nobody_comes_back(losses: np.ndarray, gap: float) -> None:
    alive = np.ones((5, 8), dtype=bool)
    for steps in range(1, 7):
        seen = losses[:, :steps].copy()
        leader = np.where(alive, seen.sum(1), np.inf).argmin(1)
        after = survivors(np.where(alive[:, None], seen, np.nan), alive, gap=gap)
        assert not (after & ~alive).any()
        assert after[np.arange(5), leader].all()
        alive = after


@given(losses=Losses, gap=st.floats(0.1, 3), scale=st.floats(0.01, 100))
def test_units_of_the_loss_do_not_matter_and_neither_does_what_all_classes_share(losses, gap, scale) -> None:
    everyone = np.ones((5, 8), dtype=bool)
    shared = np.random.default_rng(0).normal(size=(5, 6, 1))
    before, after = (survivors(some, everyone, gap=gap) for some in (losses, scale * (losses + shared)))
    assert (before == after).mean() > 0.99  # up to ties of rounding


@given(losses=Losses, gap=st.floats(0.1, 3))
def test_each_draw_is_judged_by_its_own_losses(losses: np.ndarray, gap: float) -> None:
    everyone = np.ones((5, 8), dtype=bool)
    together = survivors(losses, everyone, gap=gap)
    for draw in range(5):
        np.testing.assert_array_equal(survivors(losses[draw : draw + 1], everyone[:1], gap=gap)[0], together[draw])


def test_a_gap_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match=r"race\.gap must be above 0"):
        RaceSpec(0)
