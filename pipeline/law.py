"""Everything that decides a run's votes and what they mean, as one value that a resume must meet again."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from pipeline.config import RunConfig
from pipeline.datasets import Example, dataset_digest

# Raised whenever the code changes what a vote is: evidence of another version is never mixed in.
VOTE_VERSION = 1


class LawChangedError(ValueError):
    """The run folder was declared with other settings, another model or other data."""


def law_of(config: RunConfig, examples: Sequence[Example], *, model_digest: str) -> dict[str, Any]:
    """The law of a run: where it is computed (actors, folders, experiment) is not in it."""
    content = config.model_dump(mode="json")
    return {
        "vote_version": VOTE_VERSION,
        "seed": config.seed,
        "model_sha256": model_digest,
        "dataset": {
            "name": config.dataset.name,
            "split": config.dataset.split,
            "images": len(examples),
            "sha256": dataset_digest(examples),
        },
        "sigma_pixel": content["sigma_pixel"],
        "classifier": content["classifier"],
        "votes": content["votes"],
        "certificate": {"method": config.certificate.method, "alpha": config.certificate.alpha},
        "rows_per_pass": config.compute.rows_per_pass,
        "threads_per_actor": config.compute.threads_per_actor,
    }


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


def refuse_changes(declared: dict[str, Any], wanted: dict[str, Any], *, folder: str) -> None:
    """Raises LawChangedError, naming every difference, unless the two are equal."""
    changed = differences(declared, wanted)
    if changed:
        raise LawChangedError(
            f"{folder} was started with other settings ({'; '.join(changed)}); "
            "go back to them, or give this run another folder with --run"
        )
