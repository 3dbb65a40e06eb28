"""What a run proved, as numbers, tables, pictures and one HTML page."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.figures import certified_accuracy_figure
from pipeline.page import html_page
from pipeline.reduce import CertifiedImage, certificate_rows, certificate_tsv
from pipeline.store import StoredImage, write_atomically, write_certificates


@dataclass(frozen=True)
class SigmaSummary:
    """One noise level: shares are of all images; an abstention is wrong at every radius (rule S6)."""

    sigma_pixel: float
    images: int
    certified_accuracy: dict[float, float]
    average_radius: float
    abstained: int
    wrong: int
    evaluations_per_image: float
    seconds_per_image: float


@dataclass(frozen=True)
class Summary:
    """All noise levels of a run. `best_sigma` is chosen per radius on this very data set, as papers report it:
    no single smoothed classifier reaches it."""

    alpha: float
    method: str
    radii: tuple[float, ...]
    levels: tuple[SigmaSummary, ...]
    best_sigma: dict[float, float]

    @property
    def best_accuracy(self) -> dict[float, float]:
        return {r: max(level.certified_accuracy[r] for level in self.levels) for r in self.radii}


def accuracy_at(items: Sequence[CertifiedImage], radius: float) -> float:
    return sum(item.holds(radius) for item in items) / len(items)


def summarise(certified: Sequence[CertifiedImage], *, radii: Sequence[float]) -> Summary:
    """Certified accuracy at the radii, average certified radius (a wrong image counts 0), abstentions, cost."""
    sigmas = list(dict.fromkeys(item.certificate.sigma_pixel for item in certified))
    levels = []
    for sigma in sigmas:
        items = [item for item in certified if item.certificate.sigma_pixel == sigma]
        abstained = sum(item.certificate.predicted is None for item in items)
        levels.append(
            SigmaSummary(
                sigma_pixel=sigma,
                images=len(items),
                certified_accuracy={radius: accuracy_at(items, radius) for radius in radii},
                average_radius=sum(item.certificate.radius for item in items if item.holds(0.0)) / len(items),
                abstained=abstained,
                wrong=len(items) - abstained - sum(item.holds(0.0) for item in items),
                evaluations_per_image=sum(item.evaluations for item in items) / len(items),
                seconds_per_image=sum(item.seconds for item in items) / len(items),
            )
        )
    best = {r: max(levels, key=lambda level: level.certified_accuracy[r]).sigma_pixel for r in radii}
    first = certified[0].certificate
    return Summary(first.alpha, first.method, tuple(radii), tuple(levels), best)


def table_cells(summary: Summary) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the certified-accuracy table."""
    header = ["sigma", *(f"r = {r:g}" for r in summary.radii), "average radius", "abstained", "evaluations an image"]
    rows = [
        [
            f"{level.sigma_pixel:g}",
            *(f"{100 * level.certified_accuracy[r]:.1f} %" for r in summary.radii),
            f"{level.average_radius:.3f}",
            f"{level.abstained} of {level.images}",
            f"{level.evaluations_per_image:,.0f}",
        ]
        for level in summary.levels
    ]
    if len(summary.levels) > 1:
        best = [f"{100 * summary.best_accuracy[r]:.1f} %" for r in summary.radii]
        rows.append(["best per radius, chosen on this data", *best, "", "", ""])
    return header, rows


def markdown_table(summary: Summary) -> str:
    header, rows = table_cells(summary)
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def latex_table(summary: Summary) -> str:
    header, rows = table_cells(summary)
    body = [" & ".join(line).replace("%", r"\%") + r" \\" for line in (header, *rows)]
    columns = "l" + "r" * (len(header) - 1)
    lines = [rf"\begin{{tabular}}{{{columns}}}", r"\hline", body[0], r"\hline", *body[1:], r"\hline", r"\end{tabular}"]
    return "\n".join(lines).replace("sigma", r"$\sigma$").replace("r =", "$r$ =") + "\n"


def summary_json(summary: Summary) -> dict[str, Any]:
    """The summary for scripts; radii become strings, as JSON's keys are."""
    return {**asdict(summary), "best_accuracy": summary.best_accuracy}


@dataclass(frozen=True)
class Report:
    summary: Summary
    folder: Path

    @property
    def page(self) -> Path:
        return self.folder / "report.html"


def write_report(
    folder: Path,
    certified: Sequence[CertifiedImage],
    images: Sequence[StoredImage],
    *,
    law: dict[str, Any],
    radii: Sequence[float],
    title: str,
) -> Report:
    """Writes certificates, tables, pictures and the page into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    summary = summarise(certified, radii=radii)
    write_certificates(folder / "certificates.parquet", certificate_rows(certified))
    figure = certified_accuracy_figure(certified)
    texts = {
        "certificates.tsv": certificate_tsv(certified),
        "table.md": markdown_table(summary),
        "table.tex": latex_table(summary),
        "summary.json": json.dumps(summary_json(summary), indent=2) + "\n",
        "curve.svg": figure.svg,
        "report.html": html_page(
            title=title, table=table_cells(summary), figure=figure.svg, certified=certified, images=images, law=law
        ),
    }
    for name, text in texts.items():
        write_atomically(folder / name, text.encode())
    write_atomically(folder / "curve.png", figure.png)
    return Report(summary, folder)
