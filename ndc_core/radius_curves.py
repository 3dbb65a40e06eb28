"""Certified accuracy over the radius."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.special import betaincinv

from ndc_core.certificates.certificate import Certificate, cut_text

CONFIDENCE = 0.95


@dataclass(frozen=True)
class RadiusCurve:
    """Certificates at one noise level. `radii` are those of the images that were given their label, rising; the others,
    some of which abstained, count as wrong at every radius (rule S6)."""

    images: int
    radii: tuple[float, ...]
    abstained: int

    def __repr__(self) -> str:
        right, average = 100 * self.accuracy_at(0), cut_text(self.average_radius)
        return f"<{self.images} images: {right:.1f} % right, {self.abstained} abstained, average radius {average}>"

    def right_at(self, radius: float) -> int:
        """How many images are right and certified to at least this radius."""
        return len(self.radii) - bisect_left(self.radii, radius)

    def accuracy_at(self, radius: float) -> float:
        return self.right_at(radius) / self.images

    def interval_at(self, radius: float) -> tuple[float, float]:
        """Where the certified accuracy of all images like these lies, at 95 %."""
        return interval_of(self.right_at(radius), self.images)

    @property
    def average_radius(self) -> float:
        """Over all images; a wrong one counts 0."""
        return sum(self.radii) / self.images


def radius_curve(certificates: Sequence[Certificate], labels: Sequence[int]) -> RadiusCurve:
    """Certified accuracy of images of these labels at every radius.

    Sequential certificates stop at the radii that they were asked for: beyond these the curve says little.

    Raises:
        ValueError: no certificates, or not one for each label, or certificates of several noise levels or alphas.
    """
    if len(certificates) != len(labels) or not certificates:
        raise ValueError(f"{len(certificates)} certificates and {len(labels)} labels; give one of each for each image")
    if len({(certificate.sigma_pixel, certificate.alpha) for certificate in certificates}) > 1:
        raise ValueError("the certificates are of several noise levels or alphas; make a curve of each")
    right = [
        certificate.radius
        for certificate, label in zip(certificates, labels, strict=True)
        if certificate.holds(label=int(label), radius=0.0)
    ]
    abstained = sum(certificate.predicted is None for certificate in certificates)
    return RadiusCurve(len(certificates), tuple(sorted(right)), abstained)


def interval_of(right: int, images: int) -> tuple[float, float]:
    """Where the share of all images like these lies, if these were drawn from them: Clopper and Pearson's interval."""
    tail = (1 - CONFIDENCE) / 2
    low = betaincinv(right, images - right + 1, tail) if right else 0.0
    high = betaincinv(right + 1, images - right, 1 - tail) if right < images else 1.0
    return float(low), float(high)
