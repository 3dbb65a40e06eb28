"""Certified accuracy over the radius, and what it cost: what methods are compared by."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

from ndc_core.radius_curves import RadiusCurve
from pipeline.certificates.attack_results import Attacked
from pipeline.certificates.reduce import LARGEST, CertifiedImage
from pipeline.declaration.declaration import Declaration

BEST_PER_RADIUS = "best sigma per radius, chosen on this data"
AVERAGE_MISLEADS = (
    "The average radius alone misleads (arXiv 2410.06895): what is gained on easy images raises it most. Nothing here "
    "is ranked by it."
)


@dataclass(frozen=True)
class Curve(RadiusCurve):
    """One method at one noise level. Costs are means over the images, None where a log does not tell.

    At `stopped_at` sampling stopped, since all declared radii of an image were decided: what lies beyond is what those
    votes prove in addition. None where sampling aimed at no radius."""

    method: str
    level: str
    evaluations_per_image: float | None = None
    seconds_per_image: float | None = None
    attacked: Attacked | None = None
    stopped_at: float | None = None


def best_of(curves: Sequence[Curve]) -> Curve:
    """The highest of one method's levels at each radius, chosen on these very images; its costs are unknown.
    Sampling stopped where the last level's did, if all stopped."""
    falling = [curve.radii[::-1] for curve in curves]
    radii = [max(same_rank) for same_rank in zip_longest(*falling, fillvalue=0.0)]  # to which so many hold
    first = curves[0]
    stops = [curve.stopped_at for curve in curves if curve.stopped_at is not None]
    stopped_at = max(stops) if len(stops) == len(curves) else None
    return Curve(first.images, tuple(reversed(radii)), 0, first.method, BEST_PER_RADIUS, stopped_at=stopped_at)


def stopping_radii(declaration: Declaration) -> dict[str, float]:
    """By level, the last declared radius that votes could prove there; empty for a run that declared no radii to
    aim at."""
    radii, stops = declaration.radii, dict[str, float]()
    for sigma_pixel in declaration.sigma_pixel if radii else ():
        largest = declaration.procedure(sigma_pixel).largest_radius
        if reached := [radius for radius in radii or () if radius <= largest]:
            stops[f"{sigma_pixel:g}"] = max(reached)
    return {**stops, LARGEST: max(stops.values())} if stops else {}


def curve_of(
    method: str,
    level: str,
    items: Sequence[CertifiedImage],
    attacked: Attacked | None = None,
    *,
    stopped_at: float | None = None,
) -> Curve:
    return Curve(
        method=method,
        level=level,
        images=len(items),
        radii=tuple(sorted(item.certificate.radius for item in items if item.holds(0.0))),
        abstained=sum(item.certificate.predicted is None for item in items),
        evaluations_per_image=sum(item.evaluations for item in items) / len(items),
        seconds_per_image=sum(item.seconds for item in items) / len(items),
        attacked=attacked,
        stopped_at=stopped_at,
    )
