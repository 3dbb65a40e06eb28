"""Random faults on several Ray nodes of this machine: what they cost, and that they change no count.

    .venv/bin/python -m tests.bench.soak

A run of more than 500 units in a folder here, with 50 faults, and one in an imitation of S3 that fails twice. Each
must end with the counts of an undisturbed run, and with what was published before a fault untouched. Takes about 20
minutes on two cores; needs models/digits (`make demo` makes it).
"""

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from tests.end_to_end.test_run import evidence_of
from tests.support.drivers import Driver, Nodes, begun, published

WORKERS = 3
UNITS = 650
SETTINGS = [
    "dataset.limit=130",
    "votes.estimation=1600",
    "votes.per_unit=400",
    f"compute.actors={WORKERS}",
    "compute.stuck_seconds=10",
]
# How many of 50 faults are of a kind, and how many actors each can hit.
FAULTS = {
    "actor killed": (13, 1),
    "actor hangs": (4, 1),
    "node gone without grace": (9, 1),
    "node drained": (5, 1),
    "node added": (3, 0),
    "driver killed": (9, WORKERS),
    "head restarted": (3, WORKERS),
    "second driver refused": (2, 0),
    "second driver by force": (2, WORKERS),
}


@dataclass
class Soak:
    """One run under fault."""

    workplace: Path
    model: Path
    nodes: Nodes = field(default_factory=lambda: Nodes(WORKERS))

    def __post_init__(self) -> None:
        self.folder = self.workplace / "run"
        self.driver = self.start()
        self.recovery: defaultdict[str, list[float]] = defaultdict(list)
        self.first_seen: dict[Path, int] = {}

    def start(self, *flags: str) -> Driver:
        return Driver(self.workplace, self.model, str(self.folder), SETTINGS, *flags, cluster=self.nodes)

    def wait_for(self, more: int) -> bool:
        target = len(published(self.folder)) + more
        while len(published(self.folder)) < target:
            if self.driver.process.poll() is not None:
                return False
            time.sleep(0.05)
        return True

    def an_actor(self) -> int:
        while not (actors := self.driver.actors()):
            time.sleep(0.1)
        return random.choice(actors)

    def actor_killed(self) -> None:
        os.kill(self.an_actor(), signal.SIGKILL)

    def actor_hangs(self) -> None:
        os.kill(self.an_actor(), signal.SIGSTOP)

    def node_gone_without_grace(self) -> None:
        self.nodes.replace()

    def node_drained(self) -> None:
        self.nodes.drain(seconds=4)

    def node_added(self) -> None:
        self.nodes.workers.append(self.nodes.add())

    def driver_killed(self) -> None:
        self.driver.process.kill()
        self.driver.process.wait()
        self.driver = self.start()

    def head_restarted(self) -> None:
        self.nodes.restart()
        self.driver.process.kill()
        self.driver.process.wait()
        self.driver = self.start()

    def second_driver_refused(self) -> None:
        second = self.start()
        assert second.process.wait(120) == 1
        assert "is in use by `ndc certify` on" in second.log

    def second_driver_by_force(self) -> None:
        second = self.start("--force")
        assert self.driver.process.wait(120) == 1
        assert "was taken over by" in self.driver.log
        self.driver = second

    def suffer(self, kind: str) -> None:
        self.first_seen = published(self.folder) | self.first_seen
        before = len(published(self.folder))
        started = time.monotonic()
        getattr(self, kind.replace(" ", "_"))()
        while len(published(self.folder)) == before and self.driver.process.poll() is None:
            time.sleep(0.05)
        self.recovery[kind].append(time.monotonic() - started)


def faults(number: int) -> list[str]:
    kinds = [kind for kind, (times, _) in FAULTS.items() for _ in range(times)]
    random.shuffle(kinds)
    return kinds[:number]


def soak(soak: Soak, number: int, whole: dict) -> None:
    kinds = faults(number)
    for kind in kinds:
        if not soak.wait_for(random.randint(1, 6)):
            raise SystemExit(f"the run ended before all faults were made:\n{soak.driver.log}")
        time.sleep(random.random())
        soak.suffer(kind)
        print(f"{len(published(soak.folder)):>4} units, {kind}: {soak.recovery[kind][-1]:.1f} s", file=sys.stderr)
    assert soak.driver.process.wait(600) == 0, soak.driver.log
    final, begins = published(soak.folder), begun(soak.nodes, soak.folder)
    assert evidence_of(soak.folder) == whole, "counts differ from the undisturbed run's"
    assert {path: final[path] for path in soak.first_seen} == soak.first_seen, "published evidence was computed again"
    assert len(begins) == len(final) == UNITS
    again, most = begins.total() - len(begins), sum(FAULTS[kind][1] for kind in kinds)
    print("| fault | times | median s to the next unit | longest |\n|---|---|---|---|")
    for kind in FAULTS:
        if seconds := sorted(soak.recovery[kind]):
            print(f"| {kind} | {len(seconds)} | {seconds[len(seconds) // 2]:.1f} | {seconds[-1]:.1f} |")
    print(f"\n{len(kinds)} faults, {UNITS} units: {again} begun again, where one for each actor hit would be {most};")
    print("all counts are the undisturbed run's, and nothing published was computed again.")
    assert again <= most


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--faults", type=int, default=50)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--model", type=Path, default=Path("models/digits"))
    given = arguments.parse_args()
    random.seed(given.seed)
    workplace = Path(tempfile.mkdtemp())
    whole = Driver(workplace, given.model.resolve(), "whole", SETTINGS)
    assert whole.process.wait(1200) == 0, whole.log
    run = Soak(workplace, given.model.resolve())
    try:
        soak(run, given.faults, evidence_of(workplace / "whole"))
    finally:
        run.driver.process.kill()
        run.nodes.stop()
    shutil.rmtree(workplace)


if __name__ == "__main__":
    main()
