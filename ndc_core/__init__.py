"""Diffusion models as certifiably robust classifiers: the mathematics and the models, without a cluster."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ndc_core.certificates.certificate import Certificate, Tally, Terms
    from ndc_core.certificates.cohen import cohen
    from ndc_core.certificates.registry import CERTIFICATES
    from ndc_core.certification import certify
    from ndc_core.checkpoints.denoisers import load_denoiser
    from ndc_core.classifiers.diffusion import DiffusionClassifier
    from ndc_core.classifiers.formulas import CLASSIFIERS
    from ndc_core.classifiers.racing import RaceSpec
    from ndc_core.classifiers.sift import LabelGradientSpec, SiftSpec
    from ndc_core.noise.grid import WEIGHTS, GridSpec
    from ndc_core.prediction import PredictedClass, predict
    from ndc_core.radius_curves import RadiusCurve, radius_curve
    from ndc_core.voting import count_votes

__all__ = [
    "CERTIFICATES",
    "CLASSIFIERS",
    "WEIGHTS",
    "Certificate",
    "DiffusionClassifier",
    "GridSpec",
    "LabelGradientSpec",
    "PredictedClass",
    "RaceSpec",
    "RadiusCurve",
    "SiftSpec",
    "Tally",
    "Terms",
    "certify",
    "cohen",
    "count_votes",
    "load_denoiser",
    "predict",
    "radius_curve",
]

# A name's module is imported when the name is used: much of the package needs no PyTorch, which takes seconds to start.
# No module may have the name of something in it that stands here: its import would put it in that thing's place.
_HOMES = {
    "CERTIFICATES": "ndc_core.certificates.registry",
    "CLASSIFIERS": "ndc_core.classifiers.formulas",
    "Certificate": "ndc_core.certificates.certificate",
    "DiffusionClassifier": "ndc_core.classifiers.diffusion",
    "GridSpec": "ndc_core.noise.grid",
    "LabelGradientSpec": "ndc_core.classifiers.sift",
    "PredictedClass": "ndc_core.prediction",
    "RaceSpec": "ndc_core.classifiers.racing",
    "RadiusCurve": "ndc_core.radius_curves",
    "SiftSpec": "ndc_core.classifiers.sift",
    "Tally": "ndc_core.certificates.certificate",
    "Terms": "ndc_core.certificates.certificate",
    "WEIGHTS": "ndc_core.noise.grid",
    "certify": "ndc_core.certification",
    "cohen": "ndc_core.certificates.cohen",
    "count_votes": "ndc_core.voting",
    "load_denoiser": "ndc_core.checkpoints.denoisers",
    "predict": "ndc_core.prediction",
    "radius_curve": "ndc_core.radius_curves",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
