"""Diffusion models as certifiably robust classifiers: the mathematics and the models, without a cluster."""

from ndc_core.certificates.certificate import Certificate, Tally, Terms
from ndc_core.certificates.cohen import cohen
from ndc_core.certificates.registry import CERTIFICATES
from ndc_core.certify import certify
from ndc_core.checkpoints.denoisers import load_denoiser
from ndc_core.classifiers.diffusion import DiffusionClassifier
from ndc_core.classifiers.formulas import CLASSIFIERS
from ndc_core.classifiers.racing import RaceSpec
from ndc_core.classifiers.sift import LabelGradientSpec, SiftSpec
from ndc_core.noise.grid import WEIGHTS, GridSpec
from ndc_core.predict import PredictedClass, predict
from ndc_core.radius_curve import RadiusCurve, radius_curve
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
