"""What a sweep found: the runs of each varied key beside each other, as tables, numbers, one figure and one page."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from upath import UPath

from ndc_core.radius_curves import interval_of
from pipeline.certificates.files import cut_text
from pipeline.certificates.reuse import drawn_once
from pipeline.compare.compare import DeclaredRun, WrittenComparison, chosen_radii, compare, refuse_other_alphas
from pipeline.compare.inputs import RunInput, open_input, parse_argument
from pipeline.compare.method_tables import MethodAtLevel, best_curve, level_json, levels_of
from pipeline.compare.shared_images import OtherImagesError
from pipeline.declaration.declaration import Declaration, differences
from pipeline.locations import publish
from pipeline.report.curves import AVERAGE_MISLEADS, BEST_PER_RADIUS
from pipeline.report.pages import sweep_page
from pipeline.report.tables import Table, latex_page, markdown_page, percent
from pipeline.store.run_store import RunStore
from pipeline.sweep.figure import Panel, Shown, sweep_figure
from pipeline.sweep.file import Point, Sweep
from pipeline.sweep.grid import GRID

SHARES = (
    "Certified accuracy: images classified correctly and certified to the radius, in % of all; the figure has 95 % "
    "intervals. Votes and evaluations are what a run takes by itself, also where it took them over from another. "
    + AVERAGE_MISLEADS
)
BEST_LEVEL = (
    "Of runs with several noise levels: the best one for each radius, and the average radius of that curve, chosen on "
    "this data, without an interval."
)


@dataclass(frozen=True)
class Result:
    """One run of a sweep, from its evidence."""

    point: Point
    run: RunInput
    entries: list[MethodAtLevel]

    @property
    def levels(self) -> list[MethodAtLevel]:
        return levels_of(self.entries)

    @property
    def radii(self) -> set[float]:
        return set(self.run.config.certificate.radii)

    def tells_of(self, radius: float) -> bool:
        """A sequential run stops as soon as its own radii are decided; beyond its reach there is nothing to decide."""
        aims_at_none = self.run.declaration.radii is None
        return aims_at_none or radius in self.radii or radius > self.run.config.reach

    @property
    def images(self) -> int:
        return len(self.run.records)

    def right_at(self, radius: float) -> int:
        return best_curve(self.levels).right_at(radius)

    def interval_at(self, radius: float) -> tuple[float, float] | None:
        """None for a level that was chosen on these images."""
        return interval_of(self.right_at(radius), self.images) if len(self.levels) == 1 else None

    @property
    def average_radius(self) -> float:
        return best_curve(self.levels).average_radius

    @property
    def evaluations(self) -> float:
        """Evaluations per image, at all its noise levels."""
        return sum(level.curve.evaluations_per_image or 0.0 for level in self.levels)

    @property
    def votes(self) -> float:
        return sum(level.votes or 0.0 for level in self.levels)

    @property
    def abstained(self) -> float:
        """The share of images, the mean over the levels."""
        return fmean(level.curve.abstained for level in self.levels) / self.images


@dataclass(frozen=True)
class WrittenSweep:
    lead: tuple[str, ...]
    tables: list[Table]
    page: UPath
    comparison: WrittenComparison | None  # of the named runs


def refuse_what_cannot_be_compared(runs: Sequence[DeclaredRun]) -> None:
    """Raises ValueError for named runs that `ndc compare` would refuse once they are done."""
    if len(runs) < 2:
        return
    refuse_other_alphas(runs)
    chosen_radii(runs, None)
    for run in runs[1:]:
        if other := differences(
            runs[0].declaration.recorded["dataset"], run.declaration.recorded["dataset"], key="dataset"
        ):
            raise OtherImagesError(
                f"{runs[0].where} and {run.where} are over different images ({'; '.join(other)}), so that they cannot "
                "be compared; give the points of a sweep the same data"
            )


def write_sweep(sweep: Sweep, folder: UPath) -> WrittenSweep:
    """Tables, figure, page and numbers of a finished sweep, from its runs' evidence; for named runs a comparison."""
    varied = [read_result(point, folder / point.name) for point in sweep.points if point.key is not None]
    named = [f"{point.name}={folder / point.name}" for point in sweep.points if point.key is None]
    lead = lead_of(sweep, folder, varied)
    comparison = compare(named, alpha=None, radii=None, intersect=False, out=folder) if named else None
    tables = [table_of(key, results) for key, results in by_key(varied).items()]
    page = folder / "sweep.html" if varied else folder / "compare.html"
    if varied:
        panels = [panel_of(key, results) for key, results in by_key(varied).items() if key != GRID]
        figure = sweep_figure(panels) if panels else None
        curves = [entry.curve for result in varied for entry in result.entries]
        texts = {
            "sweep.md": markdown_page(lead, tables),
            "sweep.tex": latex_page(lead, tables),
            "sweep.json": json.dumps(sweep_json(sweep, lead, varied), indent=2, allow_nan=False) + "\n",
            "sweep.html": sweep_page(
                title=f"Sweep: {sweep.name}",
                lead=lead,
                figure=figure.svg if figure else None,
                tables=tables,
                curves=curves,
            ),
        }
        if figure:
            publish(folder / "sweep.png", figure.png)
            texts["sweep.svg"] = figure.svg
        for name, text in texts.items():
            publish(folder / name, text.encode())
    return WrittenSweep(lead, tables, page, comparison)


def read_result(point: Point, where: UPath) -> Result:
    opened = open_input(parse_argument(str(where)), alpha=None)
    assert isinstance(opened, RunInput)
    return Result(point, opened, opened.entries(point.name, alpha=None))


def by_key(results: Sequence[Result]) -> dict[str, list[Result]]:
    grouped: dict[str, list[Result]] = {}
    for result in results:
        grouped.setdefault(str(result.point.key), []).append(result)
    return grouped


def lead_of(sweep: Sweep, folder: UPath, varied: Sequence[Result]) -> tuple[str, ...]:
    """What must be known to read the tables, and what all runs together took."""
    stores = [RunStore(folder / point.name) for point in sweep.points]
    manifests = [store.manifest() for store in stores]
    evidence = [
        store.all_evidence(fingerprint=manifest["fingerprint"])
        for store, manifest in zip(stores, manifests, strict=True)
    ]
    declarations = [Declaration.from_json(manifest["law"]) for manifest in manifests]
    votes, evaluations = drawn_once(list(zip(declarations, evidence, strict=True)))
    alone = sum(table.draws for table in evidence), sum(table.evaluations for table in evidence)
    total = (
        f"{len(sweep.points)} runs drew {votes:,} votes with {evaluations:,} evaluations; each by itself, they would "
        f"have drawn {alone[0]:,} with {alone[1]:,}."
    )
    each = (
        "Each certificate holds by itself, with its run's alpha. Runs that share votes are not independent of each "
        "other, and to choose an image's best run afterwards would need alpha shared among the runs."
    )
    several = [BEST_LEVEL] if any(len(result.levels) > 1 for result in varied) else []
    return (SHARES, *several, *([sweep.remark] if sweep.remark else []), total, each)


def shared_radii(results: Sequence[Result]) -> list[float]:
    """The radii that any of these runs declared and that all of them tell something of."""
    declared = set().union(*(result.radii for result in results))
    return sorted(radius for radius in declared if all(result.tells_of(radius) for result in results))


def table_of(key: str, results: Sequence[Result]) -> Table:
    radii = shared_radii(results)
    keys = list(results[0].point.value) if key == GRID else [key]
    header = [*keys, *(f"r = {radius:g}" for radius in radii)]
    header += ["average radius", "abstained", "votes per image", "evaluations per image"]
    rows = [
        [
            *map(value_text, result.point.value.values() if key == GRID else [result.point.value]),
            *(percent(result.right_at(radius) / result.images) for radius in radii),
            cut_text(result.average_radius, 3 if result.average_radius >= 0.01 else 5),
            percent(result.abstained),
            f"{result.votes:,.0f}",
            f"{result.evaluations:,.0f}",
        ]
        for result in results
    ]
    chosen = f" ({BEST_PER_RADIUS})" if any(len(result.levels) > 1 for result in results) else ""
    return Table(f"{key if key == GRID else f'{key} varied'}{chosen}", header, rows)


def value_text(value: Any) -> str:
    """As it is written in the sweep's file, without the brackets of a list of one."""
    match value:
        case [one]:
            return value_text(one)
        case str():
            return value
        case float():
            return f"{value:g}"
        case list():
            return ", ".join(map(value_text, value))
        case dict():
            return ", ".join(f"{key} {value_text(inner)}" for key, inner in value.items())
    return json.dumps(value)


def number_of(value: Any) -> float | None:
    """The number that a value is, if it is one, or a list of one."""
    if isinstance(value, list) and len(value) == 1:
        return number_of(value[0])
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def panel_of(key: str, results: Sequence[Result]) -> Panel:
    """Over numbers, in their order, where all values are numbers; otherwise over categories."""
    numbers = [number_of(result.point.value) for result in results]
    numeric = all(number is not None and math.isfinite(number) for number in numbers)
    order = sorted(range(len(results)), key=lambda index: numbers[index] or 0.0) if numeric else range(len(results))
    ordered = [results[index] for index in order]
    return Panel(
        key,
        tuple(value_text(result.point.value) for result in ordered),
        tuple(numbers[index] or 0.0 for index in order) if numeric else None,
        {
            radius: tuple(
                Shown(result.right_at(radius) / result.images, result.interval_at(radius)) for result in ordered
            )
            for radius in shared_radii(results)
        },
        tuple(result.average_radius for result in ordered),
        tuple(result.evaluations for result in ordered),
    )


def sweep_json(sweep: Sweep, lead: Sequence[str], results: Sequence[Result]) -> dict[str, Any]:
    radii = {key: shared_radii(of_key) for key, of_key in by_key(results).items()}
    return {
        "sweep": sweep.name,
        "remarks": list(lead),
        "runs": [
            {
                "name": result.point.name,
                "key": result.point.key,
                "value": result.point.value,
                "images": result.images,
                "levels": [level_json(entry, radii[str(result.point.key)]) for entry in result.entries],
            }
            for result in results
        ],
    }
