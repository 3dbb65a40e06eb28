"""Everything that decides a run's votes and what they mean, as one value that a resume must meet again."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from pipeline.data.datasets import Listing
from pipeline.declaration.config import RunConfig

# Raised whenever the code changes what a vote is or when voting ends: evidence of another version is never mixed in.
# Version 7 draws the noise of each step from a stream of its own, so that it need not be drawn before a vote gets
# there; earlier, a draw's steps followed each other in the stream that the input's noise begins. The input's is as it
# was.
VOTE_VERSION = 7

# Each changes the rounding of a forward pass, and with it a near-tie's winner.
DECISIVE_COMPUTE = ("rows_per_pass", "threads_per_actor", "precision", "channels_last", "compile")


# Before it, a level that was polled without the lowest of its path had more `float` noise than it states.
FLOAT_PATHS_SINCE = 6


class UnsoundVotesError(ValueError):
    """Votes of an earlier version that certify nothing."""


class LawChangedError(ValueError):
    """The run folder was declared with other settings, another model or other data."""


def law_of(config: RunConfig, listing: Listing, *, models: dict[str, str]) -> dict[str, Any]:
    """The law of a run: where it is computed, and where models and data lie, is not in it."""
    content = config.model_dump(mode="json")
    assert config.compute.rows_per_pass is not None
    return {
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


def _declared_keys(config: RunConfig) -> list[str]:
    """What of a certificate must be declared before the first draw: radii only where sampling aims at them."""
    own = {"sequential": ["radii"], "lipschitz": ["precision"]}
    return ["method", "alpha", "maximum_over_sigmas", *own.get(config.certificate.method, [])]


def fingerprint_of(law: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(law, sort_keys=True).encode()).hexdigest()


def differences(declared: Any, wanted: Any, *, key: str = "") -> list[str]:
    """Where two laws differ, as `key: declared -> wanted`."""
    if isinstance(declared, dict) and isinstance(wanted, dict):
        keys = sorted(set(declared) | set(wanted))
        return [
            line
            for name in keys
            for line in differences(declared.get(name), wanted.get(name), key=f"{key}.{name}".lstrip("."))
        ]
    return [] if declared == wanted else [f"{key}: {declared} -> {wanted}"]


def refuse_unsound_votes(law: dict[str, Any]) -> None:
    """Raises UnsoundVotesError for a run whose votes may have had other noise than it states."""
    version = law.get("vote_version", VOTE_VERSION)
    paths = law["noise"] == "float" and law["classifier"].get("one_path") and len(law["sigma_pixel"]) > 1
    if paths and version < FLOAT_PATHS_SINCE:
        raise UnsoundVotesError(
            f"votes of version {version} with noise 'float' on one path may have had more noise than sigma_pixel says, "
            "wherever a lower level was done before: they certify nothing; run again in another folder"
        )


def refuse_undeclared_radii(law: dict[str, Any], radii: Sequence[float]) -> None:
    """Raises LawChangedError for a radius that a sequential run did not aim at: its table would be too low there."""
    declared = law["certificate"].get("radii")
    other = [] if declared is None else sorted(set(radii) - set(declared))
    if other:
        raise LawChangedError(
            f"radius {other[0]:g} was not declared: this run stopped sampling an image as soon as its declared radii "
            f"({', '.join(f'{radius:g}' for radius in declared or [])}) were decided. Each image's own radius, in "
            "certificates.parquet, holds nevertheless; a table at other radii needs a run of its own"
        )


def refuse_changes(declared: dict[str, Any], wanted: dict[str, Any], *, folder: str) -> None:
    """Raises LawChangedError, naming every difference, unless the two are equal."""
    changed = differences(declared, wanted)
    versions = declared.get("vote_version"), wanted["vote_version"]
    if versions[0] != versions[1]:
        raise LawChangedError(
            f"{folder} was made by another version of ndc (votes of version {versions[0]}, this program's are "
            f"{versions[1]}); finish it with that one, or give this run another folder with --run"
        )
    if changed:
        spent = any(line.startswith(("votes.", "certificate.")) for line in changed)
        raise LawChangedError(
            f"{folder} was started with other settings ({'; '.join(changed)}); "
            "go back to them, or give this run another folder with --run"
            + (" and another seed: votes that have been looked at would spend alpha a second time" if spent else "")
        )
