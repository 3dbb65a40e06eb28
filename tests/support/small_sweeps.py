"""Small sweeps, and their runs alone: in this process, without Ray and without sharing."""

from pathlib import Path
from typing import Any

from pipeline.certificates.files import read_certificates
from pipeline.data.datasets import examples_of
from pipeline.declaration.config import RunConfig
from pipeline.driver.prepare import prepare
from pipeline.locations import location
from pipeline.report.report import reduce_and_report
from pipeline.store.run_store import RunStore
from pipeline.workers.vote_actor import SequentialVoteActor, VoteActor, VoterSettings

SWEEP = """
base = "demo"

[set]
model = "{model}"
sigma_pixel = [0.25]
"dataset.limit" = 3
"votes.selection" = 10
"votes.estimation" = 40
"certificate.alpha" = 0.01
"certificate.radii" = [0.0, 0.1]
"classifier.grid.points" = 4
"classifier.sift.grid.points" = 3
"compute.rows_per_pass" = 32
"compute.actors" = 1
"compute.threads_per_actor" = 1

[vary]
sigma_pixel = [[0.125, 0.25]]
"votes.selection" = [4]
"votes.estimation" = [20, 60]
"certificate.alpha" = [0.1]

[points.Cohen]

[points.Sequential]
"certificate.method" = "sequential"

[points.Raced]
"classifier.race" = {gap = 1.2}

[points.RacedOfFew]
"classifier.race" = {gap = 1.2}
"votes.selection" = 1
"""


def sweep_toml(folder: Path, model: Path, text: str = SWEEP) -> str:
    path = folder / "small.toml"
    path.write_text(text.replace("{model}", str(model)))
    return str(path)


def alone(config: RunConfig, folder: Path) -> None:
    """The run of a configuration by itself, with units of its own size."""
    votes = config.votes.model_copy(update={"ends": None, "per_unit": 30})
    run = prepare(config.model_copy(update={"votes": votes}), location(folder))
    store = RunStore(run.folder)
    examples = examples_of(run.config.dataset, run.source, channels=run.listing.image_shape[0], corrupt=[])
    store.declare(run.manifest(), config_toml=run.config.to_toml(), records=run.records, examples=examples)
    settings = VoterSettings(run.config, str(run.folder), run.declaration, run.fingerprint, num_classes=run.num_classes)
    kind, units = VoteActor, list(run.units.values())
    if config.follows_images:
        kind, units = SequentialVoteActor, list({unit.cell: unit for unit in units}.values())
    record_of = {record.image_id: record for record in run.records}
    receipts = list(kind(settings).receipts((unit, record_of[unit.image_id]) for unit in units))
    assert not [receipt.error for receipt in receipts if receipt.error]
    reduce_and_report(store, alpha=None, radii=run.config.certificate.radii, folder=run.folder)


def votes_of(folder: Path) -> dict[tuple, tuple[dict[int, int], int]]:
    """Votes and evaluations of each image, noise level and phase: what may not depend on how units are cut."""
    store, sums = RunStore(folder), dict[tuple, Any]()
    for item in store.all_evidence(fingerprint=store.manifest()["fingerprint"]):
        votes, evaluations = sums.get((*item.unit.cell, item.unit.phase), ({}, 0))
        summed = {c: votes.get(c, 0) + item.votes.get(c, 0) for c in votes.keys() | item.votes.keys()}
        sums[*item.unit.cell, item.unit.phase] = (summed, evaluations + item.evaluations)
    return sums


def certificates_of(folder: Path) -> list[dict[str, Any]]:
    rows, _ = read_certificates(location(folder / "certificates.parquet"))
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]
