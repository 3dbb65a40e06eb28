"""Certificates and predictions of images in memory: what they promise, what they take, and what they refuse."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from ndc_core import (
    CERTIFICATES,
    Certificate,
    DiffusionClassifier,
    GridSpec,
    RaceSpec,
    Tally,
    Terms,
    certify,
    cohen,
    count_votes,
    predict,
    radius_curve,
)
from ndc_core import image_votes as image_votes_module
from ndc_core.image_votes import name_of
from ndc_core.noise.smoothing import NOISES
from ndc_core.prediction import class_ahead
from tests.support.fakes import GaussianDenoiser, two_gaussians

GRID = GridSpec(points=4, sigma_model_max=2.0, spacing="log")
SIZES = {"sigma_pixel": 0.25, "alpha": 0.01, "selection_votes": 20, "estimation_votes": 150}
DIMENSION = 4
# Two classes on either side of grey: a light one, one near the border, a dark one.
BATCH = np.stack([np.full((1, 1, DIMENSION), level, np.uint8) for level in (200, 130, 40)])


@pytest.fixture(scope="module")
def classifier() -> DiffusionClassifier:
    return DiffusionClassifier(two_gaussians(), "apndc", grid=GRID, weight="edm", rows_per_pass=64)


def counts(classifier: DiffusionClassifier, image: np.ndarray, phase: Any, draws: range) -> list[int]:
    named = {"noise": "integer", "seed": 0, "image_id": name_of(image), "sigma_pixel": 0.25}
    return count_votes(classifier, image, phase=phase, draws=draws, **named).votes.tolist()


def test_a_batch_has_the_certificates_of_its_images(classifier: DiffusionClassifier) -> None:
    together = certify(classifier, BATCH, **SIZES)
    assert together == [certify(classifier, image, **SIZES) for image in BATCH]
    assert [certificate.predicted for certificate in together] == [1, None, 0]


def test_cohens_certificate_is_that_of_the_votes(classifier: DiffusionClassifier) -> None:
    image = np.full((1, 1, DIMENSION), 150, np.uint8)
    certificate = certify(classifier, image, **SIZES)
    selection = counts(classifier, image, "selection", range(20))
    estimation = counts(classifier, image, "estimation", range(150))
    assert min(estimation) > 0
    by_hand = cohen(selection, estimation, sigma_pixel=0.25, alpha=0.01)
    assert (certificate.predicted, certificate.votes_top) == (by_hand.predicted, by_hand.votes_top)
    assert certificate.radius <= by_hand.radius, "the noise on the grid is a little away from the theorem's"
    assert certificate.radius == pytest.approx(by_hand.radius, abs=1e-9)


def test_a_sequential_certificate_stops_at_the_look_that_decides(classifier: DiffusionClassifier) -> None:
    settings = SIZES | {"estimation_votes": 5000}
    certificate = certify(classifier, BATCH[0], method="sequential", radii=[0.1], **settings)
    terms = Terms(0.25, 0.01, 5000, (0.1,), NOISES["integer"](0.25).distance(DIMENSION), "8-bit images")
    procedure, looks = CERTIFICATES["sequential"](terms), []
    selection = counts(classifier, BATCH[0], "selection", range(20))
    for end in procedure.looks:
        looks.append(counts(classifier, BATCH[0], "estimation", range(end)))
        if procedure.decided(Tally(selection, looks)):
            break
    assert certificate == procedure.certificate(Tally(selection, looks))
    assert certificate.votes < 5000
    assert certificate.radius >= 0.1


@pytest.mark.parametrize("method", ["cohen", "sequential"])
def test_a_race_that_stops_when_the_candidate_is_beaten_changes_no_certificate(method: Any) -> None:
    denoiser = GaussianDenoiser(torch.randn(6, 9, generator=torch.Generator().manual_seed(1)) / 2, 0.05)
    grid = GridSpec(points=12, sigma_model_max=2.0, spacing="log")
    raced = DiffusionClassifier(denoiser, "apndc", grid=grid, weight="edm", race=RaceSpec(gap=2.0), rows_per_pass=32)
    image = np.random.default_rng(0).integers(90, 160, (1, 1, 9), dtype=np.uint8)
    settings = SIZES | ({"radii": [0.01]} if method == "sequential" else {})
    certificate = certify(raced, image, method=method, **settings)
    drawn = counts(raced, image, "estimation", range(certificate.votes))  # whole votes, about no candidate
    candidate = int(np.argmax(counts(raced, image, "selection", range(20))))
    assert certificate.votes_top == drawn[candidate]


def test_tensors_and_arrays_have_the_same_certificates(classifier: DiffusionClassifier) -> None:
    assert certify(classifier, torch.from_numpy(BATCH), **SIZES) == certify(classifier, BATCH, **SIZES)


def test_pixels_under_float_noise_are_those_of_the_8_bit_image(classifier: DiffusionClassifier) -> None:
    eight_bit = certify(classifier, BATCH[0], noise="float", **SIZES)
    pixels = certify(classifier, BATCH[0] / 255, noise="float", **SIZES)
    assert isinstance(eight_bit, Certificate)
    assert eight_bit.scope == pixels.scope == "all images, if floating-point noise is taken for exact"
    assert (eight_bit.predicted, pixels.predicted) == (1, 1)


def test_seeds_draw_anew_and_images_do_not_share_noise(classifier: DiffusionClassifier) -> None:
    middle, neighbour = BATCH[1], BATCH[1] + np.uint8(1)
    votes = [
        certify(classifier, image, seed=seed, **SIZES).votes_top
        for image, seed in ((middle, 0), (middle, 1), (neighbour, 0))
    ]
    assert len(set(votes)) > 1


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (
            BATCH / 255,
            r"float64 from 0.15\S* to 0.78\S*, not .* \(255 \* images\).round\(\) as uint8; noise='float'",
        ),
        (BATCH.astype(np.float32), r"float32 from 40 to 200, not uint8; give images.round\(\) as uint8"),
        (BATCH / 127.5 - 1, r"from -0.6\S* to 0.5\S*, not uint8; give \(\(images \+ 1\) \* 127.5\)"),
        (BATCH + np.inf, r"some values are not finite"),
        (BATCH.astype(np.int64), r"int64, not uint8; give whole numbers from 0 to 255 as uint8"),
        (torch.from_numpy(BATCH).float(), r"float32 from 40 to 200"),
        (BATCH[:0], r"there are no images"),
        (BATCH[0, 0, 0], r"shape \(4,\) is that of no image; the model takes .* = \(1, 1, 4\)"),
        (BATCH[:, 0], r"shape \(3, 1, 4\) has no axis of channels; .* use images\[:, None\]"),
        (BATCH[0, 0], r"shape \(1, 4\) has no axis of channels; .* use images\[None\]"),
        (BATCH.transpose(0, 2, 3, 1), r"channels last; .* use np.transpose\(images, \(0, 3, 1, 2\)\)"),
        (BATCH[0].transpose(1, 2, 0), r"channels last; .* use np.transpose\(images, \(2, 0, 1\)\)"),
        (np.zeros((3, 1, 4), np.uint8)[None], r"3 channels instead of 1; .* Resize or convert"),
        (np.zeros((1, 32, 32), np.uint8), r"32 x 32 pixels instead of 1 x 4"),
        (np.zeros((32, 32, 3), np.uint8), r"3 channels instead of 1 and 32 x 32 pixels .* and channels last"),
    ],
)
def test_images_that_are_not_what_the_model_takes_are_refused_with_the_remedy(
    classifier: DiffusionClassifier, images: Any, message: str
) -> None:
    for ask in (certify, predict):
        with pytest.raises(ValueError, match=message):
            ask(classifier, images, sigma_pixel=0.25)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sigma_pixel": 0.0}, r"sigma_pixel must be above 0"),
        ({"alpha": 1.5}, r"alpha must lie between 0 and 1"),
        ({"noise": "none"}, r"needs noise"),
        ({"selection_votes": 0}, r"at least 1 vote"),
        ({"method": "lipschitz"}, r"'cohen' or 'sequential', not 'lipschitz'"),
        ({"method": "sequential"}, r"radii say when"),
        ({"radii": [0.1]}, r"radii say when"),
        (
            {"method": "sequential", "radii": [2.0]},
            r"radius 2 can never be certified: if all 150",
        ),
    ],
)
def test_settings_that_can_certify_nothing_are_refused(
    classifier: DiffusionClassifier, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        certify(classifier, BATCH, **(SIZES | changes))


# Predictions


def test_a_prediction_names_the_class_or_abstains(classifier: DiffusionClassifier) -> None:
    light, border, dark = predict(classifier, BATCH, sigma_pixel=0.25)
    assert (light.predicted, border.predicted, dark.predicted) == (1, None, 0)
    assert light == predict(classifier, BATCH[0], sigma_pixel=0.25)
    assert sum(border.votes) == 100
    for changes, message in (({"alpha": 0}, "alpha must"), ({"votes": 0}, "at least 1 vote")):
        with pytest.raises(ValueError, match=message):
            predict(classifier, BATCH, sigma_pixel=0.25, **changes)


def test_the_class_ahead_is_that_of_the_two_sided_binomial_test() -> None:
    for first, second, third in ((10, 1, 0), (60, 40, 5), (61, 39, 0), (8, 0, 0)):
        chance = stats.binomtest(first, first + second, 0.5).pvalue
        assert class_ahead([third, first, second], alpha=chance * 1.001) == 1
        assert class_ahead([third, first, second], alpha=chance * 0.999) is None
    assert class_ahead([50, 50], alpha=0.999) is None


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.36, 0.34, 0.3), (0.3, 0.3, 0.2, 0.2)])
def test_a_wrong_class_is_named_no_more_often_than_alpha(shares: tuple[float, ...]) -> None:
    """The true class is the first; where others are as probable, any of them counts as wrong."""
    drawn, alpha = np.random.default_rng(0).multinomial(40, shares, size=4000), 0.1
    wrong = sum(class_ahead(row.tolist(), alpha=alpha) not in (None, 0) for row in drawn)
    assert wrong <= stats.binom(4000, alpha).ppf(0.999)


# What is shown


def certificate(predicted: int | None, radius: float, **changes: Any) -> Certificate:
    named = {"sigma_pixel": 0.25, "alpha": 0.001, "p_lower": 0.9, "votes_top": 997, "votes": 1000, "scope": "all"}
    return Certificate("cohen", predicted=predicted, radius=radius, **(named | changes))


def test_what_is_shown_of_a_result_is_short_and_never_above_the_radius(classifier: DiffusionClassifier) -> None:
    assert (
        repr(certificate(8, 0.56789))
        == "<class 8 to radius 0.5678: cohen, sigma 0.25, alpha 0.001, 997 of 1,000 votes>"
    )
    assert repr(certificate(None, 0.0)).startswith("<abstains: cohen")
    assert repr(predict(classifier, BATCH[0], sigma_pixel=0.25, votes=30)).startswith("<class 1: ")
    drawn = count_votes(
        classifier, BATCH[0], sigma_pixel=0.25, noise="integer", seed=0, image_id="", phase="selection", draws=range(30)
    )
    assert repr(drawn).startswith("<class 1 has ")
    assert len(repr(drawn)) < 100


def test_a_curve_counts_wrong_images_and_abstentions_as_wrong_at_every_radius() -> None:
    certificates = [certificate(1, 0.3), certificate(1, 0.1), certificate(0, 0.5), certificate(None, 0.0)]
    curve = radius_curve(certificates, [1, 1, 1, 1])
    assert [curve.accuracy_at(radius) for radius in (0, 0.1, 0.2, 0.3, 0.31)] == [0.5, 0.5, 0.25, 0.25, 0]
    assert repr(curve) == "<4 images: 50.0 % right, 1 abstained, average radius 0.1000>"
    assert (curve.images, curve.abstained, curve.average_radius) == (4, 1, pytest.approx(0.1))
    low, high = curve.interval_at(0.2)
    assert low == pytest.approx(stats.beta.ppf(0.025, 1, 4))
    assert high == pytest.approx(stats.beta.ppf(0.975, 2, 3))
    with pytest.raises(ValueError, match="several noise levels"):
        radius_curve([certificate(1, 0.3), certificate(1, 0.1, sigma_pixel=0.5)], [1, 1])
    with pytest.raises(ValueError, match="2 certificates and 1 labels"):
        radius_curve(certificates[:2], [1])


def test_no_more_threads_run_than_there_are_cores_and_they_are_set_back(
    classifier: DiffusionClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[int] = []
    drawing = image_votes_module.stream_votes

    def noted(*given: Any) -> Any:
        threads.append(torch.get_num_threads())
        return drawing(*given)

    monkeypatch.setattr(image_votes_module, "stream_votes", noted)
    monkeypatch.setattr(image_votes_module, "usable_cores", lambda: 1)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        predict(classifier, BATCH[0], sigma_pixel=0.25, votes=2)
        assert (threads, torch.get_num_threads()) == ([1], 3)
    finally:
        torch.set_num_threads(before)
