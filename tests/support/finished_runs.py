"""Finished runs without a model: declared as `ndc certify` does, with votes that a test chooses."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from pipeline.data.datasets import Example
from pipeline.declaration.declaration import declare
from pipeline.declaration.toml_files import load_config
from pipeline.declaration.units import plan_units
from pipeline.locations import Where, location
from pipeline.store.evidence import Evidence
from pipeline.store.run_store import RunStore
from tests.support.small_runs import SMALL, listing_of

CLASSES = 3
COST = {"selection": (50, 1.0), "estimation": (60, 2.0)}  # evaluations and seconds of a unit of 10 or of 20 draws


def example(index: int, label: int = 1, *, grey: int | None = None) -> Example:
    return Example(f"image-{index}", np.full((1, 8, 8), index if grey is None else grey, np.uint8), label)


# Class 1 has all selection votes of every image: the last one is wrong.
EXAMPLES = [example(0), example(1), example(2), example(3, label=2)]


def finished_run(
    folder: Where,
    wins: Mapping[float, Sequence[int]],
    *assignments: str,
    examples: Sequence[Example] = EXAMPLES,
    preset: str = "demo",
    device: str = "cpu",
) -> Path:
    """Of 40 estimation votes of each image, class 1 has so many `wins` at each noise level, and class 0 the others."""
    levels = f"sigma_pixel={list(wins)}"
    config = load_config(preset, ["model=models/tiny", *SMALL, levels, "compute.threads_per_actor=1", *assignments])
    listing = listing_of(list(examples))
    law = declare(config, listing, models={"model_sha256": "0123456789abcdef", "unconditional": "null_label"})
    fingerprint, units = law.fingerprint, list(plan_units(law, listing.records))
    plan = {"units": len(units), "votes": sum(unit.draws for unit in units), "classes": CLASSES, "stops_early": False}
    store = RunStore(location(folder))
    manifest = {"law": law.to_json(), "fingerprint": fingerprint, "plan": plan}
    store.declare(manifest, config_toml=config.to_toml(), records=listing.records, examples=iter(examples))
    index_of = {record.image_id: record.index for record in listing.records}
    for unit in units:
        won = wins[unit.sigma_pixel][index_of[unit.image_id]]
        right = unit.draws if unit.phase == "selection" else min(unit.draws, max(0, won - unit.draw_start))
        votes = {1: right, 0: unit.draws - right}
        store.publish(Evidence(unit, votes, *COST[unit.phase], 0.0, device), fingerprint=fingerprint)
    return Path(str(folder))


def log_text(rows: Sequence[tuple[int, int, int, float]]) -> str:
    """A published log of rows of idx, label, predict and radius."""
    lines = ["idx\tlabel\tpredict\tradius\tcorrect\ttime"]
    lines += [f"{i}\t{label}\t{p}\t{radius:.3}\t{int(p == label)}\t0:00:10.500000" for i, label, p, radius in rows]
    return "\n".join(lines) + "\n"
