"""The self-contained HTML pages: a run's report, and a comparison of methods."""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import jinja2

from ndc_core.radius_curves import RadiusCurve, interval_of
from pipeline.certificates.files import cut
from pipeline.certificates.reduce import CertifiedImage
from pipeline.certificates.reuse import is_about_candidate
from pipeline.declaration.declaration import Declaration
from pipeline.report.curves import Curve
from pipeline.report.figures import COLOURS
from pipeline.report.gallery import gallery_data, picture_data, shown_items
from pipeline.report.per_class import by_class
from pipeline.report.provenance import NOTHING_KNOWN, Provenance
from pipeline.report.tables import Table
from pipeline.report.vote_shares import vote_shares
from pipeline.store.run_store import StoredImage, spread

MOST_BYTES = 1_950_000  # of a report's page
MOST_STEPS = 12_000  # of all curves of a page together
FEWEST_STEPS = 100


@cache
def environment() -> jinja2.Environment:
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("pipeline.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    templates.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    return templates


def step_radii(curve: Curve, most: int) -> list[float]:
    """The radii where a curve falls, cut to six digits; of more than `most` an even selection, with the last."""
    radii = sorted({cut(radius) for radius in curve.radii})
    last = len(radii) - 1
    return [radii[last - index] for index in reversed(spread(len(radii), most))]


def curve_data(curve: Curve, *, most_steps: int = MOST_STEPS) -> dict[str, Any]:
    """A curve for the page's script: `right[i]` images, and the interval of their share, hold at radii beyond
    `radii[i - 1]` up to `radii[i]`, and the last at all beyond.

    Shares are cut to three digits, the interval outwards. Leaving radii out makes the curve lower, never higher.
    """
    radii = step_radii(curve, most_steps)
    cut_radii = sorted(cut(radius) for radius in curve.radii)
    held = RadiusCurve(curve.images, tuple(cut_radii), curve.abstained)
    right = [*(held.right_at(radius) for radius in radii), 0]
    interval_at = {number: interval_of(number, curve.images) for number in set(right)}
    attacked = curve.attacked
    return {
        "method": curve.method,
        "level": curve.level,
        "images": curve.images,
        "abstained": curve.abstained,
        "radii": radii,
        "right": right,
        "low": [math.floor(1000 * interval_at[number][0]) / 1000 for number in right],
        "high": [math.ceil(1000 * interval_at[number][1]) / 1000 for number in right],
        "evaluations": curve.evaluations_per_image,
        "seconds": curve.seconds_per_image,
        "attacked": sorted(attacked.accuracy.items()) if attacked else [],
        "attackedImages": attacked.images if attacked else 0,
        "attackedLabel": attacked.label if attacked else "",
        "stoppedAt": curve.stopped_at,
    }


def charts_data(curves: Sequence[Curve]) -> dict[str, Any]:
    """What the page's script draws, the same for every page."""
    most_steps = max(FEWEST_STEPS, MOST_STEPS // max(1, len(curves)))
    return {
        "colours": COLOURS,
        "thinned": any(len({cut(radius) for radius in curve.radii}) > most_steps for curve in curves),
        "curves": [curve_data(curve, most_steps=most_steps) for curve in curves],
    }


def shares_data(levels: Mapping[str, Sequence[CertifiedImage]]) -> list[dict[str, Any]]:
    """How sure the votes are, for each curve, as curves over the share of votes."""
    most_steps = max(FEWEST_STEPS, MOST_STEPS // max(1, 2 * len(levels)))
    both = (vote_shares(levels, right=right) for right in (True, False))
    return [
        {
            name: {key: shown[key] for key in ("images", "radii", "right", "low", "high")}
            for name, curve in (("right", right), ("wrong", wrong))
            for shown in [curve_data(curve, most_steps=most_steps)]
        }
        for right, wrong in zip(*both, strict=True)
    ]


def comparison_page(
    *,
    title: str,
    lead: Sequence[str],
    tables: Sequence[Table],
    curves: Sequence[Curve],
) -> str:
    """Methods beside each other: paragraphs, tables, and the curves of all."""
    template = environment().get_template("comparison.html")
    return template.render(title=title, lead=lead, tables=tables, data=charts_data(curves))


def sweep_page(
    *, title: str, lead: Sequence[str], figure: str | None, tables: Sequence[Table], curves: Sequence[Curve]
) -> str:
    """Runs of a sweep beside each other: the curves of all, and for varied keys the figure and a table each."""
    template = environment().get_template("sweep.html")
    return template.render(
        title=title, lead=lead, figure=figure and embedded(figure), tables=tables, data=charts_data(curves)
    )


def embedded(figure: str) -> str:
    """An SVG file as it may stand in a page."""
    return figure[figure.index("<svg") :]


def readable(declared: dict[str, Any], section: str = "") -> Iterator[tuple[str, str]]:
    """Each key of a declaration, with its sections before it, and its value in words."""
    for name, value in declared.items():
        key = f"{section}{name}"
        if isinstance(value, dict):
            yield from readable(value, f"{key}.")
        elif isinstance(value, list | tuple):
            if value:
                yield key, ", ".join(f"{item:g}" if isinstance(item, float) else f"{item}" for item in value)
        elif value is not None:
            yield key, ("yes" if value else "no") if isinstance(value, bool) else f"{value}"


def html_page(
    *,
    title: str,
    table: Table,
    figure: str,
    curves: Sequence[Curve],
    alpha: float,
    scope: str,
    certified: Sequence[CertifiedImage],
    levels: Mapping[str, Sequence[CertifiedImage]],
    radii: Sequence[float],
    images: Sequence[StoredImage],
    declaration: Declaration,
    warnings: Sequence[str] = (),
    classes: str = "",
    provenance: Provenance = NOTHING_KNOWN,
) -> str:
    """One page that needs no other file: curves, costs, table, votes, classes, what was declared, a gallery.

    `levels` are the certificates of each curve, in the same order; `classes` lists the names of the classes.
    """
    items, names = shown_items(certified, images), provenance.class_names
    data = charts_data(curves) | {
        "gallery": gallery_data(items, images=len(images), class_names=names),
        "shares": shares_data(levels),
    }
    classes_of_levels = by_class(levels, radii=radii, class_names=names)

    def page(pictures: dict[str, Any]) -> str:
        return (
            environment()
            .get_template("report.html")
            .render(
                title=title,
                tables=[table],
                figure=embedded(figure),
                attacked=any(curve.attacked for curve in curves),
                confirmed=all(curve.attacked.confirmed for curve in curves if curve.attacked),
                alpha=alpha,
                scope=scope,
                declared=dict(readable(declaration.to_json())),
                warnings=warnings,
                classes=classes,
                by_class=classes_of_levels,
                about_candidate=is_about_candidate(declaration),
                provenance=provenance,
                data=data | {"pictures": pictures},
            )
        )

    left = MOST_BYTES - len(page({"note": ""}).encode())
    return page(picture_data(items, budget=left, declaration=declaration))
