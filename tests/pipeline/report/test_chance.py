"""The warning of a run that is no better than chance: never on few images, and with the order that was observed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pipeline.report.chance import above_chance, chance_warning, taken_for, useless

TEN = list(range(10))
AS_STRINGS = ("1", "10", "2", "3", "4", "5", "6", "7", "8", "9")


def guesses_of(predicted_of: list[int], each: int) -> list[tuple[int, int]]:
    return [(label, predicted) for label, predicted in enumerate(predicted_of) for _ in range(each)]


@given(classes=st.integers(2, 1000), images=st.integers(1, 3))
def test_a_few_wrong_images_are_no_reason_to_warn(classes: int, images: int) -> None:
    assert chance_warning({"0.25": [(0, 1)] * images}, classes=classes) is None


@given(classes=st.integers(2, 1000), images=st.integers(1, 500), accuracy=st.floats(0.76, 1))
def test_a_useful_classifier_is_warned_of_once_in_a_hundred_runs_at_most(
    classes: int, images: int, accuracy: float
) -> None:
    counts = [right for right in range(images + 1) if useless([(0, 0)] * right + [(0, 1)] * (images - right), classes)]
    assert stats.binom.cdf(max(counts, default=-1), images, accuracy) <= 0.01


def test_a_poor_result_above_chance_is_no_reason_to_warn() -> None:
    guesses = [(0, 0)] * 80 + [(0, 1)] * 420  # 16 % of 10 classes
    assert above_chance(guesses, 10)
    assert chance_warning({"1": guesses}, classes=10) is None
    assert chance_warning({"1": [(0, 0)] * 50 + [(0, 1)] * 450}, classes=10) is not None
    assert chance_warning({"0.25": guesses, "1": [(0, 1)] * 500}, classes=10) is None  # a level is above it


def test_the_test_has_the_level_that_it_states() -> None:
    falsely = sum(
        above_chance([(0, 0)] * right + [(0, 1)] * (100 - right), 10) * stats.binom.pmf(right, 100, 0.1)
        for right in range(101)
    )
    assert 0.02 < falsely <= 0.05


def test_folders_in_another_order_are_named_with_the_order_that_fits() -> None:
    digit_of = [int(name) - 1 for name in AS_STRINGS]
    warning = chance_warning({"0.25": guesses_of(digit_of, 10)}, classes=10, names=AS_STRINGS)
    assert warning is not None
    assert "10 of 100 at sigma 0.25, where guessing is right in 10 % (one-sided binomial test at 5 %)" in warning
    assert "dataset.classes" in warning
    assert "label -> class: 0 (1) -> 0, 1 (10) -> 9, 2 (2) -> 1," in warning
    assert warning.endswith("in this order, if its makers confirm it: 1, 2, 3, 4, 5, 6, 7, 8, 9, 10.")


@pytest.mark.parametrize(
    "guesses",
    [
        guesses_of([7] * 10, 10),  # a model that has collapsed
        [(0, 1), (1, 2)],  # too few
        list(zip(np.tile(TEN, 50).tolist(), np.random.default_rng(0).integers(0, 10, 500).tolist(), strict=True)),
    ],
)
def test_no_order_is_read_out_of_predictions_that_have_none(guesses: list[tuple[int, int]]) -> None:
    assert taken_for(guesses, 10) == {}
    warning = chance_warning({"0.25": guesses}, classes=10)
    assert warning is None or "label -> class" not in warning


def test_an_order_is_read_where_luck_would_not_make_one() -> None:
    """A random order of ten images, each of its own class, has 10!/10^10; among 1,000 classes it is nearly sure."""
    order = [(label, (label + 1) % 10) for label in TEN]
    assert taken_for(order, 10) == dict(order)
    assert taken_for(order, 1000) == {}
    assert taken_for(order * 2, 1000) == dict(order)
    blurred = guesses_of([(label + 1) % 10 for label in TEN], 8) + guesses_of([3] * 10, 2)
    assert taken_for(blurred, 10) == dict(order)


def test_only_some_of_many_classes_are_named() -> None:
    warning = chance_warning({"0.25": guesses_of([*range(1, 100), 0], 3)}, classes=100)
    assert warning is not None
    assert "0 -> 1, 1 -> 2, " in warning
    assert "and 80 more" in warning
