"""Certified accuracy over the radius, and what it cost: what methods are compared by."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

from ndc_core.radius_curve import RadiusCurve
from pipeline.certificates.attack_results import Attacked
from pipeline.certificates.reduce import CertifiedImage

BEST = "best sigma per radius, chosen on this data"


@dataclass(frozen=True)
class Curve(RadiusCurve):
    """One method at one noise level. Costs are means over the images, None where a log does not tell."""

    method: str
    level: str
    evaluations_per_image: float | None = None
    seconds_per_image: float | None = None
    attacked: Attacked | None = None


def best_of(curves: Sequence[Curve]) -> Curve:
    """The highest of some levels of one method at each radius, chosen on these very images; its costs are unknown."""
    falling = [curve.radii[::-1] for curve in curves]
    radii = [max(same_rank) for same_rank in zip_longest(*falling, fillvalue=0.0)]  # to which so many images hold
    first = curves[0]
    return Curve(first.images, tuple(reversed(radii)), 0, first.method, BEST)


def curve_of(method: str, level: str, items: Sequence[CertifiedImage], attacked: Attacked | None = None) -> Curve:
    return Curve(
        method=method,
        level=level,
        images=len(items),
        radii=tuple(sorted(item.certificate.radius for item in items if item.holds(0.0))),
        abstained=sum(item.certificate.predicted is None for item in items),
        evaluations_per_image=sum(item.evaluations for item in items) / len(items),
        seconds_per_image=sum(item.seconds for item in items) / len(items),
        attacked=attacked,
    )
