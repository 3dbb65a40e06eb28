"""Everything that decides a run's votes and what they mean, as one value that a resume must meet again."""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

from ndc_core.certificates.certificate import Procedure
from ndc_core.noise.grid import GridSpec
from ndc_core.noise.smoothing import NoiseName
from pipeline.data.datasets import Listing
from pipeline.declaration.config import RunConfig
from pipeline.declaration.procedure import ProcedureSpec, ScoreSpec

# Increased whenever the code changes what a vote is or when voting ends: evidence of another version is never mixed in.
# Version 7 drew the noise of each step from a stream of its own, so that it need not be drawn before a vote gets there;
# version 8 draws it on the device (`counter_normals`). The noise of the input has never changed.
VOTE_VERSION = 8

# Each changes the rounding of a forward pass, and with it a near-tie's winner.
DECISIVE_COMPUTE = ("rows_per_pass", "threads_per_actor", "precision", "channels_last", "compile")

# Before it, a level that voted without the lowest of its path had more `float` noise than it states.
FLOAT_PATHS_SINCE = 6
# From this version on, the steps of the lipschitz certificate draw on a lattice.
LATTICE_SINCE = 6

METHOD_NAMES = {
    "dc": "DC",
    "epndc": "EPNDC",
    "apndc": "APNDC",
    "apndc-ensemble": "APNDC-ensemble",
    "plain": "RS",  # randomized smoothing of a plain classifier
    "denoise": "Carlini",
}


class UnsoundVotesError(ValueError):
    """Votes of an earlier version that certify nothing."""


class DeclarationChangedError(ValueError):
    """The run folder was declared with other settings, another model or other data."""


@dataclass(frozen=True)
class Declaration:
    """All that decides a run's votes and what they mean, fixed before the first draw.

    `recorded` is all that run.json keeps under `law`: a run of an earlier version lacks some of it, and its
    fingerprint, by which its evidence is recognised, must not change. The properties read from it, by name and type.
    """

    recorded: dict[str, Any]

    @classmethod
    def from_json(cls, recorded: dict[str, Any]) -> Self:
        return cls(recorded)

    def to_json(self) -> dict[str, Any]:
        return self.recorded

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint_of(self.recorded)

    @property
    def vote_version(self) -> int | None:
        """None in runs from before there were versions."""
        return self.recorded.get("vote_version")

    @property
    def seed(self) -> int:
        return int(self.recorded["seed"])

    @property
    def noise(self) -> NoiseName:
        noise: NoiseName = self.recorded["noise"]
        return noise

    @property
    def sigma_pixel(self) -> tuple[float, ...]:
        return tuple(self.recorded["sigma_pixel"])

    # The images

    @property
    def image_shape(self) -> tuple[int, ...]:
        return tuple(self.recorded["dataset"]["image_shape"])

    @property
    def images_sha256(self) -> str:
        return str(self.recorded["dataset"]["sha256"])

    @property
    def corrupt_images(self) -> int:
        return int(self.recorded["dataset"]["corrupt"])

    # The classifier

    def digest(self, model: str) -> str:
        """The digest of the model with this name: `model_sha256`, `network_sha256` or `unconditional`."""
        return str(self.recorded[model])

    @property
    def classifier(self) -> str:
        return str(self.recorded["classifier"]["name"])

    @property
    def method_name(self) -> str:
        """The name in tables of what the run certifies."""
        name = METHOD_NAMES.get(self.classifier, self.classifier)
        if self.classifier == "denoise" and self.recorded["classifier"].get("steps", 1) > 1:
            name = "Xiao"
        return f"{name}, Lipschitz" if self.certificate == "lipschitz" else name

    @property
    def one_path(self) -> bool:
        """Whether all noise levels share one path of noise; runs before version 4 could not."""
        return bool(self.recorded["classifier"].get("one_path"))

    @property
    def has_race(self) -> bool:
        return self.recorded["classifier"].get("race") is not None

    @property
    def grid(self) -> GridSpec:
        """The grid of a diffusion classifier's scores."""
        return GridSpec(**self.recorded["classifier"]["grid"])

    @property
    def rows_per_pass(self) -> int:
        return int(self.recorded["compute"]["rows_per_pass"])

    # Votes

    @property
    def selection_votes(self) -> int:
        return int(self.recorded["votes"]["selection"])

    @property
    def estimation_votes(self) -> int:
        """Their number, which is the most where the certificate may stop early."""
        return int(self.recorded["votes"]["estimation"])

    @property
    def votes_per_unit(self) -> int:
        return int(self.recorded["votes"]["per_unit"])

    @property
    def unit_ends(self) -> tuple[int, ...]:
        """Further draws at which a unit ends."""
        return tuple(self.recorded["votes"].get("ends", ()))

    # The certificate

    @property
    def certificate(self) -> str:
        return str(self.recorded["certificate"]["method"])

    @property
    def alpha(self) -> float:
        return float(self.recorded["certificate"]["alpha"])

    @property
    def maximum_over_sigmas(self) -> bool:
        return bool(self.recorded["certificate"]["maximum_over_sigmas"])

    @property
    def radii(self) -> tuple[float, ...] | None:
        """The radii that sampling aims at; None where it aims at none."""
        radii = self.recorded["certificate"].get("radii")
        return None if radii is None else tuple(radii)

    def procedure(self, sigma_pixel: float, *, alpha: float | None = None) -> Procedure:
        """The declared one; give another `alpha` only for what is proved, not for when to stop."""
        return self._spec.procedure(sigma_pixel, dimension=math.prod(self.image_shape), alpha=alpha)

    @cached_property
    def _spec(self) -> ProcedureSpec:
        classifier, version = self.recorded["classifier"], self.vote_version
        scores = None
        if "grid" in classifier:
            scores = ScoreSpec(self.grid, classifier["weight"], classifier["loss_cap"], self.one_path)
        return ProcedureSpec(
            self.certificate,
            self.alpha,
            self.maximum_over_sigmas,
            self.estimation_votes,
            self.radii or (),
            self.recorded["certificate"].get("precision", 0.1),
            self.sigma_pixel,
            self.noise,
            scores,
            on_lattice=version is None or version >= LATTICE_SINCE,
        )


def declare(config: RunConfig, listing: Listing, *, models: dict[str, str]) -> Declaration:
    """What a run declares: not where it is computed, nor where models and data lie."""
    content = config.model_dump(mode="json")
    assert config.compute.rows_per_pass is not None
    recorded = {
        "vote_version": VOTE_VERSION,
        "seed": config.seed,
        **models,
        "dataset": {
            "images": len(listing.records),
            "corrupt": len(listing.corrupt),
            "image_shape": list(listing.image_shape),
            "resize": config.dataset.resize,
            "filter": config.dataset.filter,
            "sha256": listing.digest,
        },
        "sigma_pixel": content["sigma_pixel"],
        "noise": config.noise,
        "classifier": content["classifier"],
        "votes": {key: value for key, value in content["votes"].items() if value is not None},
        "certificate": {key: content["certificate"][key] for key in _declared_keys(config)},
        "compute": {key: content["compute"][key] for key in DECISIVE_COMPUTE},
    }
    return Declaration(recorded)


def _declared_keys(config: RunConfig) -> list[str]:
    """The keys of a certificate that must be declared before the first draw: radii only where sampling aims at them."""
    own = {"sequential": ["radii"], "lipschitz": ["precision"]}
    return ["method", "alpha", "maximum_over_sigmas", *own.get(config.certificate.method, [])]


def fingerprint_of(recorded: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(recorded, sort_keys=True).encode()).hexdigest()


def differences(declared: Any, wanted: Any, *, key: str = "") -> list[str]:
    """Where two declarations differ, as `key: declared -> wanted`."""
    if isinstance(declared, dict) and isinstance(wanted, dict):
        keys = sorted(set(declared) | set(wanted))
        return [
            line
            for name in keys
            for line in differences(declared.get(name), wanted.get(name), key=f"{key}.{name}".lstrip("."))
        ]
    return [] if declared == wanted else [f"{key}: {declared} -> {wanted}"]


def refuse_unsound_votes(declaration: Declaration) -> None:
    """Raises UnsoundVotesError for a run whose votes may have had other noise than it states."""
    version = VOTE_VERSION if declaration.vote_version is None else declaration.vote_version
    paths = declaration.noise == "float" and declaration.one_path and len(declaration.sigma_pixel) > 1
    if paths and version < FLOAT_PATHS_SINCE:
        raise UnsoundVotesError(
            f"votes of version {version} with noise 'float' on one path may have had more noise than sigma_pixel says, "
            "wherever a lower level was done before: they certify nothing; run again in another folder"
        )


def refuse_undeclared_radii(declaration: Declaration, radii: Sequence[float]) -> None:
    """Raises DeclarationChangedError for a radius that sampling did not aim at: its table would be too low there."""
    declared = declaration.radii
    other = [] if declared is None else sorted(set(radii) - set(declared))
    if other:
        raise DeclarationChangedError(
            f"radius {other[0]:g} was not declared: this run stopped sampling an image as soon as its declared radii "
            f"({', '.join(f'{radius:g}' for radius in declared or [])}) were decided. Each image's own radius, in "
            "certificates.parquet, holds nevertheless; a table at other radii needs a run of its own"
        )


def refuse_changes(declared: Declaration, wanted: Declaration, *, folder: str) -> None:
    """Raises DeclarationChangedError, naming every difference, unless the two are equal."""
    changed = differences(declared.recorded, wanted.recorded)
    versions = declared.vote_version, wanted.vote_version
    if versions[0] != versions[1]:
        raise DeclarationChangedError(
            f"{folder} was made by another version of ndc (votes of version {versions[0]}, this program's are "
            f"{versions[1]}); finish it with that one, or give this run another folder with --run"
        )
    if changed:
        spent = any(line.startswith(("votes.", "certificate.")) for line in changed)
        raise DeclarationChangedError(
            f"{folder} was started with other settings ({'; '.join(changed)}); "
            "go back to them, or give this run another folder with --run"
            + (" and another seed: votes that have been looked at would spend alpha a second time" if spent else "")
        )
