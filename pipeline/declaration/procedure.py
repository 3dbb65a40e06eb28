"""What a run's law declares: its method's name, and the certificate as a procedure for one noise level."""

import math
from typing import Any

from ndc_core.certificates.certificate import LipschitzTerms, Method, Terms
from ndc_core.certificates.registry import CERTIFICATES
from ndc_core.noise.grid import GridSpec, path_levels
from ndc_core.noise.lattice import lattice_distance
from ndc_core.noise.shared_path import WALKS, stations_of
from ndc_core.noise.smoothing import NOISES, FloatNoise

NAMES = {
    "dc": "DC",
    "epndc": "EPNDC",
    "apndc": "APNDC",
    "apndc-ensemble": "APNDC-ensemble",
    "plain": "RS",  # randomized smoothing of a plain classifier
    "denoise": "Carlini",
}
# The version of votes (`declaration.VOTE_VERSION`) since which steps of the lipschitz certificate draw on a lattice.
LATTICE_SINCE = 6


def method_name(law: dict[str, Any]) -> str:
    """How tables call what a run certifies."""
    classifier = law["classifier"]
    name = NAMES.get(classifier["name"], classifier["name"])
    if classifier["name"] == "denoise" and classifier.get("steps", 1) > 1:
        name = "Xiao"
    return f"{name}, Lipschitz" if law["certificate"]["method"] == "lipschitz" else name


def alpha_of_each(law: dict[str, Any], alpha: float | None = None) -> float:
    """The failure probability of one noise level's certificate: a maximum over levels shares alpha among them (S5)."""
    total: float = law["certificate"]["alpha"] if alpha is None else alpha
    return total / len(law["sigma_pixel"]) if law["certificate"]["maximum_over_sigmas"] else total


def _lipschitz_terms(law: dict[str, Any], dimension: int) -> LipschitzTerms:
    classifier = law["classifier"]
    return LipschitzTerms(
        GridSpec(**classifier["grid"]),
        weight=classifier["weight"],
        loss_cap=classifier["loss_cap"],
        dimension=dimension,
        precision=law["certificate"].get("precision", 0.1),
    )


def _distance_and_scope(law: dict[str, Any], sigma_pixel: float, dimension: int) -> tuple[float, str]:
    """How far the noise is from the law that the theorem speaks of, and which images the certificate covers."""
    classifier, noise = law["classifier"], NOISES[law["noise"]](sigma_pixel)
    if classifier.get("one_path"):  # runs before version 4 cannot say
        stations = stations_of(GridSpec(**classifier["grid"]), law["sigma_pixel"])
        return WALKS[law["noise"]](stations).distance(stations.index(sigma_pixel), dimension), noise.scope
    if law["certificate"]["method"] == "lipschitz":
        if law.get("vote_version", LATTICE_SINCE) < LATTICE_SINCE:
            return 0.0, FloatNoise.scope
        levels = path_levels(GridSpec(**classifier["grid"]), taus_model=(0.0,))
        return lattice_distance(levels, dimension), noise.scope
    return noise.distance(dimension), noise.scope


def method_of(law: dict[str, Any], sigma_pixel: float, *, alpha: float | None = None) -> Method:
    """The declared procedure; with another `alpha` than the declared one, for what is proved, not for when to stop."""
    dimension = math.prod(law["dataset"]["image_shape"])
    certificate = law["certificate"]
    distance, scope = _distance_and_scope(law, sigma_pixel, dimension)
    terms = Terms(
        sigma_pixel=sigma_pixel,
        alpha=alpha_of_each(law, alpha),
        votes=law["votes"]["estimation"],
        radii=tuple(certificate.get("radii", ())),
        distance=distance,
        scope=scope,
        lipschitz=_lipschitz_terms(law, dimension) if certificate["method"] == "lipschitz" else None,
    )
    return CERTIFICATES[certificate["method"]](terms)
