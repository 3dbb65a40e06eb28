"""The pages in Debian's Chromium: what they show, how they are operated, and that they ask for nothing."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from ndc_core.radius_curves import interval_of
from pipeline.certificates.attack_results import Attacked
from pipeline.certificates.reduce import by_level
from pipeline.declaration.declaration import Declaration
from pipeline.report.curves import Curve
from pipeline.report.figures import COLOURS
from pipeline.report.gallery import noisy_pixels
from pipeline.report.tables import Table
from pipeline.report.vote_shares import top_share
from tests.support.pages import HOSTILE, LAW, certified_images, curves_of, methods_page, random_images, report_page

CHROMIUM = Path("/usr/bin/chromium")
pytestmark = pytest.mark.skipif(
    not CHROMIUM.exists(), reason=f"no browser: {CHROMIUM} is missing (Debian's package chromium)"
)

ITEMS = certified_images(40)
IMAGES = random_images(ITEMS, (3, 16, 16))
ATTACKED = Attacked(10, {0.1: 0.9, 0.3: 0.5}, confirmed=True)
CURVES = curves_of(ITEMS, ATTACKED)
METHODS = [
    replace(curve, method=method, evaluations_per_image=cost)
    for curve in CURVES
    for method, cost in (("fast", 1e3), (HOSTILE, 1e5), ("unpriced", None))
]
WIDE, NARROW = {"width": 1200, "height": 900}, {"width": 360, "height": 740}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pages") / "report.html"
    path.write_text(report_page(ITEMS, IMAGES, attacked=ATTACKED))
    return path


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pages") / "comparison.html"
    path.write_text(methods_page(METHODS))
    return path


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page that must neither complain nor ask for anything but its own file."""
    with browser.new_context(viewport=WIDE) as context:
        page, complaints, requests = context.new_page(), [], []
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.on("dialog", lambda dialog: complaints.append(dialog.message))
        yield page
        assert complaints == []
        asked = {url for url in requests if not url.startswith("data:")}
        assert asked == {page.url}


def opened(page: Page, path: Path) -> Page:
    page.goto(path.as_uri())
    return page


def curve_names(page: Page) -> list[str]:
    curves = page.locator("#curves-chart g.curve")
    return [curves.nth(index).get_attribute("data-name") for index in range(curves.count())]


def check_readout(page: Page, curves: list[Curve]) -> float:
    """The radius of the readout, whose accuracies and intervals are those of the curves."""
    text = page.locator("#curves-readout").inner_text().replace("\u00a0", " ")
    radius = float(re.search(r"Radius ([\d.]+)", text)[1])
    for curve in curves:
        share, low, high = re.search(rf"sigma {curve.level}: ([\d.]+) % \(([\d.]+) % to ([\d.]+) %\)", text).groups()
        exact = interval_of(curve.right_at(radius), curve.images)
        assert float(share) == pytest.approx(100 * curve.accuracy_at(radius), abs=0.051)
        assert (float(low), float(high)) == pytest.approx((100 * exact[0], 100 * exact[1]), abs=0.11)
    return radius


def test_toggles_hide_curves_and_points(page: Page, report: Path) -> None:
    opened(page, report)
    assert curve_names(page) == ["sigma 0.25", "sigma 0.5"]
    expect(page.locator("#cost-chart .point")).to_have_count(2)
    page.get_by_label("sigma 0.25", exact=True).uncheck()
    assert curve_names(page) == ["sigma 0.5"]
    expect(page.locator("#cost-chart .point")).to_have_count(1)
    expect(page.locator("#curves-readout li")).to_have_count(1)
    page.get_by_label("sigma 0.25", exact=True).check()
    page.get_by_role("group", name="Methods").get_by_label("cohen").uncheck()
    assert curve_names(page) == []


def test_attacks_are_drawn_and_can_be_hidden(page: Page, report: Path) -> None:
    opened(page, report)
    expect(page.locator("#curves-chart .attacked")).to_have_count(1)
    expect(page.locator("#curves-chart .dot")).to_have_count(2)
    page.get_by_label("accuracy under attack").uncheck()
    expect(page.locator("#curves-chart .attacked")).to_have_count(0)


def test_arrow_keys_read_the_curves_at_every_radius(page: Page, report: Path) -> None:
    slider = opened(page, report).get_by_label("Radius", exact=True)
    slider.focus()
    assert check_readout(page, CURVES) == 0
    radii = []
    for _ in range(60):
        page.keyboard.press("ArrowRight")
        radii.append(check_readout(page, CURVES))
    assert radii == sorted(set(radii))
    page.keyboard.press("End")
    assert check_readout(page, CURVES) > max(curve.radii[-1] for curve in CURVES)
    page.keyboard.press("Home")
    assert check_readout(page, CURVES) == 0
    assert page.locator("#curves-readout").get_attribute("aria-live") == "polite"


def test_the_pointer_reads_the_curves_where_it_is(page: Page, report: Path) -> None:
    box = opened(page, report).locator("#curves-chart svg").bounding_box()
    radii = []
    for part in (0.2, 0.5, 0.8):
        page.mouse.move(box["x"] + part * box["width"], box["y"] + box["height"] / 2)
        radii.append(check_readout(page, CURVES))
        line = page.locator("#curves-chart .cursor").bounding_box()
        assert line["x"] == pytest.approx(box["x"] + part * box["width"], abs=10)
    assert radii == sorted(set(radii))


def test_what_attacks_left_is_told_from_the_attacked_radius_on(page: Page, report: Path) -> None:
    opened(page, report).get_by_label("Radius", exact=True).fill("0.3")
    expect(page.locator("#curves-readout")).to_contain_text("50.0\u00a0% under attack at 0.3 (first 10 images)")
    page.get_by_label("Radius", exact=True).fill("0.05")
    expect(page.locator("#curves-readout")).not_to_contain_text("under attack")


def test_the_best_sigma_per_radius_is_the_largest_and_says_how_it_was_chosen(page: Page, report: Path) -> None:
    opened(page, report)
    page.get_by_role("group", name="Best sigma per radius, chosen on this data").get_by_label("cohen").check()
    expect(page.locator("#curves-chart .best")).to_have_count(1)
    for asked in ("0", "0.2", "0.6"):
        page.get_by_label("Radius", exact=True).fill(asked)
        text = page.locator("#curves-readout").inner_text().replace("\u00a0", " ")
        shown = float(re.search(r"chosen on this data: ([\d.]+) %", text)[1])
        wanted = max(curve.accuracy_at(float(asked)) for curve in CURVES)
        assert shown == pytest.approx(100 * wanted, abs=0.051)


def test_points_of_the_cost_chart_are_named_and_told(page: Page, report: Path) -> None:
    opened(page, report).get_by_label("Certified to radius").fill("0.2")
    point = page.locator("#cost-chart .point").first
    point.focus()
    accuracy = f"{100 * CURVES[0].accuracy_at(0.2):.1f}"
    told = page.locator("#cost-readout").inner_text().replace("\u00a0", " ")
    assert told.startswith(f"cohen, sigma 0.25: {accuracy} %")
    assert "at radius 0.2, 1,000 evaluations per image, 2 seconds per image" in told
    assert point.get_attribute("aria-label").replace("\u00a0", " ") == told
    expect(point.locator("text")).to_have_text("cohen, sigma 0.25")


def radii_of(cards: Locator) -> list[float]:
    texts = [re.search(r"radius ([\d.]+)", cards.nth(index).inner_text()) for index in range(cards.count())]
    return [float(text[1]) for text in texts if text]


def test_filters_and_orders_choose_the_cards(page: Page, report: Path) -> None:
    opened(page, report)
    cards, count = page.locator("#gallery .card"), page.locator("#gallery-count")
    expect(cards).to_have_count(60)
    expect(count).to_have_text("80 of 80 match; the first 60 are listed.")
    outcomes = [cards.nth(index).get_attribute("data-outcome") for index in range(60)]
    assert outcomes == ["wrong"] * 16 + ["abstained"] * 8 + ["right"] * 36  # what is to be improved comes first
    assert radii_of(cards)[24:] == sorted(radii_of(cards)[24:])
    page.get_by_role("button", name="Show 20 more").click()
    expect(cards).to_have_count(80)
    expect(cards.nth(60).get_by_role("button")).to_be_focused()
    for outcome, wanted in (("abstained", 8), ("wrong", 16), ("right", 56)):
        page.locator("#by-outcome").select_option(outcome)
        expect(cards).to_have_count(wanted)
        expect(count).to_have_text(f"{wanted} of 80 match.")
        assert cards.first.get_attribute("data-outcome") == outcome
    page.locator("#by-sigma").select_option("0.5")
    expect(cards).to_have_count(28)
    page.locator("#by-order").select_option("largest radius first")
    assert radii_of(cards) == sorted(radii_of(cards), reverse=True)
    page.locator("#by-order").select_option("smallest radius first")
    assert radii_of(cards) == sorted(radii_of(cards))
    page.locator("#by-label").select_option("2")
    expect(count).to_have_text("0 of 80 match.")
    assert count.get_attribute("aria-live") == "polite"


def test_a_card_opens_with_the_keyboard_and_gives_the_focus_back(page: Page, report: Path) -> None:
    button = opened(page, report).get_by_role("button", name="Details of image image-1 at sigma 0.5")
    button.focus()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    expect(dialog).to_be_visible()
    item = next(item for item in ITEMS if item.image_id == "image-1" and item.certificate.sigma_pixel == 0.5)
    text = dialog.inner_text()
    for wanted in ("image-1, sigma 0.5: wrong", "2,000", "1 (predicted)", "2 (label)"):
        assert wanted in text
    assert str(int(item.certificate.radius * 1e6) / 1e6) in text
    assert str(int(item.certificate.p_lower * 1e6) / 1e6) in text
    rows = dialog.locator("table tr")
    assert [rows.nth(c).locator("td").first.inner_text() for c in range(4)] == [str(count) for count in item.counts]
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(button).to_be_focused()


def test_the_noisy_picture_is_what_the_first_vote_saw(page: Page, report: Path) -> None:
    opened(page, report).locator("#by-order").select_option("as in the data")
    canvas = page.locator("#gallery canvas[data-ready]")
    expect(canvas).to_have_count(60)
    for index in (0, 1):  # both levels of the first image
        drawn = canvas.nth(index).evaluate("c => [...c.getContext('2d').getImageData(0, 0, 16, 16).data]")
        wanted = 255 * noisy_pixels(ITEMS[index], IMAGES[0].pixels, declaration=Declaration(LAW)).clip(0, 1)
        noise = abs(wanted - IMAGES[0].pixels) / 255 / ITEMS[index].certificate.sigma_pixel
        for channel in range(3):
            for place, (pixel, beyond) in enumerate(zip(wanted[channel].flat, noise[channel].flat, strict=True)):
                if beyond < 3.9:
                    assert drawn[4 * place + channel] == pytest.approx(pixel, abs=3)


CONTRAST = """(selectors) => {
  const channels = (colour) => {
    const canvas = Object.assign(document.createElement("canvas"), { width: 1, height: 1 });
    const context = canvas.getContext("2d");
    context.fillStyle = colour;
    context.fillRect(0, 0, 1, 1);
    return [...context.getImageData(0, 0, 1, 1).data];
  };
  const light = (colour) => channels(colour).slice(0, 3)
    .map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (node) => {
    for (; node; node = node.parentElement)
      if (channels(getComputedStyle(node).backgroundColor)[3] === 255) return getComputedStyle(node).backgroundColor;
    return "white";
  };
  return selectors.map((selector) => {
    const node = document.querySelector(selector);
    const [a, b] = [light(getComputedStyle(node).color), light(behind(node))].sort((x, y) => y - x);
    return [selector, (a + 0.05) / (b + 0.05)];
  });
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_light_and_dark(page: Page, report: Path, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)
    opened(page, report)
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 22, 26)"}[scheme]
    selectors = [
        "p",
        ".note",
        "nav a",
        "legend",
        "td",
        "#more",
        "select",
        ".right",
        ".wrong",
        ".abstained",
        ".votes th",
    ]
    for selector, contrast in page.evaluate(CONTRAST, selectors):
        assert contrast >= 4.5, selector


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_lines_of_every_colour_stand_out_and_names_are_written_like_text(
    page: Page, tmp_path: Path, scheme: str
) -> None:
    path = tmp_path / "comparison.html"
    path.write_text(methods_page([replace(CURVES[0], method=f"method {number}") for number in range(len(COLOURS))]))
    page.emulate_media(color_scheme=scheme)
    opened(page, path)
    lines = [f"[data-name='method {number}, sigma 0.25']" for number in range(len(COLOURS))]
    assert min(contrast for _, contrast in page.evaluate(CONTRAST, lines)) >= 3
    fill = page.locator("#cost-chart .point text").first.evaluate("text => getComputedStyle(text).fill")
    assert fill == page.evaluate("getComputedStyle(document.body).color")


@pytest.mark.parametrize("kind", ["report", "comparison"])
def test_a_narrow_window_does_not_scroll_sidewards(page: Page, request: pytest.FixtureRequest, kind: str) -> None:
    page.set_viewport_size(NARROW)
    assert opened(page, request.getfixturevalue(kind)).evaluate("document.documentElement.scrollWidth") == 360
    if kind == "report":
        page.locator(".card button").first.click()
        assert page.get_by_role("dialog").bounding_box()["width"] < 360
        assert page.evaluate("document.getElementById('detail').scrollWidth") < 360


def test_where_sampling_stopped_is_marked_and_told_beyond(page: Page, tmp_path: Path) -> None:
    curves = [replace(curve, stopped_at=stop) for curve, stop in zip(CURVES, (0.2, None), strict=True)]
    path = tmp_path / "comparison.html"
    path.write_text(methods_page(curves))
    opened(page, path)
    expect(page.locator("#curves-chart .stop")).to_have_count(1)
    expect(page.locator("#curves-chart .beyond")).to_have_count(1)
    expect(page.locator("#curves")).to_contain_text("not where robustness ends")
    for radius, told in (("0.2", False), ("0.3", True)):
        page.get_by_label("Radius", exact=True).fill(radius)
        check_readout(page, curves)
        line = page.locator("#curves-readout li").first
        assert ("at least: sampling stopped at radius 0.2" in line.inner_text()) is told
        expect(page.locator("#curves-readout li").last).not_to_contain_text("stopped")


def test_how_sure_votes_are_is_read_at_each_share(page: Page, report: Path) -> None:
    slider = opened(page, report).get_by_label("Share of votes", exact=True)
    slider.focus()
    page.keyboard.press("Home")
    expect(page.locator("#shares-readout b")).to_have_text("At least 0\u00a0% of the votes")
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    expect(page.locator("#shares-readout b")).to_have_text("At least 90\u00a0% of the votes")
    for index, (level, items) in enumerate(by_level(ITEMS, maximum_over_sigmas=False).items()):
        right = sum(top_share(item) >= 0.9 and item.most_likely == item.label for item in items)
        expect(page.locator("#shares-readout li").nth(index)).to_contain_text(
            f"sigma {level}: {100 * right / 40:.1f}\u00a0%"
        )
    expect(page.locator("#shares-chart g.curve")).to_have_count(2)
    page.get_by_label("sigma 0.25", exact=True).uncheck()
    expect(page.locator("#shares-chart g.curve")).to_have_count(1)


def test_classes_are_shown_of_one_level_at_a_time(page: Page, report: Path) -> None:
    opened(page, report)
    expect(page.locator("#classes .level:visible")).to_have_count(1)
    page.locator("#classes-level").select_option("0.5")
    expect(page.locator("#classes .level[data-level='0.5'] .confusion")).to_be_visible()
    expect(page.locator("#classes .level[data-level='0.25']")).to_be_hidden()


def test_on_a_phone_the_table_scrolls_inside_itself_and_shows_all_radii(page: Page, tmp_path: Path) -> None:
    radii = ["r = 0", "r = 0.1", "r = 0.2", "r = 0.4"]
    header = ["sigma", *radii, "average radius", "abstained", "votes per image", "evaluations per image"]
    rows = [["best per radius, chosen on this data", *["100.0 %"] * len(radii), *["12,345"] * 4]]
    path = tmp_path / "report.html"
    path.write_text(report_page(ITEMS, IMAGES, table=Table("Certified accuracy", header, rows)))
    page.set_viewport_size({"width": 390, "height": 844})
    opened(page, path)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    cells = page.locator("#tables thead th")
    last_radius = cells.nth(len(radii)).bounding_box()
    assert last_radius["x"] + last_radius["width"] <= 390
    page.locator("#tables .scroll").evaluate("table => table.scrollBy(1000, 0)")
    assert cells.last.bounding_box()["x"] < 390
    assert cells.first.bounding_box()["x"] >= 0, "the names of the rows stay"


def test_every_control_and_picture_has_a_name(page: Page, report: Path) -> None:
    opened(page, report)
    nameless = page.evaluate(
        """[...document.querySelectorAll("input, select, button, img, canvas, [role=img]")].filter((node) =>
          !(node.labels?.[0]?.textContent || node.textContent || node.alt || node.ariaLabel)?.trim()).length"""
    )
    assert nameless == 0
    for role in ("banner", "navigation", "main"):
        expect(page.get_by_role(role)).to_have_count(1)
    assert page.locator("h1").count() == 1


def test_classes_are_called_by_their_names_and_two_of_one_name_by_their_numbers_too(page: Page, tmp_path: Path) -> None:
    items = certified_images(20)
    path = tmp_path / "report.html"
    path.write_text(report_page(items, random_images(items, (3, 8, 8)), class_names=("ant", HOSTILE, "bee", "bee")))
    opened(page, path)
    page.locator("#by-order").select_option("as in the data")
    expect(page.locator("#gallery .card").first).to_contain_text(f"right: {HOSTILE} (label {HOSTILE}), radius")
    expect(page.locator("#by-label option")).to_have_text(["all", HOSTILE, "bee (2)"])
    page.locator("#by-label").select_option("2")
    expect(page.locator("#gallery .card").first).to_contain_text(f"wrong: {HOSTILE} (label bee (2)), radius")
    page.locator(".card button").first.click()
    expect(page.get_by_role("dialog")).to_contain_text("ant")
    expect(page.get_by_role("dialog")).to_contain_text("bee (2) (label)")


def test_methods_are_compared_without_a_gallery(page: Page, comparison: Path) -> None:
    opened(page, comparison)
    expect(page.locator("#curves-chart g.curve")).to_have_count(6)
    expect(page.locator("#cost-chart .point")).to_have_count(4)
    expect(page.locator("#cost-note")).to_contain_text("unpriced, sigma 0.25; unpriced, sigma 0.5")
    expect(page.locator("table")).to_have_count(2)
    expect(page.locator("#gallery")).to_have_count(0)
    page.get_by_role("group", name="Methods").get_by_label(HOSTILE).uncheck()
    expect(page.locator("#curves-chart g.curve")).to_have_count(4)
    assert page.locator("img").count() == 0


def test_a_page_where_nothing_is_right_and_nothing_has_pixels_works(page: Page, tmp_path: Path) -> None:
    items = [replace(item, label=3) for item in ITEMS]
    path = tmp_path / "report.html"
    path.write_text(report_page(items, []))
    opened(page, path).get_by_label("Radius", exact=True).press("ArrowRight")
    assert check_readout(page, curves_of(items)) > 0
    expect(page.locator("#cost-chart .point")).to_have_count(2)
    expect(page.locator("#gallery-count")).to_have_text("0 of 0 match.")


def test_tiny_radii_are_read_with_enough_digits(page: Page, tmp_path: Path) -> None:
    curves = [Curve(20, tuple(0.00005 * n for n in range(1, 16)), 2, "lipschitz", "0.25", 100.0, 1.0)]
    path = tmp_path / "comparison.html"
    path.write_text(methods_page(curves))
    slider = opened(page, path).get_by_label("Radius", exact=True)
    for _ in range(40):
        slider.press("ArrowRight")
        radius = check_readout(page, curves)
    assert 0.0002 < radius < 0.0006


def test_without_scripts_the_figure_and_the_table_are_shown(browser: Browser, report: Path) -> None:
    with browser.new_context(java_script_enabled=False) as context:
        page = context.new_page()
        opened(page, report)
        expect(page.locator("noscript figure svg")).to_have_count(1)
        expect(page.locator("#tables table")).to_be_visible()
        expect(page.locator("#classes .confusion:visible")).to_have_count(2)  # one after the other: no choice works
        expect(page.locator("#toggles")).to_be_hidden()
