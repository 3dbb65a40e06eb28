"""Methods beside each other: certified accuracy and cost, as tables and as JSON."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import groupby
from statistics import fmean
from typing import Any

from ndc_core.radius_curves import CONFIDENCE, interval_of
from pipeline.certificates.attack_results import Attacked
from pipeline.certificates.files import cut_text
from pipeline.certificates.reduce import LARGEST
from pipeline.report.curves import AVERAGE_MISLEADS, BEST_PER_RADIUS, Curve, best_of
from pipeline.report.tables import Table, percent

ALL_LEVELS = "all levels together"
ACCURACY_CAPTION = (
    "Certified accuracy: images classified correctly and certified to the radius, in % of all. Natural accuracy is "
    "that at radius 0: the certificate names the right class, and an abstention counts as wrong. " + AVERAGE_MISLEADS
)
COST_CAPTION = (
    "Cost, the mean over the images: to certify one at a noise level, with all its votes, and to classify one, with a "
    "single vote. Votes are those of estimation; evaluations and seconds are those of selection too."
)


@dataclass(frozen=True)
class Outcome:
    """What a method found for one image, and what that cost; None where a log does not tell."""

    label: int
    predicted: int | None  # None for an abstention
    radius: float
    seconds: float | None
    votes: int | None = None
    evaluations: int | None = None
    evaluations_to_classify: float | None = None
    seconds_to_classify: float | None = None

    @property
    def right(self) -> bool:
        return self.predicted == self.label


@dataclass(frozen=True)
class MethodAtLevel:
    """One method at one noise level, on the images that all are compared on."""

    method: str
    level: str
    source: str
    outcomes: Mapping[str, Outcome]  # by image
    scope: str = ""  # which adversarial images its radii cover; empty where it is unknown, as is the network
    network: str = ""
    devices: tuple[str, ...] = ()  # none where they are unknown
    attacked: Attacked | None = None
    stopped_at: float | None = None  # see Curve

    def mean(self, cost: Callable[[Outcome], float | None]) -> float | None:
        costs = [cost(outcome) for outcome in self.outcomes.values()]
        known = [value for value in costs if value is not None]
        return fmean(known) if len(known) == len(costs) else None

    @property
    def votes(self) -> float | None:
        return self.mean(lambda outcome: outcome.votes)

    @property
    def seconds_to_classify(self) -> float | None:
        return self.mean(lambda outcome: outcome.seconds_to_classify)

    @property
    def evaluations_to_classify(self) -> float | None:
        return self.mean(lambda outcome: outcome.evaluations_to_classify)

    @cached_property
    def curve(self) -> Curve:
        outcomes = self.outcomes.values()
        return Curve(
            method=self.method,
            level=self.level,
            images=len(outcomes),
            radii=tuple(sorted(outcome.radius for outcome in outcomes if outcome.right)),
            abstained=sum(outcome.predicted is None for outcome in outcomes),
            evaluations_per_image=self.mean(lambda outcome: outcome.evaluations),
            seconds_per_image=self.mean(lambda outcome: outcome.seconds),
            attacked=self.attacked,
            stopped_at=self.stopped_at,
        )


@dataclass(frozen=True)
class Comparison:
    """Entries of one method stand together, by rising noise. Radius 0, the natural accuracy, is not among `radii`.
    `alpha` is None where no run tells it."""

    entries: tuple[MethodAtLevel, ...]
    radii: tuple[float, ...]
    alpha: float | None
    remarks: tuple[str, ...]

    @property
    def methods(self) -> list[list[MethodAtLevel]]:
        return [list(group) for _, group in groupby(self.entries, key=lambda entry: entry.method)]

    @property
    def images(self) -> int:
        return len(self.entries[0].outcomes)


def levels_of(method: Sequence[MethodAtLevel]) -> list[MethodAtLevel]:
    """The levels without the row that chooses a level for each image, which is a method of its own."""
    return [entry for entry in method if entry.level != LARGEST]


def best_curve(method: Sequence[MethodAtLevel]) -> Curve:
    return best_of([entry.curve for entry in levels_of(method)])


def best_level(method: Sequence[MethodAtLevel], radius: float) -> str:
    """The noise level that certifies most at a radius; the lowest of equal ones."""
    return max(levels_of(method), key=lambda entry: entry.curve.right_at(radius)).level


def accuracy_table(comparison: Comparison) -> Table:
    """A row for each method and level, what attacks left below it, and each method's best level per radius."""
    radii, rows = (0.0, *comparison.radii), []
    header = ["method", "sigma", "natural", *(f"r = {r:g}" for r in comparison.radii), "average radius", "abstained"]
    digits = 3 if max(entry.curve.average_radius for entry in comparison.entries) >= 0.1 else 5
    for method in comparison.methods:
        name = method[0].method
        for entry in method:
            curve = entry.curve
            shares = [percent(curve.accuracy_at(r)) for r in radii]
            abstained = f"{curve.abstained} of {curve.images}"
            rows.append([name, entry.level, *shares, cut_text(curve.average_radius, digits), abstained])
            if attacked := entry.attacked:
                scope = "" if attacked.images == curve.images else f" (first {attacked.images} images)"
                left = [percent(attacked.accuracy.get(r), up=True) for r in radii]
                rows.append([name, f"{entry.level}, {attacked.label}{scope}", *left, "", ""])
        if len(levels_of(method)) > 1:
            best = best_curve(method)
            cells = [f"{percent(best.accuracy_at(r))} ({best_level(method, r)})" for r in radii]
            rows.append([name, BEST_PER_RADIUS, *cells, "", ""])
    return Table(ACCURACY_CAPTION, header, rows, names=2)


def number(value: float | None, digits: int = 0) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


def seconds(value: float | None) -> str:
    """Three digits, whatever the size."""
    return "" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def total(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def cost_table(comparison: Comparison) -> Table:
    """The paper's cost table: evaluations of the network and seconds, to certify an image and to classify one."""
    header = ["method", "sigma", "network", "device", "votes per image"]
    header += [f"{task}: {unit}" for task in ("certify", "classify") for unit in ("evaluations", "s")]
    rows = []
    for method in comparison.methods:
        name, levels = method[0].method, levels_of(method)
        for entry in levels:
            curve = entry.curve
            certify = number(curve.evaluations_per_image), seconds(curve.seconds_per_image)
            classify = number(entry.evaluations_to_classify, 1), seconds(entry.seconds_to_classify)
            device = ", ".join(entry.devices)
            where = entry.network, device, number(entry.votes)
            rows.append([name, entry.level, *where, *certify, *classify])
        if len(levels) > 1:
            curves = [entry.curve for entry in levels]
            votes = number(total([entry.votes for entry in levels]))
            evaluations = number(total([curve.evaluations_per_image for curve in curves]))
            time = seconds(total([curve.seconds_per_image for curve in curves]))
            rows.append([name, ALL_LEVELS, "", "", votes, evaluations, time, "", ""])
    return Table(COST_CAPTION, header, rows, names=4)


def comparison_json(comparison: Comparison) -> dict[str, Any]:
    """The numbers for scripts; None where unknown. Radii become strings, as JSON's keys are.

    Each share has its 95 % interval, except the best level per radius, which was chosen on these images.
    """
    return {
        "alpha": comparison.alpha,
        "images": comparison.images,
        "confidence": CONFIDENCE,
        "radii": list(comparison.radii),
        "remarks": list(comparison.remarks),
        "methods": [
            {
                "name": method[0].method,
                "levels": [level_json(entry, comparison.radii) for entry in method],
                "best_sigma_per_radius_chosen_on_this_data": best_json(method, comparison.radii),
            }
            for method in comparison.methods
        ],
    }


def level_json(entry: MethodAtLevel, radii: Sequence[float]) -> dict[str, Any]:
    curve, attacked = entry.curve, entry.attacked
    return {
        "sigma_pixel": entry.level,
        "source": entry.source,
        "network": entry.network or None,
        "devices": list(entry.devices),
        "natural_accuracy": share_json(curve, 0.0),
        "certified_accuracy": {str(radius): share_json(curve, radius) for radius in radii},
        "average_radius": curve.average_radius,
        "abstained": curve.abstained,
        "under_attack": attacked and {**asdict(attacked), "interval": attacked.intervals},
        "certify": {
            "votes": entry.votes,
            "evaluations": curve.evaluations_per_image,
            "seconds": curve.seconds_per_image,
        },
        "classify": {"evaluations": entry.evaluations_to_classify, "seconds": entry.seconds_to_classify},
    }


def share_json(curve: Curve, radius: float) -> dict[str, Any]:
    right = curve.right_at(radius)
    return {"right": right, "share": right / curve.images, "interval": list(interval_of(right, curve.images))}


def best_json(method: Sequence[MethodAtLevel], radii: Sequence[float]) -> dict[str, Any] | None:
    if len(levels_of(method)) == 1:
        return None
    best = best_curve(method)
    return {
        str(radius): {"sigma_pixel": best_level(method, radius), "share": best.accuracy_at(radius)}
        for radius in (0.0, *radii)
    }
