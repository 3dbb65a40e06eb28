"""What a cluster does to a run: actors and nodes that go, hang and come, units that bring their actor down."""

import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.declaration.config import ComputeConfig
from pipeline.driver import certify as run_module
from pipeline.driver.certify import UnitsFailedError, certify_run
from pipeline.driver.prepare import prepare
from pipeline.driver.status import status_of
from pipeline.locations import NoSpaceError, location, publish
from pipeline.workers.ray_cluster import connect_ray
from pipeline.workers.ray_pool import map_over_actors
from tests.end_to_end.test_run import evidence_of
from tests.pipeline.workers.test_vote_actor import batch_of, declared, receipts_of, settings_of
from tests.support.drivers import Driver, Nodes, begun, published
from tests.support.nodes import local_ray
from tests.support.ray_actors import LateSecond, Poisoned
from tests.support.small_runs import computed, small_config

LONGER = ["dataset.limit=12", "votes.estimation=400", "votes.per_unit=100", "compute.actors=2"]


@pytest.fixture(scope="module")
def ray_of_cpus() -> Iterator[None]:
    with local_ray(cpus=3):
        yield


@pytest.mark.usefixtures("ray_of_cpus")
def test_a_unit_that_kills_its_actor_and_one_that_hangs_are_given_up_and_the_others_are_done() -> None:
    units = ["deadly", "hanging", *(f"unit {number}" for number in range(20))]
    said: list[str] = []
    pool = connect_ray(ComputeConfig(actors=2), say=said.append)
    rows = [{"unit": unit} for unit in units]
    receipts = list(map_over_actors(rows, Poisoned, None, pool=pool, stuck_seconds=2, say=said.append))
    assert sorted(receipt["unit"] for receipt in receipts) == sorted(units)
    failed = {receipt["unit"]: receipt["error"] for receipt in receipts if receipt["error"]}
    assert set(failed) == {"deadly", "hanging"}
    assert all("died or was replaced 3 times while at it" in error for error in failed.values())
    stuck = [line for line in said if "hanging" in line]
    assert len(stuck) == 3
    assert all("s at hanging: its actor is replaced" in line for line in stuck)


@pytest.mark.usefixtures("ray_of_cpus")
def test_an_actor_that_is_ready_first_leaves_work_to_the_others(tmp_path: Path) -> None:
    """Where there are few blocks, one that waits behind the one in work is one that another actor lacks."""
    pool = connect_ray(ComputeConfig(actors=2), say=print)
    rows = [{"unit": "a"}, {"unit": "b"}]
    receipts = list(map_over_actors(rows, LateSecond, str(tmp_path), pool=pool, stuck_seconds=600, say=print))
    assert len({receipt["process"] for receipt in receipts}) == 2


@pytest.mark.usefixtures("ray_of_cpus")
def test_gpus_that_are_nowhere_are_an_error_at_once_and_not_a_wait() -> None:
    with pytest.raises(ValueError, match=r"Ray sees no GPU here; set it to 0, or on a cluster .* as \[1, 64\]"):
        connect_ray(ComputeConfig(gpus_per_actor=1), say=print)


@pytest.mark.slow
def test_a_run_survives_the_loss_of_a_node_and_an_actor_and_loses_one_unit_of_each(
    tiny_model: Path, workplace: Path
) -> None:
    nodes, folder = Nodes(2), workplace / "run"
    try:
        driver = Driver(workplace, tiny_model, "run", LONGER, cluster=nodes)
        first = wait_for(driver, folder, units=10)
        nodes.replace()
        wait_for(driver, folder, units=len(published(folder)) + 5)
        os.kill(driver.actors()[0], 9)
        assert driver.process.wait(120) == 0, driver.log
        begins = begun(nodes, folder)
    finally:
        nodes.stop()
    final = published(folder)
    assert len(begins) == len(final) == 60
    assert begins.total() <= 60 + 2, "a node and an actor: one unit each may be begun again"
    assert {path: final[path] for path in first} == first, "published evidence was computed again"
    assert "on the Ray cluster whose dashboard is" in driver.log or "on a Ray cluster" in driver.log
    computed(small_config(tiny_model, *LONGER), workplace / "whole")
    assert evidence_of(folder) == evidence_of(workplace / "whole")


def wait_for(driver: Driver, folder: Path, *, units: int) -> dict[Path, int]:
    while driver.process.poll() is None and len(published(folder)) < units:
        time.sleep(0.05)
    assert driver.process.poll() is None, "the run ended too soon: " + driver.log
    return published(folder)


@pytest.mark.slow
def test_a_pool_grows_when_nodes_come(tiny_model: Path, tmp_path: Path) -> None:
    nodes = Nodes(1)
    try:
        settings = [*LONGER, "dataset.limit=100", "compute.actors=[1, 3]"]
        driver = Driver(tmp_path, tiny_model, "run", settings, cluster=nodes)
        wait_for(driver, tmp_path / "run", units=5)
        before = len(driver.actors())
        nodes.add()
        deadline = time.monotonic() + 60
        while len(driver.actors()) <= before and time.monotonic() < deadline:
            time.sleep(0.5)
        assert len(driver.actors()) > before, driver.log
        driver.process.terminate()
        assert driver.process.wait(30) == 130
    finally:
        nodes.stop()


def full_disk(*_) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_leaves_no_half_file_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(NoSpaceError, match="no space is left there; make room, then run the command again"):
        publish(location(tmp_path / "file"), b"content")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_stops_a_run_which_goes_on_when_there_is_room(
    tiny_model: Path, workplace_without_ray: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = declared(small_config(tiny_model), workplace_without_ray / "run")

    def on_a_disk_that_fills(run, units, **where):
        actor = run_module.VoteActor(settings_of(run, workplace_without_ray / "run"))
        for index, unit in enumerate(units):
            with monkeypatch.context() as patch:
                if index >= 3:
                    patch.setattr(os, "fsync", full_disk)
                (row,) = receipts_of(actor, batch_of(run, [unit]))
            yield run_module.Receipt(**row)

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "stream_receipts", on_a_disk_that_fills)
        with pytest.raises(UnitsFailedError, match=r"(?s)no space is left there.*since nothing more can be kept"):
            certify_run(run, say=print)
    status = status_of(location(workplace_without_ray / "run"))
    assert (status.units_done, status.units) == (3, 12), "it stopped at once, and kept what it had"


@pytest.mark.usefixtures("workplace_without_ray")
def test_a_run_that_asks_for_gpus_where_there_are_none_writes_nothing(tiny_model: Path) -> None:
    before = set(Path().iterdir())
    with pytest.raises(ValueError, match="Ray sees no GPU here"):
        certify_run(prepare(small_config(tiny_model, "compute.gpus_per_actor=1"), location("run")), say=print)
    assert set(Path().iterdir()) == before


@pytest.mark.usefixtures("workplace_without_ray")
def test_failed_units_alone_are_tried_again(tiny_model: Path) -> None:
    run = prepare(small_config(tiny_model, "dataset.limit=1"), location("run"))
    with pytest.MonkeyPatch.context() as patch:
        store = run_module.RunStore(run.folder)
        unit_id = next(iter(run.units))
        obstacle = store.evidence_path(unit_id).parent
        obstacle.parent.mkdir(parents=True)
        obstacle.write_text("a file where a folder should be")
        with pytest.raises(UnitsFailedError, match="`--retry-failed` for these alone"):
            certify_run(run, say=print)
        obstacle.unlink()
        sent: list[int] = []
        stream_all = run_module.stream_receipts

        def counting(run, units, **where):
            sent.append(len(units))
            return stream_all(run, units, **where)

        patch.setattr(run_module, "stream_receipts", counting)
        store.evidence_files()[0].unlink()
        said: list[str] = []
        with pytest.raises(ValueError, match=r"run `ndc certify run` to finish"):
            certify_run(run, say=said.append, retry_failed=True)
        assert sent == [1]
        assert said == ["trying 1 failed units again"]
        assert not list(store.failures())
