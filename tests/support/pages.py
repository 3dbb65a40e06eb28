"""Pages of reports and comparisons, and what they hold."""

import json
import re
from typing import Any

import numpy as np

from ndc_core.certificates.cohen import cohen
from pipeline.certificates.attack_results import Attacked
from pipeline.certificates.reduce import CertifiedImage, by_level
from pipeline.declaration.declaration import Declaration
from pipeline.report.curves import Curve, curve_of
from pipeline.report.pages import comparison_page, html_page
from pipeline.report.provenance import Provenance
from pipeline.report.tables import Table
from pipeline.store.run_store import StoredImage

FIGURE = "<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'></svg>"
LAW = {"seed": 0, "classifier": {}, "noise": "integer", "sigma_pixel": [0.25, 0.5], "dataset": {"name": "<digits>"}}
TABLE = Table("Certified accuracy", ["sigma", "r = 0"], [["0.25", "70.0 %"], ["0.5", "70.0 %"]])
HOSTILE = "</script><img src=x onerror=alert(1)>"


def page_data(page: str) -> dict[str, Any]:
    """The data block that the page's script reads."""
    (block,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    return json.loads(block)


def certified_image(image_id: str, label: int, wins: int, sigma_pixel: float, *, classes: int = 4) -> CertifiedImage:
    """Class 1 has all selection votes and `wins` of 1,000 estimation votes, class 0 the others."""
    counts = (1000 - wins, wins, *[0] * (classes - 2))
    certificate = cohen([0, 10, *[0] * (classes - 2)], counts, sigma_pixel=sigma_pixel, alpha=0.001)
    return CertifiedImage(image_id, label, certificate, counts, round(4000 * sigma_pixel), 2.0)


def certified_images(count: int, sigmas: tuple[float, ...] = (0.25, 0.5), *, classes: int = 4) -> list[CertifiedImage]:
    """Image by image: of ten, one is abstained on and two have another label than the predicted one."""
    return [
        certified_image(
            f"image-{i}", 2 if i % 5 == 1 else 1, 500 if i % 10 == 3 else 700 + 13 * i % 300, s, classes=classes
        )
        for i in range(count)
        for s in sigmas
    ]


def random_images(items: list[CertifiedImage], shape: tuple[int, int, int]) -> list[StoredImage]:
    rng = np.random.default_rng(0)
    labels = {item.image_id: item.label for item in items}
    return [StoredImage(name, label, rng.integers(0, 256, shape, np.uint8)) for name, label in labels.items()]


def curves_of(items: list[CertifiedImage], attacked: Attacked | None = None) -> list[Curve]:
    levels = by_level(items, maximum_over_sigmas=False)
    return [curve_of("cohen", name, images, attacked if name == "0.25" else None) for name, images in levels.items()]


def report_page(
    items: list[CertifiedImage],
    images: list[StoredImage],
    *,
    title: str = "Run",
    law: dict[str, Any] = LAW,
    attacked: Attacked | None = None,
    class_names: tuple[str, ...] = (),
    table: Table = TABLE,
) -> str:
    return html_page(
        title=title,
        table=table,
        figure=FIGURE,
        curves=curves_of(items, attacked),
        alpha=0.001,
        scope="8-bit images",
        certified=items,
        levels=by_level(items, maximum_over_sigmas=False),
        radii=(0.0, 0.25),
        images=images,
        declaration=Declaration(law),
        provenance=Provenance(class_names=class_names),
    )


def methods_page(curves: list[Curve]) -> str:
    tables = [
        Table("Accuracy", ["method", "r = 0"], [[HOSTILE, "1"]]),
        Table("Cost", ["method", "network", "votes"], [["a", HOSTILE, "1"]], names=2),
    ]
    return comparison_page(title="Methods", lead=["One paragraph.", HOSTILE], tables=tables, curves=curves)
