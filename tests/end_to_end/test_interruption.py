"""A run whose driver and actors are killed at random moments ends with the counts of an undisturbed one."""

import os
import random
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from pipeline.store.run_store import RunStore
from tests.end_to_end.test_run import evidence_of
from tests.support.small_runs import small_arguments

KILLS = 12
TAG = "NDC_TEST_TAG"
# 100 units of about 0.3 s: long enough to be hit, more than enough for all kills.
LONGER = ["dataset.limit=20", "votes.estimation=400", "votes.per_unit=100", "compute.actors=2"]
# The same votes and more units, whose number depends on the votes.
WAVES = [*LONGER, "certificate.method=sequential", "votes.per_unit=20", "dataset.limit=40"]


class Driver:
    """`ndc certify` in a process of its own; Ray's processes inherit its tag."""

    def __init__(self, workplace: Path, model: Path, folder: str, settings: list[str] = LONGER) -> None:
        self.tag = uuid.uuid4().hex
        command = [sys.executable, "-c", "from pipeline.cli import main; main()", "certify", "demo", "--run", folder]
        self.log = (workplace / f"{folder}.log").open("a")
        environment = {
            key: value for key, value in os.environ.items() if key not in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS")
        }
        self.process = subprocess.Popen(
            [*command, *small_arguments(model, *settings)],
            cwd=workplace,
            env=environment | {TAG: self.tag},
            stdout=self.log,
            stderr=self.log,
        )

    def actors(self) -> list[int]:
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                name = (folder / "cmdline").read_bytes()
                environment = (folder / "environ").read_bytes()
            except OSError:  # gone, or not ours to read
                continue
            if b"VoteActor" in name and f"{TAG}={self.tag}".encode() in environment:
                found.append(int(folder.name))
        return found


def published(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in RunStore(folder).evidence_files()}


def wait_for_more(driver: Driver, folder: Path, *, more: int) -> bool:
    """Waits until `more` further units are published; False if the driver ended by itself."""
    target = len(published(folder)) + more
    while driver.process.poll() is None and len(published(folder)) < target:
        time.sleep(0.02)
    return driver.process.poll() is None


def kill_something(driver: Driver, *, whom: str) -> bool:
    victims = driver.actors() if whom == "actor" else [driver.process.pid]
    if not victims:
        return False
    os.kill(random.choice(victims), signal.SIGKILL)
    if whom == "driver":
        driver.process.wait()
    return True


@pytest.mark.timeout(900)
@pytest.mark.parametrize("settings", [LONGER, pytest.param(WAVES, marks=pytest.mark.slow)], ids=["fixed", "waves"])
def test_killing_driver_and_actors_at_random_moments_changes_no_count(
    tiny_model: Path, tmp_path: Path, settings: list[str]
) -> None:
    random.seed(os.environ.get("NDC_TEST_SEED", "0"))
    undisturbed = Driver(tmp_path, tiny_model, "whole", settings)
    assert undisturbed.process.wait(300) == 0, (tmp_path / "whole.log").read_text()

    folder, killed, first_seen = tmp_path / "killed", {"driver": 0, "actor": 0}, {}
    driver = Driver(tmp_path, tiny_model, "killed", settings)
    while sum(killed.values()) < KILLS:
        alive = wait_for_more(driver, folder, more=random.randint(1, 6))
        first_seen = published(folder) | first_seen
        assert alive, "the run ended before all kills were made: make it longer"
        time.sleep(random.random() * 0.3)
        whom = "driver" if sum(killed.values()) % 2 else "actor"
        if kill_something(driver, whom=whom):
            killed[whom] += 1
            first_seen = published(folder) | first_seen
            if whom == "driver":
                driver = Driver(tmp_path, tiny_model, "killed", settings)
    assert driver.process.wait(300) == 0, (tmp_path / "killed.log").read_text()

    assert min(killed.values()) >= 5
    assert evidence_of(folder) == evidence_of(tmp_path / "whole")
    assert (folder / "certificates.tsv").is_file()
    final = published(folder)
    assert {path: final[path] for path in first_seen} == first_seen, "published evidence was computed again"


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_a_run_that_can_be_resumed_and_says_how(tiny_model: Path, tmp_path: Path, signum) -> None:
    driver = Driver(tmp_path, tiny_model, "stopped")
    assert wait_for_more(driver, tmp_path / "stopped", more=2)
    driver.process.send_signal(signum)
    assert driver.process.wait(60) == 130
    log = (tmp_path / "stopped.log").read_text()
    assert "Run `ndc certify stopped` to go on." in log
    assert "Traceback" not in log
