"""Where a run's result comes from, for people: its model and data, what was declared, and what computed it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pipeline.data.datasets import DATASETS
from pipeline.declaration.config import RunConfig
from pipeline.declaration.declaration import Declaration
from pipeline.declaration.growth import stage_lines
from pipeline.store.devices import device_lines
from pipeline.store.evidence import EvidenceTable

ALWAYS_SPLIT = (*DATASETS, "cifar-binary", "cifar-python", "imagenet64-npz")  # elsewhere a split may mean nothing
LETTERS_OF_A_DIGEST = 12
CLASSES_NAMED = 12

Facts = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Provenance:
    """What a page says of a run besides its result; runs of earlier programs know less. `class_names` are by label,
    `devices` and `stages` are remarks for the page."""

    facts: Facts = ()
    class_names: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    stages: tuple[str, ...] = ()


NOTHING_KNOWN = Provenance()


def provenance_of(
    config: RunConfig, manifest: dict[str, Any], declaration: Declaration, evidence: EvidenceTable, *, alpha: float
) -> Provenance:
    facts = [
        ("Model", model_text(config, manifest, declaration)),
        ("Data", data_text(config, manifest, declaration)),
        ("Classes", classes_text(manifest["plan"]["classes"], manifest["data"].get("classes") or ())),
        ("Classifier", declaration.method_name),
        ("Certificate", certificate_text(declaration, alpha)),
        ("Noise levels", f"sigma {_listed(declaration.sigma_pixel)}, {declaration.noise} noise"),
        ("Computed on", "; ".join(str(record) for record, _ in evidence.devices)),
        ("Dates (UTC)", dates_text(manifest, evidence)),
        ("Program", program_text(manifest["program"])),
        ("Command", manifest["program"].get("command", "")),
    ]
    return Provenance(
        tuple((name, text) for name, text in facts if text),
        tuple(manifest["data"].get("classes") or ()),
        tuple(device_lines(evidence.devices)),
        tuple(stage_lines(manifest)),
    )


def model_text(config: RunConfig, manifest: dict[str, Any], declaration: Declaration) -> str:
    """The model's place, kind, size and origin, and the start of the digest that the run declared."""
    facts = manifest["model"]
    digest = declaration.recorded.get("model_sha256", "")[:LETTERS_OF_A_DIGEST]
    parts = [
        config.model,
        facts.get("network", ""),
        f"{facts['parameters']:,} parameters" if "parameters" in facts else "",
        facts.get("origin", ""),
        f"SHA-256 {digest}" if digest else "",
    ]
    if (network := getattr(config.classifier, "network", None)) is not None:
        parts.append(f"images classified by {network}")
    return ", ".join(part for part in parts if part)


def data_text(config: RunConfig, manifest: dict[str, Any], declaration: Declaration) -> str:
    data, dataset, spec = manifest["data"], declaration.recorded["dataset"], config.dataset
    split = f"{spec.split} split" if spec.name in ALWAYS_SPLIT or data.get("format") in ALWAYS_SPLIT else ""
    channels, height, width = dataset["image_shape"]
    resized = f"resized with the filter {dataset['filter']}" if dataset.get("resize") else ""
    images = f"{dataset['images']:,} images", f"{channels} x {height} x {width} pixels"
    return ", ".join(part for part in (spec.name, split, *images, resized) if part)


def classes_text(count: int, names: Sequence[str]) -> str:
    if list(names) == [str(label) for label in range(len(names))]:
        names = ()
    named = [*names[:CLASSES_NAMED], *(["..."] if len(names) > CLASSES_NAMED else [])]
    return f"{count:,}: {', '.join(named)}" if named else f"{count:,}, called by their numbers"


def certificate_text(declaration: Declaration, alpha: float) -> str:
    declared = "" if alpha == declaration.alpha else f" (declared: {declaration.alpha:g})"
    fixed = declaration.certificate == "cohen"
    votes = f"{'' if fixed else 'at most '}{declaration.estimation_votes:,} votes per image and noise level"
    return f"{declaration.certificate}, alpha {alpha:g}{declared}, {votes}"


def dates_text(manifest: dict[str, Any], evidence: EvidenceTable) -> str:
    """When the run was declared, and when its last vote was drawn."""
    return ", ".join(_dates(manifest["declared"], evidence.last_finished_unix))


def _dates(declared: str, finished_unix: float) -> Iterator[str]:
    if declared:
        yield f"declared {datetime.fromisoformat(declared).astimezone(UTC):%Y-%m-%d %H:%M}"
    if finished_unix:
        yield f"last vote {datetime.fromtimestamp(finished_unix, UTC):%Y-%m-%d %H:%M}"


def program_text(program: dict[str, str]) -> str:
    if not program.get("ndc"):
        return ""
    return f"ndc {program['ndc']}" + (f", commit {program['commit']}" if program.get("commit") else "")


def _listed(numbers: Sequence[float]) -> str:
    return ", ".join(f"{number:g}" for number in numbers)
