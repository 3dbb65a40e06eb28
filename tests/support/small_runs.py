"""Small runs for tests: seconds long, with the barely trained model."""

from pathlib import Path

from pipeline.data.datasets import DatasetSpec, Example, Listing, examples_of, source_of
from pipeline.data.source import Split
from pipeline.declaration.config import RunConfig
from pipeline.declaration.toml_files import load_config
from pipeline.driver.declare import declare_or_grow
from pipeline.driver.prepare import PreparedRun, prepare
from pipeline.locations import location
from pipeline.report.report import reduce_and_report
from pipeline.store.run_store import RunStore
from pipeline.workers.rows import Receipt
from pipeline.workers.vote_actor import SequentialVoteActor, VoteActor, VoterSettings

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
    "compute.actors=1",  # each starts in five seconds of a core
]


def digits(split: Split, *, limit: int | None = None) -> list[Example]:
    spec = DatasetSpec("digits", split=split, limit=limit)
    return list(examples_of(spec, source_of(spec), channels=1, corrupt=[]))


def listing_of(examples: list[Example]) -> Listing:
    return Listing([example.record(index) for index, example in enumerate(examples)], examples[0].image.shape)


def small_config(model: Path, *assignments: str) -> RunConfig:
    """4 images, 12 units, 200 votes."""
    return load_config("demo", [f"model={model}", *SMALL, *assignments])


def small_arguments(model: Path, *assignments: str) -> list[str]:
    """The same as arguments of `ndc certify demo`."""
    return [argument for item in [f"model={model}", *SMALL, *assignments] for argument in ("--set", item)]


def fast_config(model: Path, *assignments: str) -> RunConfig:
    """2 images at two levels, raced and sequential: the preset `fast`, small."""
    small = [
        "dataset.limit=2",
        "sigma_pixel=[0.125, 0.25]",
        "classifier.grid={levels=[0.3, 0.4, 0.6, 0.8, 1.1]}",
        "votes.selection=10",
        "votes.estimation=240",
        "votes.per_unit=60",
        "certificate.radii=[0.0, 0.1]",
        "compute.rows_per_pass=32",
        "compute.actors=1",
    ]
    return load_config("fast", [f"model={model}", *small, *assignments])


def declared(config: RunConfig, folder: Path) -> PreparedRun:
    """A run whose folder says what it is, or what it has grown to."""
    return declare_or_grow(prepare(config, location(folder)))


def voted(run: PreparedRun, *, most_units: int | None = None) -> list[Receipt]:
    """Draws what a run lacks, or at most that many images or units, by one actor in this process."""
    missing = run.missing(RunStore(run.folder).all_evidence(fingerprint=run.fingerprint))
    settings = VoterSettings(run.config, str(run.folder), run.declaration, run.fingerprint, run.num_classes)
    record_of, follows = {record.image_id: record for record in run.records}, run.config.follows_images
    units = list({unit.cell if follows else unit: unit for unit in missing.values()}.values())[:most_units]
    actor = (SequentialVoteActor if follows else VoteActor)(settings)
    receipts = list(actor.receipts((unit, record_of[unit.image_id]) for unit in units))
    assert not any(receipt.error for receipt in receipts), receipts
    return [receipt for receipt in receipts if receipt.seconds]


def computed(config: RunConfig, folder: Path) -> RunStore:
    """A finished run with its report, by one actor in this process: no Ray, so the sizes must be set."""
    run = declared(config, folder)
    voted(run)
    store = RunStore(run.folder)
    reduce_and_report(store, alpha=None, radii=config.certificate.radii, folder=run.folder)
    return store
