"""A run whose driver and actors are killed at random moments ends with the counts of an undisturbed one."""

import os
import random
import signal
import time
from pathlib import Path

import pytest

from tests.end_to_end.test_run import evidence_of
from tests.support.drivers import Driver, published
from tests.support.small_runs import computed, small_config

# 100 units of about 0.3 s: long enough to be hit, more than enough for 12 kills.
LONGER = ["dataset.limit=20", "votes.estimation=400", "votes.per_unit=100", "compute.actors=2"]
# The same votes and more units, whose number depends on the votes.
WAVES = [*LONGER, "certificate.method=sequential", "votes.per_unit=20", "dataset.limit=40"]
SHORT = [*LONGER, "dataset.limit=5", "votes.estimation=200", "votes.per_unit=50", "compute.actors=1"]


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
@pytest.mark.parametrize(
    ("settings", "kills"),
    [
        pytest.param(SHORT, 2, id="short"),
        pytest.param(LONGER, 12, id="fixed", marks=pytest.mark.slow),
        pytest.param(WAVES, 12, id="waves", marks=pytest.mark.slow),
    ],
)
def test_killing_driver_and_actors_at_random_moments_changes_no_count(
    tiny_model: Path, workplace: Path, settings: list[str], kills: int
) -> None:
    random.seed(os.environ.get("NDC_TEST_SEED", "0"))
    folder, killed, first_seen = workplace / "killed", {"driver": 0, "actor": 0}, {}
    driver = Driver(workplace, tiny_model, "killed", settings)
    while sum(killed.values()) < kills:
        alive = wait_for_more(driver, folder, more=random.randint(1, 6))
        first_seen = published(folder) | first_seen
        assert alive, "the run ended before all kills were made: " + driver.log
        time.sleep(random.random() * 0.3)
        whom = "driver" if sum(killed.values()) % 2 else "actor"
        if kill_something(driver, whom=whom):
            killed[whom] += 1
            first_seen = published(folder) | first_seen
            if whom == "driver":
                driver = Driver(workplace, tiny_model, "killed", settings)
    assert driver.process.wait(300) == 0, driver.log

    assert min(killed.values()) == kills // 2
    computed(small_config(tiny_model, *settings), workplace / "whole")
    assert evidence_of(folder) == evidence_of(workplace / "whole")
    assert (folder / "certificates.tsv").is_file()
    final = published(folder)
    assert {path: final[path] for path in first_seen} == first_seen, "published evidence was computed again"
