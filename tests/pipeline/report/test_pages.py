"""Pages of reports without a browser: what is in them, and how large they are."""

import base64
import re
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ndc_core.noise.draw_generators import draw_generator
from ndc_core.noise.grid import GridSpec
from ndc_core.noise.shared_path import PATH_NOISES, sigmas_on_path
from ndc_core.radius_curves import interval_of
from pipeline.certificates.attack_results import Attacked
from pipeline.certificates.reduce import CertifiedImage
from pipeline.declaration.declaration import Declaration
from pipeline.report.curves import Curve
from pipeline.report.gallery import (
    CLASSES_LISTED,
    MOST_CARDS,
    MOST_IMAGES,
    UNITS_OF_A_SIGMA,
    Coding,
    codings,
    encode_pictures,
    noise_bytes,
    noise_in_sigmas,
    noisy_pixels,
)
from pipeline.report.pages import curve_data, readable
from tests.support.pages import (
    HOSTILE,
    LAW,
    certified_images,
    curves_of,
    methods_page,
    page_data,
    random_images,
    report_page,
)

LIMIT = 2_000_000
ONE_PATH = LAW | {"classifier": {"one_path": True, "grid": {"levels": [4.0, 8.0]}}}


def right_of(shown: dict, radius: float) -> int:
    """How the page's script reads a curve."""
    return shown["right"][int(np.searchsorted(shown["radii"], radius))]


@given(
    radii=st.lists(st.floats(0, 3), max_size=40),
    wrong=st.integers(0, 5),
    radius=st.floats(0, 3),
    most=st.integers(1, 50),
)
def test_the_page_never_shows_more_than_a_curve_certifies(
    radii: list[float], wrong: int, radius: float, most: int
) -> None:
    curve = Curve(len(radii) + wrong + 1, tuple(sorted(radii)), 0, "m", "0.25")
    assert right_of(curve_data(curve, most_steps=most), radius) <= curve.right_at(radius)


def test_the_data_block_agrees_with_the_curves() -> None:
    items = certified_images(40)
    attacked = Attacked(10, {0.5: 0.25, 0.25: 0.5}, confirmed=True)
    curves = curves_of(items, attacked)
    shown = page_data(report_page(items, [], attacked=attacked))["curves"]
    assert [(c["method"], c["level"], c["images"], c["abstained"]) for c in shown] == [
        ("cohen", "0.25", 40, 4),
        ("cohen", "0.5", 40, 4),
    ]
    assert [c["evaluations"] for c in shown] == [1000, 2000]
    assert shown[0]["attacked"] == [[0.25, 0.5], [0.5, 0.25]]
    assert (shown[0]["attackedImages"], shown[1]["attacked"]) == (10, [])
    for curve, data in zip(curves, shown, strict=True):
        for radius in np.linspace(0, 2, 333):
            assert right_of(data, radius) == curve.right_at(radius)


def test_intervals_stand_beside_every_step_and_are_rounded_outwards() -> None:
    shown = curve_data(curves_of(certified_images(40))[0])
    assert shown["right"][-1] == 0
    for right, low, high in zip(shown["right"], shown["low"], shown["high"], strict=True):
        exact = interval_of(right, 40)
        assert low <= exact[0] <= exact[1] <= high
        assert (low, high) == pytest.approx(exact, abs=0.001)


def test_radii_are_cut_not_rounded() -> None:
    assert curve_data(Curve(2, (0.1234567, 0.5), 0, "m", "1"))["radii"] == [0.123456, 0.5]


def test_a_page_needs_no_other_file() -> None:
    items = certified_images(3)
    for page in (report_page(items, random_images(items, (3, 8, 8))), methods_page(curves_of(items))):
        assert not re.search(r'(src|href)="(?!data:|#)', page)
        assert "@import" not in page
        assert "url(" not in page
        assert "default-src 'none'" in page


def test_text_from_the_data_never_becomes_markup() -> None:
    items = [replace(item, image_id=HOSTILE + item.image_id) for item in certified_images(2)]
    page = report_page(items, random_images(items, (1, 8, 8)), title=HOSTILE)
    assert HOSTILE not in page
    assert page_data(page)["gallery"]["images"][0]["id"] == HOSTILE + "image-0"
    assert HOSTILE not in methods_page([replace(curve, method=HOSTILE) for curve in curves_of(items)])
    assert "innerHTML" not in page


def test_cards_show_the_results() -> None:
    items = certified_images(4)
    gallery = page_data(report_page(items, random_images(items, (1, 8, 8))))["gallery"]
    for item, card in zip(items, gallery["cards"], strict=True):
        assert gallery["images"][card["image"]] == {"id": item.image_id, "label": item.label}
        assert card["predicted"] == item.certificate.predicted
        assert 0 <= item.certificate.radius - card["radius"] < 1e-6
        assert dict(card["votes"]) == {c: count for c, count in enumerate(item.counts) if count}
        assert card["total"] == sum(item.counts)


def decoded(code: str, channels: int) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(base64.b64decode(code))).convert("RGB")).transpose(2, 0, 1)[:channels]


@pytest.mark.parametrize("coding", [Coding(1, 1, None), Coding(2, 16, 70)], ids=["exact", "small"])
def test_pictures_are_the_noise_of_the_first_vote_to_the_rounding_that_the_note_tells(coding: Coding) -> None:
    items = certified_images(1)
    (image,) = random_images(items, (3, 16, 16))
    noises = [noise_in_sigmas(item, image.pixels, declaration=Declaration(LAW)) for item in items]
    pictures = encode_pictures([image.pixels], noises, coding)
    thin = (slice(None), slice(None, None, coding.stride), slice(None, None, coding.stride))
    for item, code in zip(items, pictures["noise"], strict=True):
        sigma, noise = item.certificate.sigma_pixel, (decoded(code, 3).astype(float) - 128) / UNITS_OF_A_SIGMA
        wanted, inside = noisy_pixels(item, image.pixels, declaration=Declaration(LAW))[thin], abs(noise) < 3
        rounding = coding.step / 2 / UNITS_OF_A_SIGMA * sigma
        noisy = image.pixels[thin] / 255 + sigma * noise
        np.testing.assert_allclose(noisy[inside], wanted[inside], atol=rounding + 1e-6)
    if coding.quality is None:
        np.testing.assert_array_equal(decoded(pictures["clean"][0], 3), image.pixels)


@pytest.mark.parametrize("law", [LAW, ONE_PATH], ids=["each level alone", "one path"])
def test_levels_share_a_picture_of_noise_only_where_they_scale_the_same(law: dict) -> None:
    items = certified_images(3)
    page = page_data(report_page(items, random_images(items, (1, 16, 16)), law=law))
    images = {image.image_id: image.pixels for image in random_images(items, (1, 16, 16))}
    for index, (item, card) in enumerate(zip(items, page["gallery"]["cards"], strict=True)):
        code = page["pictures"]["noise"][card["image"] if page["pictures"]["shared"] else index]
        noise = (decoded(code, 1).astype(float) - 128) / UNITS_OF_A_SIGMA
        wanted = noise_in_sigmas(item, images[item.image_id], declaration=Declaration(law)).clip(-127 / 32, 127 / 32)
        one_level = 1 / 255 / item.certificate.sigma_pixel  # integer noise is rounded to levels of grey
        np.testing.assert_allclose(noise, wanted, atol=1 / 64 + 1.5 * one_level)


@pytest.mark.parametrize("noise", ["integer", "float"])
def test_the_noise_of_a_path_is_that_of_the_whole_path(noise: str) -> None:
    path_sigmas = sigmas_on_path(GridSpec(levels=(4.0, 8.0)), (0.25, 0.5))
    pixels = np.full((1, 4, 4), 7, np.uint8)
    for item in certified_images(1):
        sigma, path_noise = item.certificate.sigma_pixel, PATH_NOISES[noise](path_sigmas)
        generator = draw_generator(seed=0, image_id=item.image_id, phase="estimation", draw=0)
        drawn = path_noise.draw(generator, pixels.shape)[path_sigmas.index(sigma)]
        added = noisy_pixels(item, pixels, declaration=Declaration(ONE_PATH | {"noise": noise})) - 7 / 255
        np.testing.assert_allclose(added, drawn / 255 if noise == "integer" else drawn, atol=1e-12)


def test_without_noise_nothing_is_added() -> None:
    (item,) = certified_images(1, (0.25,))
    pixels = np.full((1, 4, 4), 7, np.uint8)
    assert (
        noise_bytes(noise_in_sigmas(item, pixels, declaration=Declaration(LAW | {"noise": "none"})), step=1) == 128
    ).all()


def test_codings_go_from_exact_to_small_and_say_what_is_lost() -> None:
    first, *_, last = codings(4)
    assert first == Coding(1, 1, None)
    assert "clean pictures are stored exactly" in first.note
    assert last.stride == 4
    assert "one of every 4 rows and columns of pixels is shown" in last.note


SIGMAS = (0.25, 0.5, 1.0)


@pytest.mark.parametrize("law", [LAW, ONE_PATH | {"sigma_pixel": SIGMAS}], ids=["each level alone", "one path"])
def test_five_hundred_random_colour_images_at_three_levels_stay_under_two_megabytes(law: dict) -> None:
    items = certified_images(500, SIGMAS)
    page = report_page(items, random_images(items, (3, 64, 64)), law=law)
    shown = page_data(page)
    assert len(shown["pictures"]["clean"]) == 500
    assert len(page.encode()) < LIMIT
    assert max(decoded(shown["pictures"]["noise"][0], 3).shape) >= (32 if law is LAW else 16)
    assert shown["pictures"]["note"] in page


def test_more_images_are_shown_as_a_spread_and_the_page_says_so() -> None:
    items = certified_images(700, (0.25,))
    page = report_page(items, random_images(items, (1, 4, 4)))
    assert f"{MOST_IMAGES} of 700 images are shown, spread evenly over the data" in " ".join(page.split())
    assert page_data(page)["gallery"]["images"][-1]["id"] == "image-698"
    many = certified_images(200, tuple(0.1 * n for n in range(1, 11)))
    assert len(page_data(report_page(many, random_images(many, (1, 4, 4))))["gallery"]["cards"]) == MOST_CARDS


def with_votes_everywhere(item: CertifiedImage, classes: int) -> CertifiedImage:
    return replace(item, counts=tuple(range(100, 100 + classes)))


def test_a_thousand_classes_with_votes_stay_under_two_megabytes() -> None:
    items = [with_votes_everywhere(item, 1000) for item in certified_images(500, SIGMAS)]
    page = report_page(items, random_images(items, (3, 32, 32)))
    votes = page_data(page)["gallery"]["cards"][0]["votes"]
    assert votes == [[c, 100 + c] for c in range(1000 - CLASSES_LISTED, 1000)]
    assert len(page.encode()) < LIMIT


def test_curves_of_fifty_thousand_images_are_thinned() -> None:
    radii = tuple(np.sort(np.random.default_rng(0).random(40_000)).tolist())
    curves = [Curve(50_000, radii, 0, f"method {i}", "0.25") for i in range(12)]
    page = methods_page(curves)
    assert len(page) < LIMIT / 2
    assert "drawn with fewer, never above the true ones" in page
    shown = page_data(page)["curves"][0]
    assert len(shown["radii"]) == 1000
    assert shown["radii"][-1] == pytest.approx(radii[-1], abs=1e-6)
    assert right_of(shown, 0.5) == pytest.approx(curves[0].right_at(0.5), abs=50)


def test_the_declaration_is_described_in_words() -> None:
    declared = {
        "votes": {"selection": 50, "ends": None},
        "sigma_pixel": [0.25, 0.5],
        "grid": {"levels": [], "a": {"b": True}},
    }
    assert dict(readable(declared)) == {"votes.selection": "50", "sigma_pixel": "0.25, 0.5", "grid.a.b": "yes"}
    page = report_page(certified_images(3, SIGMAS), random_images(certified_images(3, SIGMAS), (1, 8, 8)))
    told = page[page.index('id="declared"') : page.index('id="images"')]
    assert "{" not in told
    assert "[" not in told
