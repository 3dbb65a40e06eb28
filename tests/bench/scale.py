"""A run of a million units, simulated: what the driver needs to plan, resume, watch and reduce it, and at which rate it
hands out units.

    .venv/bin/python -m tests.bench.scale [--images 10000] [--levels 1] [--units 100] [--classes 1000]

The evidence is synthetic, written by the code that writes a run's; nothing is voted on. Every figure is of a fresh
process: seconds, and the most memory that it held. Takes ten to twenty minutes on two cores.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from pipeline.certificates.reduce import certify_images
from pipeline.data.datasets import Example, ImageRecord, Listing
from pipeline.declaration.config import ComputeConfig
from pipeline.declaration.declaration import Declaration, declare
from pipeline.declaration.growth import growth_of
from pipeline.declaration.shards import Shard
from pipeline.declaration.toml_files import load_config
from pipeline.declaration.units import WorkUnit, plan_units
from pipeline.driver.status import status_of
from pipeline.locations import location, publish
from pipeline.report.report import summary_so_far
from pipeline.store.evidence import Evidence, table_of
from pipeline.store.parquet_io import parquet_bytes
from pipeline.store.run_store import RunStore
from pipeline.workers.ray_cluster import connect_ray
from pipeline.workers.ray_pool import map_over_actors
from pipeline.workers.rows import unit_row
from pipeline.workers.watchdog import LOADING

SIGMAS = (0.25, 0.125, 0.5)
SHARDS = 8
LOOSE = 20_000
DRAWS = 100
MOST_SECONDS, MOST_BYTES = 60.0, 2e9
UNIT_SECONDS, ACTORS = 120.0, 1000
RATED_UNITS, IDLE_ACTORS = 2000, 2


def examples(images: int, classes: int) -> Iterator[Example]:
    rng = np.random.default_rng(0)
    for index in range(images):
        yield Example(f"image-{index:06}", rng.integers(0, 256, (1, 8, 8), np.uint8), index % classes)


def declaration_of(listing: Listing, levels: int, units: int) -> Declaration:
    """With so many units for each image and noise level."""
    votes = [f"votes.selection={DRAWS}", f"votes.estimation={DRAWS * (units - 1)}", f"votes.per_unit={DRAWS}"]
    sigmas = f"sigma_pixel={list(SIGMAS[:levels])}"
    config = load_config("demo", [*votes, sigmas, "compute.rows_per_pass=512"])
    return declare(config, listing, models={"model_sha256": "m", "unconditional": "null_label"})


def plan(declaration: Declaration, records: list[ImageRecord]) -> dict[str, WorkUnit]:
    fingerprint = declaration.fingerprint
    return {unit.unit_id(fingerprint): unit for unit in plan_units(declaration, records)}


def evidence_of(unit: WorkUnit, classes: int, rng: np.random.Generator) -> Evidence:
    """Most votes for the label, the others spread over ten more."""
    others = (unit.label + 1 + rng.choice(classes - 1, 10, replace=False)) % classes
    counts = rng.multinomial(unit.draws, [0.9, *[0.01] * 10]).tolist()
    votes = {c: n for c, n in zip([unit.label, *others.tolist()], counts, strict=True) if n}
    return Evidence(unit, votes, 100_000, UNIT_SECONDS, 1.7e9, "cuda")


def build(folder: Path, images: int, levels: int, units: int, classes: int) -> None:
    """A finished run: all but the last units in shards."""
    store, rng = RunStore(folder), np.random.default_rng(1)
    all_examples = list(examples(images, classes))
    listing = Listing([example.record(index) for index, example in enumerate(all_examples)], (1, 8, 8))
    declaration = declaration_of(listing, levels, units)
    fingerprint, planned = declaration.fingerprint, plan(declaration, listing.records)
    totals = {"units": len(planned), "votes": len(planned) * DRAWS, "classes": classes, "stops_early": False}
    manifest = {"law": declaration.to_json(), "fingerprint": fingerprint, "plan": totals}
    store.declare(manifest, config_toml="", records=listing.records, examples=all_examples)
    shards, items = defaultdict(list), list(planned.items())
    for unit_id, unit in items[:-LOOSE]:
        shards[unit_id[:2]].append(unit)
    for name, members in shards.items():
        table = table_of([evidence_of(unit, classes, rng) for unit in members], fingerprint=fingerprint)
        publish(location(folder) / "evidence" / f"{name}.parquet", parquet_bytes(table.sort_by("unit_id")))
    for _, unit in items[-LOOSE:]:
        store.publish(evidence_of(unit, classes, rng), fingerprint=fingerprint)


def step_plan(store: RunStore) -> str:
    return f"{len(plan(store.declaration(), store.records())):,} units"


def step_compact(store: RunStore) -> str:
    before = len(store.evidence_files())
    store.compact(fingerprint=store.manifest()["fingerprint"])
    return f"{before:,} files of single units"


def step_resume(store: RunStore) -> str:
    manifest = store.manifest()
    planned = plan(store.declaration(), store.records())
    evidence, unusable = store.sort_out_evidence(fingerprint=manifest["fingerprint"], planned=planned.keys())
    missing = planned.keys() - set(evidence.unit_ids)
    assert not unusable
    assert not missing
    return f"{len(evidence):,} units there, {len(missing)} missing"


def step_grow(store: RunStore) -> str:
    """From every second image to all; what a driver then plans."""
    declaration, records = store.declaration(), store.records()
    images = {"images": len(records[::2]), "sha256": "half"}
    half = Declaration({**declaration.recorded, "dataset": {**declaration.recorded["dataset"], **images}})
    growth = growth_of(half, declaration, before=records[::2], after=records, folder=str(store.folder))
    assert growth
    units = plan(declaration, records)
    return f"{growth.images[0]:,} to {growth.images[1]:,} images, {len(units):,} units"


def step_shard(store: RunStore) -> str:
    """The work of the driver of one of eight shards, on a run that is complete."""
    evidence = store.all_evidence(fingerprint=store.manifest()["fingerprint"])
    shard, planned = Shard(1, SHARDS), plan(store.declaration(), store.records())
    images = {record.image_id for record in store.records() if shard.has(record.image_id)}
    own = {unit_id for unit_id, unit in planned.items() if unit.image_id in images}
    missing = own - set(evidence.unit_ids)
    assert not missing
    return f"{len(own):,} units of {len(images):,} images"


def step_reduce(store: RunStore) -> str:
    manifest = store.manifest()
    certified = certify_images(
        store.all_evidence(fingerprint=manifest["fingerprint"]),
        store.images(),
        declaration=store.declaration(),
        num_classes=manifest["plan"]["classes"],
        alpha=None,
        resume_with="",
    )
    return f"{len(certified):,} certificates"


def step_partial(store: RunStore) -> str:
    summary = summary_so_far(store, radii=(0.0, 0.25))
    assert summary
    return f"{summary.levels[0].images:,} complete images"


def step_status(store: RunStore) -> str:
    status = status_of(store.folder)
    assert status.complete
    return f"{status.votes_done:,} votes"


class Idle:
    """An actor whose units take no time: what is left is the driver."""

    def __init__(self, settings, heartbeat) -> None:
        self.heartbeat = heartbeat
        heartbeat.arrive()
        heartbeat.end(LOADING)

    def __call__(self, batch):
        for unit in batch["unit"].tolist():
            self.heartbeat.begin(unit)
            self.heartbeat.end(unit)
            yield {"unit": np.array([unit])}


def step_send(store: RunStore) -> str:
    """Sends all units to actors that do nothing with them: seconds per receipt, by the clock and of the driver."""
    planned = plan(store.declaration(), store.records())
    records = {record.image_id: record for record in store.records()}
    rows = [{**unit_row(unit, records[unit.image_id]), "unit": str(unit)} for unit in planned.values()]
    compute = ComputeConfig(actors=IDLE_ACTORS)
    pool = connect_ray(compute, say=print)
    receipts = map_over_actors(rows, Idle, None, pool=pool, stuck_seconds=compute.stuck_seconds, say=print)
    next(receipts)
    started, worked = time.perf_counter(), time.process_time()
    received = sum(1 for _ in islice(receipts, RATED_UNITS))
    return f"{(time.perf_counter() - started) / received} {(time.process_time() - worked) / received}"


STEPS: dict[str, tuple[str, Callable[[RunStore], str]]] = {
    "plan": ("plan", step_plan),
    "compact": ("compaction", step_compact),
    "resume": ("plan and resume listing", step_resume),
    "status": ("`ndc status`", step_status),
    "grow": ("growth", step_grow),
    "shard": (f"one shard of {SHARDS}", step_shard),
    "reduce": ("reduce", step_reduce),
    "partial": ("partial results", step_partial),
    "send": ("all units to actors", step_send),
}


def measured(step: str, folder: Path) -> tuple[str, float, float]:
    command = [sys.executable, "-m", "tests.bench.scale", "--step", step, "--folder", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    figures = json.loads(done.stdout.splitlines()[-1])
    return figures["said"], figures["seconds"], figures["bytes"]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--images", type=int, default=10_000)
    arguments.add_argument("--levels", type=int, default=1, choices=range(1, 1 + len(SIGMAS)))
    arguments.add_argument("--units", type=int, default=100, help="for each image and noise level")
    arguments.add_argument("--classes", type=int, default=1_000)
    arguments.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    arguments.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.step:
        started = time.perf_counter()
        said = STEPS[given.step][1](RunStore(given.folder))
        seconds = time.perf_counter() - started
        peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(json.dumps({"said": said, "seconds": seconds, "bytes": peak}))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "run"
        build(folder, given.images, given.levels, given.units, given.classes)
        print("| step | of | seconds | memory, GB |\n|---|---|---|---|")
        for step in ("plan", "compact", "resume", "grow", "shard", "status", "reduce", "partial"):
            said, seconds, peak = measured(step, folder)
            within = "" if seconds < MOST_SECONDS and peak < MOST_BYTES else " (over 60 s or 2 GB)"
            print(f"| {STEPS[step][0]} | {said} | {seconds:.1f}{within} | {peak / 1e9:.2f} |", flush=True)
        said, seconds, peak = measured("send", folder)
        print(f"| {STEPS['send'][0]} | and receipts of {RATED_UNITS:,} | {seconds:.1f} | {peak / 1e9:.2f} |")
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        print(f"\nThe run's folder holds {size / 1e6:,.0f} MB, images included.\n{overhead(*map(float, said.split()))}")


def overhead(seconds_a_receipt: float, worked: float) -> str:
    """What the driver costs each unit: the gap in which an actor waits, and the queue at a server of fixed rate."""
    gap, asked, rate = IDLE_ACTORS * seconds_a_receipt, ACTORS / UNIT_SECONDS, 1 / worked
    delay = gap + asked / rate / (2 * (rate - asked))
    return (
        f"The driver works {1000 * worked:.1f} ms at a unit: {rate:.0f} a second. {ACTORS:,} actors with units of "
        f"{UNIT_SECONDS:.0f} s ask for {asked:.1f}, {asked / rate:.0%} of that. An actor whose units take no time gets "
        f"one each {1000 * gap:.0f} ms; with the queue that is {delay / UNIT_SECONDS:.2%} of a unit's time."
    )


if __name__ == "__main__":
    main()
