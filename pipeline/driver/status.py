"""How far a run is, read from its folder alone."""

import time
from dataclasses import asdict, dataclass
from typing import Any

from upath import UPath

from pipeline.certificates.stopping import cells_of
from pipeline.progress import duration
from pipeline.store.devices import device_lines
from pipeline.store.lease import LEASE_FILE, described, holder_of
from pipeline.store.run_store import RunStore

RATE_WINDOW_SECONDS = 120.0


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
    seconds_left: float | None
    failures: list[dict[str, Any]]
    driver: str | None  # who works on it, as far as is known
    at_most: str  # where certificates may stop early: "at most "
    devices: tuple[str, ...]  # what computed it, a line each, where that needs to be said

    @property
    def complete(self) -> bool:
        return self.decided == self.to_decide

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def status_of(folder: UPath, *, now_unix: float | None = None) -> RunStatus:
    """Counts a run's evidence.

    Raises:
        ValueError: the folder holds no run, or a file among its evidence is none.
    """
    store = RunStore(folder)
    manifest = store.manifest()
    evidence = store.all_evidence(fingerprint=manifest["fingerprint"])
    images, classes = store.images(), manifest["plan"]["classes"]
    cells = cells_of(store.declaration(), images, evidence, num_classes=classes).values()
    decided = sum(cell.state().decided for cell in cells)
    now = time.time() if now_unix is None else now_unix
    votes, rate, left = manifest["plan"]["votes"], None, None
    recent = evidence.since(now - RATE_WINDOW_SECONDS)
    if recent and decided < len(cells):
        draws, evaluations, began = recent
        window = max(1e-3, now - began)
        rate, left = evaluations / window, (votes - evidence.draws) * window / draws
    return RunStatus(
        folder=str(folder),
        units=manifest["plan"]["units"],
        units_done=len(evidence),
        votes=votes,
        votes_done=evidence.draws,
        decided=decided,
        to_decide=len(cells),
        evaluations=evidence.evaluations,
        evaluations_per_second=rate,
        seconds_left=left,
        failures=list(store.failures()),
        driver=driver_of(folder, now_unix=now),
        at_most="at most " if manifest["plan"]["stops_early"] else "",
        devices=tuple(device_lines(evidence.devices)),
    )


def driver_of(folder: UPath, *, now_unix: float) -> str | None:
    """The holder of the run's lease, and when it was heard of last."""
    holder = holder_of(folder / LEASE_FILE)
    if holder is None:
        return None
    return f"{described(holder)}, heard of {max(0.0, now_unix - float(holder['renewed_unix'])):,.0f} s ago"


def status_lines(found: RunStatus) -> list[str]:
    lines = [
        f"{found.folder}: {found.decided:,} of {found.to_decide:,} images and noise levels decided; "
        f"{found.units_done:,} of {found.at_most}{found.units:,} units, "
        f"{found.votes_done:,} of {found.at_most}{found.votes:,} votes, {found.evaluations:,} evaluations"
    ]
    if found.complete:
        lines.append("complete")
    elif found.evaluations_per_second is None or found.seconds_left is None:
        lines.append(f"nothing published in the last {RATE_WINDOW_SECONDS:.0f} s; `ndc certify {found.folder}` goes on")
    else:
        lines.append(
            f"{found.evaluations_per_second:,.0f} evaluations/s, {found.at_most}{duration(found.seconds_left)} left"
        )
    if found.driver and not found.complete:
        lines.append(f"driver: {found.driver}")
    return [*lines, *found.devices]
