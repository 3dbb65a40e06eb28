"""How far a run is, read from its folder alone."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from upath import UPath

from pipeline.certificates.remaining import Left, RemainingWork
from pipeline.certificates.stopping import cells_of
from pipeline.declaration.shards import Shard, shard_of
from pipeline.store.devices import device_lines
from pipeline.store.lease import described, holder_of, lease_path, name_of, names_in, shard_named
from pipeline.store.run_store import RunStore

RATE_WINDOW_SECONDS = 120.0


@dataclass(frozen=True)
class ShardStatus:
    """How far one of several drivers is; `driver` is who works on it, as far as is known."""

    shard: str
    decided: int
    to_decide: int
    driver: str | None


@dataclass(frozen=True)
class RunStatus:
    """Rates are over the units published in the last two minutes; None when there are none."""

    folder: str
    units: int
    units_done: int
    votes: int
    votes_done: int
    decided: int
    to_decide: int
    evaluations: int
    evaluations_per_second: float | None
    seconds_left: Left | None
    failures: list[dict[str, Any]]
    driver: str | None  # who works on it, as far as is known
    at_most: str  # where certificates may stop early: "at most "
    devices: tuple[str, ...]  # what computed it, a line each, where that needs to be said
    shards: tuple[ShardStatus, ...] = ()  # of all drivers, if one of several is known

    @property
    def complete(self) -> bool:
        return self.decided == self.to_decide

    def as_json(self) -> dict[str, Any]:
        left = self.seconds_left
        return asdict(self) | {
            "seconds_left": left.expected if left else None,
            "seconds_left_range": [left.low, left.high] if left else None,
        }


def status_of(folder: UPath, *, now_unix: float | None = None) -> RunStatus:
    """Counts a run's evidence.

    Raises:
        ValueError: the folder holds no run, or a file among its evidence is not evidence.
    """
    store = RunStore(folder)
    manifest = store.manifest()
    evidence = store.all_evidence(fingerprint=manifest["fingerprint"])
    images, classes = store.images(), manifest["plan"]["classes"]
    cells = cells_of(store.declaration(), images, evidence, num_classes=classes)
    work = RemainingWork.of_evidence(cells, evidence, stops_early=manifest["plan"]["stops_early"])
    now = time.time() if now_unix is None else now_unix
    rate, left = None, None
    latest = max(now, evidence.last_finished_unix)  # clocks differ between nodes
    recent = evidence.since(latest - RATE_WINDOW_SECONDS)
    if recent and work.decided < work.cells:
        evaluations, began = recent
        rate = evaluations / max(1e-3, latest - began)
        left = work.evaluations_left().times(1 / rate) if rate else None
    return RunStatus(
        folder=str(folder),
        units=manifest["plan"]["units"],
        units_done=len(evidence),
        votes=manifest["plan"]["votes"],
        votes_done=evidence.draws,
        decided=work.decided,
        to_decide=work.cells,
        evaluations=evidence.evaluations,
        evaluations_per_second=rate,
        seconds_left=left,
        failures=list(store.failures()),
        driver=driver_of(folder, now_unix=now),
        at_most="at most " if manifest["plan"]["stops_early"] else "",
        devices=tuple(device_lines(evidence.devices)),
        shards=shards_of(folder, work.is_decided(image.image_id for image in images), now_unix=now),
    )


def shards_of(folder: UPath, is_decided: Sequence[tuple[str, bool]], *, now_unix: float) -> tuple[ShardStatus, ...]:
    """All shards of a run as its drivers divide it; of several divisions, the one with the most known drivers."""
    numbers = [shard.total for name in names_in(folder) if (shard := shard_named(name))]
    if not numbers:
        return ()
    shards = max(set(numbers), key=lambda number: (numbers.count(number), number))
    decided, to_decide = Counter[int](), Counter[int]()
    for image_id, done in is_decided:
        number = shard_of(image_id, shards)
        decided[number] += done
        to_decide[number] += 1
    return tuple(
        ShardStatus(
            str(shard),
            decided[shard.number],
            to_decide[shard.number],
            driver_of(folder, name_of(shard), now_unix=now_unix),
        )
        for shard in (Shard(number, shards) for number in range(1, shards + 1))
    )


def driver_of(folder: UPath, name: str = "", *, now_unix: float) -> str | None:
    """The holder of the run's lease, or of a shard's, and when it was last heard of."""
    holder = holder_of(lease_path(folder, name))
    if holder is None:
        return None
    return f"{described(holder)}, last heard from {max(0.0, now_unix - float(holder['renewed_unix'])):,.0f} s ago"


def status_lines(state: RunStatus) -> list[str]:
    lines = [
        f"{state.folder}: {state.decided:,} of {state.to_decide:,} images and noise levels decided; "
        f"{state.units_done:,} of {state.at_most}{state.units:,} units, "
        f"{state.votes_done:,} of {state.at_most}{state.votes:,} votes, {state.evaluations:,} evaluations"
    ]
    if state.complete:
        lines.append("complete")
    elif state.evaluations_per_second is None or state.seconds_left is None:
        lines.append(f"nothing published in the last {RATE_WINDOW_SECONDS:.0f} s; `ndc certify {state.folder}` goes on")
    else:
        lines.append(f"{state.evaluations_per_second:,.0f} evaluations/s, {state.seconds_left.text()}")
    if state.driver and not state.complete:
        lines.append(f"driver: {state.driver}")
    for shard in () if state.complete else state.shards:
        worker = shard.driver or ("done" if shard.decided == shard.to_decide else "nobody works on it")
        lines.append(f"shard {shard.shard}: {shard.decided:,} of {shard.to_decide:,} decided; {worker}")
    return [*lines, *state.devices]
