import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pyarrow.parquet as pq
import pytest

from ndc_core.certificates.cohen import cohen
from pipeline.certificates.reduce import CertifiedImage
from pipeline.declaration.declaration import Declaration
from pipeline.locations import location
from pipeline.report.curves import curve_of
from pipeline.report.figures import certified_accuracy_steps
from pipeline.report.gallery import noisy_pixels
from pipeline.report.provenance import Provenance
from pipeline.report.report import Report, accuracy_table, summarise, write_report
from pipeline.report.tables import latex, markdown
from pipeline.store.run_store import StoredImage
from tests.support.pages import page_data

RADII = (0.0, 0.25, 0.5)


def certified(image_id: str, label: int, wins: int, sigma_pixel: float) -> CertifiedImage:
    """Class 1 has all selection votes and `wins` of 1,000 estimation votes."""
    counts = (1000 - wins, wins)
    certificate = cohen([0, 10], counts, sigma_pixel=sigma_pixel, alpha=0.001)
    return CertifiedImage(image_id, label, certificate, counts, 100, 2.0)


# At sigma 0.25: right to 0.616, right to about 0.25, wrong, abstained.
ITEMS = [
    certified(str(i), label, wins, 0.25) for i, (label, wins) in enumerate([(1, 1000), (1, 880), (0, 990), (1, 500)])
]
HALF = [
    certified(str(i), label, wins, 0.5) for i, (label, wins) in enumerate([(1, 1000), (1, 600), (0, 990), (1, 500)])
]


def test_shares_count_wrong_and_abstained_images_as_failures_at_every_radius() -> None:
    level = summarise({"0.25": ITEMS}, alpha=0.001, radii=RADII).levels[0]
    radii = [item.certificate.radius for item in ITEMS]
    assert 0.25 < radii[1] < 0.5 < radii[0]
    assert level.certified_accuracy == {0.0: 0.5, 0.25: 0.5, 0.5: 0.25}
    assert (level.abstained, level.wrong, level.images) == (1, 1, 4)
    assert level.average_radius == pytest.approx((radii[0] + radii[1]) / 4)
    assert level.evaluations_per_image == 100


def test_the_best_sigma_is_chosen_per_radius_and_called_so() -> None:
    summary = summarise({"0.25": ITEMS, "0.5": HALF}, alpha=0.001, radii=(0.25, 0.75))
    assert summary.best_level == {0.25: "0.25", 0.75: "0.5"}
    assert summary.best_accuracy == {0.25: 0.5, 0.75: 0.25}
    assert "best per radius, chosen on this data" in markdown(accuracy_table(summary))


def test_the_curve_meets_the_table_at_every_radius() -> None:
    radii, share = certified_accuracy_steps(curve_of("cohen", "0.25", ITEMS))
    for radius in np.linspace(0, 0.7, 200):
        counted = sum(item.holds(float(radius)) for item in ITEMS) / len(ITEMS)
        reached = np.searchsorted(radii, radius, side="left")
        assert (share[reached] if reached < len(share) else 0.0) == counted


def test_tables_are_well_formed() -> None:
    summary = summarise({"0.25": ITEMS}, alpha=0.001, radii=RADII)
    lines = markdown(accuracy_table(summary)).splitlines()
    assert {line.count("|") for line in lines} == {9}
    assert "| 0.25 | 50.0 % | 50.0 % | 25.0 % | 0.217 | 1 of 4 | 1,000 | 100 |" in lines
    tabular = latex(accuracy_table(summary))
    assert tabular.count("&") == 14
    assert re.search(r"(?<!\\)%", tabular) is None


DECLARED = {
    "declaration": Declaration(
        {
            "seed": 0,
            "classifier": {},
            "noise": "float",
            "certificate": {"maximum_over_sigmas": False},
            "dataset": {"name": "<digits>"},
        }
    ),
    "alpha": 0.001,
    "radii": RADII,
    "title": "Run <a>",
    "evidence_digest": "d",
}


@pytest.fixture
def written(tmp_path: Path) -> Report:
    images = [StoredImage(str(i), i, np.full((1, 8, 8), 60 * i, np.uint8)) for i in range(4)]
    return write_report(location(tmp_path / "out"), ITEMS, images, **DECLARED)


def test_everything_is_written(written: Report) -> None:
    rows = pq.read_table(written.folder / "certificates.parquet").to_pylist()
    assert [row["predicted"] for row in rows] == [1, 1, 1, None]
    assert [row["correct"] for row in rows] == [True, True, False, False]
    assert [row["radius"] for row in rows] == [item.certificate.radius for item in ITEMS]
    summary = json.loads((written.folder / "summary.json").read_text())
    assert summary["levels"][0]["certified_accuracy"] == {"0.0": 0.5, "0.25": 0.5, "0.5": 0.25}
    ElementTree.fromstring((written.folder / "curve.svg").read_text())
    assert (written.folder / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_needs_no_other_file_and_escapes_what_data_say(written: Report) -> None:
    page = written.page.read_text()
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert "<digits>" not in page
    assert "Run &lt;a&gt;" in page
    shown = page_data(page)
    cards, labels = shown["gallery"]["cards"], [image["label"] for image in shown["gallery"]["images"]]
    assert [card["predicted"] for card in cards] == [1, 1, 1, None]  # right, right, wrong, abstained
    assert labels == [1, 1, 0, 1]
    assert len(shown["pictures"]["clean"]) == len(shown["pictures"]["noise"]) == 4


def test_two_reports_of_the_same_evidence_are_the_same(written: Report, tmp_path: Path) -> None:
    images = [StoredImage(str(i), i, np.full((1, 8, 8), 60 * i, np.uint8)) for i in range(4)]
    again = write_report(location(tmp_path / "again"), ITEMS, images, **DECLARED)
    for path in written.folder.iterdir():
        assert path.read_bytes() == (again.folder / path.name).read_bytes(), path.name


def test_the_noisy_picture_is_the_first_estimation_draw() -> None:
    from ndc_core.noise.draw_generators import draw_generator

    pixels, law = np.full((1, 8, 8), 51, np.uint8), {"seed": 3, "classifier": {}}
    noise = draw_generator(seed=3, image_id="0", phase="estimation", draw=0).standard_normal((1, 8, 8))
    np.testing.assert_allclose(
        noisy_pixels(ITEMS[0], pixels, declaration=Declaration({**law, "noise": "float"})), 0.2 + 0.25 * noise
    )
    levels = 255 * noisy_pixels(ITEMS[0], pixels, declaration=Declaration({**law, "noise": "integer"}))
    np.testing.assert_allclose(levels, np.rint(levels), atol=1e-9)


def wrong_run(tmp_path: Path, **more: Any) -> Report:
    """Twenty images of class 0, all of which are given class 1."""
    items = [certified(str(i), 0, 1000, 0.25) for i in range(20)]
    images = [StoredImage(item.image_id, item.label, np.zeros((1, 8, 8), np.uint8)) for item in items]
    return write_report(location(tmp_path / "wrong"), items, images, **DECLARED, **more)


def test_a_run_that_is_no_better_than_chance_says_so_wherever_its_result_stands(tmp_path: Path) -> None:
    report = wrong_run(tmp_path)
    (warning,) = report.summary.warnings
    assert "0 of 20 at sigma 0.25" in warning
    assert json.loads((report.folder / "summary.json").read_text())["warnings"] == [warning]
    for name in ("table.md", "table.tex", "report.html"):
        assert "labels are not in the model" in (report.folder / name).read_text(), name


def test_a_run_says_nothing_of_chance_where_it_is_right(written: Report) -> None:
    assert written.summary.warnings == ()
    for name in ("table.md", "table.tex", "report.html"):
        assert "chance" not in (written.folder / name).read_text(), name


def test_class_names_stand_in_the_tables_the_page_and_the_gallery(tmp_path: Path) -> None:
    names = ("an_ant", "<bee>" + 60 * "e")
    report = wrong_run(tmp_path, provenance=Provenance(class_names=names))
    assert r"Classes: 0 = an\_ant, 1 = \<bee\>eee" in (report.folder / "table.md").read_text()
    assert "% Classes: 0 = an_ant, 1 = <bee>eee" in (report.folder / "table.tex").read_text()
    page = report.page.read_text()
    assert "<dt>classes</dt><dd>0 = an_ant, 1 = &lt;bee&gt;eee" in page
    shown = page_data(page)["gallery"]["names"]
    assert shown["0"] == "an_ant"
    assert (shown["1"][:6], len(shown["1"])) == ("<bee>e", 40)
