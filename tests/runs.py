"""Small runs for tests: seconds long, with the barely trained model."""

from pathlib import Path

from pipeline.config import RunConfig, load_config

SMALL = [
    "sigma_pixel=[0.25]",
    "dataset.limit=4",
    "votes.selection=10",
    "votes.estimation=40",
    "votes.per_unit=20",
    "certificate.radii=[0.0, 0.1]",
    "classifier.grid.points=4",
    "classifier.sift.grid.points=3",
    "compute.rows_per_pass=32",
]


def small_config(model: Path, *assignments: str) -> RunConfig:
    """4 images, 12 units, 200 votes."""
    return load_config("demo", [f"model={model}", *SMALL, *assignments])


def small_arguments(model: Path, *assignments: str) -> list[str]:
    """The same as arguments of `ndc certify demo`."""
    return [argument for item in [f"model={model}", *SMALL, *assignments] for argument in ("--set", item)]
