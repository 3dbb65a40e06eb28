"""Accuracy and votes of each class, and how sure votes are, from certificates whose counts are known."""

from dataclasses import replace

import numpy as np
import pytest

from pipeline.certificates.reduce import CertifiedImage, by_level
from pipeline.report.pages import shares_data
from pipeline.report.per_class import MOST_CLASSES, MOST_IN_A_MATRIX, MOST_PAIRS, by_class, called, mean_shares
from pipeline.report.vote_shares import top_share, vote_shares
from tests.support.pages import HOSTILE, certified_image, certified_images, page_data, random_images, report_page

# Class 1 has so many of 1,000 votes and class 0 the others: right, right, wrong, abstained.
ITEMS = [
    certified_image("a", 1, 1000, 0.25),
    certified_image("b", 1, 800, 0.25),
    certified_image("c", 2, 900, 0.25),
    certified_image("d", 1, 500, 0.25),
]


def test_each_class_has_its_own_certified_accuracy_and_abstentions() -> None:
    (level,) = by_class({"0.25": ITEMS}, radii=(0.0, 0.5), class_names=("ant", "bee", "cat", "dog"))
    assert level.accuracy.header == ["class", "images", "r = 0", "r = 0.5", "abstained"]
    assert level.accuracy.rows == [["bee", "3", "66.6 %", "33.3 %", "1"], ["cat", "1", "0.0 %", "0.0 %", "0"]]


def test_the_classes_accuracies_sum_up_to_that_of_all() -> None:
    items = certified_images(40, (0.25,))
    (level,) = by_class({"0.25": items}, radii=(0.0, 0.25), class_names=())
    for column, radius in ((2, 0.0), (3, 0.25)):
        right = sum(round(float(row[column][:-2]) * int(row[1]) / 100, 1) for row in level.accuracy.rows)
        assert right == pytest.approx(sum(item.holds(radius) for item in items), abs=0.2)


def test_votes_of_a_label_are_means_over_its_images_whatever_their_number() -> None:
    few = replace(ITEMS[0], counts=(10, 0, 0, 0))
    assert mean_shares([ITEMS[0], few]).tolist() == [0.5, 0.5, 0, 0]
    (level,) = by_class({"0.25": ITEMS}, radii=(), class_names=())
    (label, cells), (other, wrong) = level.votes.rows
    assert (label, [cell.text for cell in cells]) == ("1", ["23", "77", "", ""])
    assert [cell.own for cell in cells] == [False, True, False, False]
    assert (other, [cell.text for cell in wrong]) == ("2", ["10", "90", "", ""])
    for _, row in level.votes.rows:
        assert sum(cell.share for cell in row) == pytest.approx(1)


def test_with_very_many_classes_the_least_certified_and_the_largest_confusions_are_listed() -> None:
    classes = 3 * MOST_CLASSES
    rng = np.random.default_rng(0)
    items = [
        certified_image(f"{label}", label, int(rng.integers(500, 1000)), 0.25, classes=classes)
        for label in range(classes)
    ]
    (level,) = by_class({"0.25": items}, radii=(0.0,), class_names=())
    assert f"the {MOST_CLASSES} of {classes} classes" in level.accuracy.caption
    assert len(level.accuracy.rows) == MOST_CLASSES
    assert "1" not in [row[0] for row in level.accuracy.rows], "the only class that is right"
    assert classes > MOST_IN_A_MATRIX
    assert level.votes.rows == ()
    assert len(level.votes.pairs) == MOST_PAIRS
    shares = [float(share[:-2]) for _, _, share in level.votes.pairs]
    assert shares == sorted(shares, reverse=True)
    assert {other for _, other, _ in level.votes.pairs} == {"1"}


def test_two_classes_of_one_name_are_told_apart() -> None:
    assert called(3, ("ant", "bee", "bee")) == ["ant", "bee (1)", "bee (2)"]
    assert called(3, ("ant",)) == ["0", "1", "2"]


def test_the_top_classs_share_is_that_of_the_certified_class_or_of_the_leading_one() -> None:
    assert [top_share(item) for item in ITEMS] == [1.0, 0.8, 0.9, 0.5]
    levels = by_level(ITEMS, maximum_over_sigmas=True)
    (right, _), (wrong, _) = vote_shares(levels, right=True), vote_shares(levels, right=False)
    assert right.radii == (0.8, 1.0)
    assert wrong.radii == (0.5, 0.9), "of an abstention the leading class, here by the order of a tie"
    assert right.images == wrong.images == 4
    assert [right.accuracy_at(share) for share in (0.0, 0.8, 0.81, 1.0)] == [0.5, 0.5, 0.25, 0.25]


def test_right_and_wrong_top_classes_are_all_images() -> None:
    items = certified_images(50)
    for level in shares_data(by_level(items, maximum_over_sigmas=False)):
        assert level["right"]["right"][0] + level["wrong"]["right"][0] == level["right"]["images"] == 50


def page_of(items: list[CertifiedImage], names: tuple[str, ...] = ()) -> str:
    return report_page(items, random_images(items, (1, 8, 8)), class_names=names)


def test_the_page_has_a_part_for_each_level_and_says_what_the_average_radius_hides() -> None:
    page = page_of(certified_images(10), ("ant", HOSTILE, "cat", "dog"))
    assert page.count('class="level" data-level=') == 2
    assert HOSTILE not in page
    assert "arXiv 2410.06895" in page
    assert len(page_data(page)["shares"]) == 2
    assert ">cat</th>" in page
