"""Several drivers on one run: their counts are those of a single driver, even if some are stopped or killed."""

import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pipeline.declaration.declaration import DeclarationChangedError
from pipeline.driver import certify as certify_module
from pipeline.driver import declare as declare_module
from pipeline.driver.declare import prepare_together
from pipeline.driver.status import status_lines, status_of
from pipeline.driver.verify import verify_run
from pipeline.locations import location
from pipeline.store import lease
from pipeline.store.lease import DECLARATION, LeaseError, held
from pipeline.store.run_store import RunStore
from tests.support.commands import environment
from tests.support.in_process import replace_ray, rows_through_an_actor
from tests.support.shards import work
from tests.support.small_runs import computed, declared, small_config, voted

SEQUENTIAL = ("certificate.method=sequential", "votes.estimation=60")
SHARDS = [f"{number}/4" for number in range(1, 5)]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    replace_ray(monkeypatch)


def votes_of(folder: Path) -> dict:
    store = RunStore(folder)
    return {item.unit: item.votes for item in store.all_evidence(fingerprint=store.manifest()["fingerprint"])}


@pytest.mark.parametrize("settings", [(), SEQUENTIAL], ids=["cohen", "sequential"])
def test_four_drivers_draw_what_one_does_and_the_last_reports(tiny_model: Path, tmp_path: Path, settings) -> None:
    settings = ("dataset.limit=6", *settings)
    whole = computed(small_config(tiny_model, *settings), tmp_path / "whole")
    folder = tmp_path / "shared"
    reports = [work(tiny_model, folder, shard, *settings) for shard in SHARDS]
    assert [report is not None for report in reports] == [False, False, False, True]
    assert votes_of(folder) == votes_of(whole.folder)
    assert (folder / "table.md").read_bytes() == (whole.folder / "table.md").read_bytes()
    verify_run(location(folder), redraw=2, say=lambda line: None)


def test_four_drivers_that_are_stopped_at_random_draw_what_one_does(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, rng = ("dataset.limit=6", *SEQUENTIAL), random.Random(0)
    whole = computed(small_config(tiny_model, *settings), tmp_path / "whole")

    def stopping(*arguments, **options):
        for row in rows_through_an_actor(*arguments, **options):
            yield row
            if rng.random() < 0.4:
                raise KeyboardInterrupt

    monkeypatch.setattr(certify_module, "map_over_actors", stopping)
    finished, stops, reports = set(), 0, []
    while len(finished) < 4:
        shard = rng.choice([shard for shard in SHARDS if shard not in finished])
        try:
            reports.append(work(tiny_model, tmp_path / "shared", shard, *settings))
            finished.add(shard)
        except KeyboardInterrupt:
            stops += 1
    assert stops >= 4
    assert votes_of(tmp_path / "shared") == votes_of(whole.folder)
    assert sum(report is not None for report in reports) == 1


def test_status_shows_all_shards(tiny_model: Path, tmp_path: Path) -> None:
    settings = ("dataset.limit=8",)
    work(tiny_model, tmp_path, "1/2", *settings)
    with held(location(tmp_path), force=False, say=print, name="2-of-2"):
        status = status_of(location(tmp_path))
        first, second = status.shards
        assert (first.shard, first.decided, first.driver) == ("1/2", first.to_decide, None)
        assert second.decided == 0
        assert first.to_decide + second.to_decide == 8
        lines = "\n".join(status_lines(status))
        assert f"shard 1/2: {first.decided} of {first.to_decide} decided; done" in lines
        assert "shard 2/2: 0 of " in lines
        assert "decided; `ndc certify --shard 2/2` on " in lines
    assert status_of(location(tmp_path)).shards == ()


def test_shards_of_different_numbers_are_refused_at_once(tiny_model: Path, tmp_path: Path) -> None:
    work(tiny_model, tmp_path, "1/4")
    with held(location(tmp_path), force=False, say=print, name="2-of-4"):
        for shard in ("1/2", "2/8"):
            with pytest.raises(LeaseError, match=r"in use by `ndc certify --shard 2/4`"):
                work(tiny_model, tmp_path, shard)
    work(tiny_model, tmp_path, "1/2")  # one after the other they are harmless
    assert work(tiny_model, tmp_path, "2/2")


def test_a_driver_waits_for_another_that_declares_and_takes_its_sizes(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(declare_module, "SECONDS_BETWEEN_LOOKS", 0.05)
    config, folder, said = small_config(tiny_model), location(tmp_path / "run"), list[str]()
    sized = config.model_copy(update={"votes": config.votes.model_copy(update={"per_unit": None})})
    declares, waits = threading.Event(), threading.Event()

    def declare() -> None:
        with held(folder, force=False, say=print, name=DECLARATION):
            declares.set()
            assert waits.wait(60)
            declared(config, tmp_path / "run")

    def say(line: str) -> None:
        said.append(line)
        waits.set()

    declaring = threading.Thread(target=declare)
    declaring.start()
    assert declares.wait(60)
    run = prepare_together(sized, folder, say=say)
    declaring.join()
    assert run.declaration.votes_per_unit == 20
    assert len(said) == 1
    assert "waiting for `ndc certify` on " in said[0]
    assert said[0].endswith("which declares the run")


def test_a_run_that_is_written_does_not_grow(tiny_model: Path, tmp_path: Path) -> None:
    work(tiny_model, tmp_path, "1/2", "dataset.limit=4")
    with (
        held(location(tmp_path), force=False, say=print, name="1-of-2"),
        pytest.raises(LeaseError, match=r"in use by `ndc certify --shard 1/2`"),
    ):
        work(tiny_model, tmp_path, "2/2", "dataset.limit=8")
    work(tiny_model, tmp_path, "2/2", "dataset.limit=8")  # now it does, and the other shard has new images
    with pytest.raises(DeclarationChangedError, match="are not among the 4 chosen now"):
        work(tiny_model, tmp_path, "1/2", "dataset.limit=4")
    assert work(tiny_model, tmp_path, "1/2", "dataset.limit=8")
    assert status_of(location(tmp_path)).complete


def test_a_half_written_file_of_another_shards_actor_is_left_alone(tiny_model: Path, tmp_path: Path) -> None:
    run = declared(small_config(tiny_model), tmp_path)
    voted(run, most_units=1)
    partial = next((tmp_path / "evidence").glob("*/*.parquet")).with_suffix(".parquet.x.partial")
    partial.write_bytes(b"half")
    work(tiny_model, tmp_path, "1/2")
    assert partial.exists()
    work(tiny_model, tmp_path, "1/1")
    assert not partial.exists()


def test_damaged_evidence_is_set_aside_by_the_driver_that_finds_it(tiny_model: Path, tmp_path: Path) -> None:
    for shard in ("1/2", "2/2"):
        work(tiny_model, tmp_path, shard)
    before = votes_of(tmp_path)
    next((tmp_path / "evidence").glob("*/*.parquet")).write_bytes(b"torn")
    for shard in ("1/2", "2/2"):
        work(tiny_model, tmp_path, shard)
    assert votes_of(tmp_path) == before
    assert len(list((tmp_path / "set-aside").iterdir())) == 1


@pytest.mark.slow
def test_four_drivers_killed_at_random_leave_the_counts_of_one(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They start at once on a folder that does not exist, so that one of them declares the run."""
    settings = ("dataset.limit=24", *SEQUENTIAL)
    whole = computed(small_config(tiny_model, *settings), tmp_path / "whole")
    folder, rng, kills = tmp_path / "shared", random.Random(1), 0

    def start(shard: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "tests.support.shards", str(tiny_model), str(folder), shard, *settings]
        log = (tmp_path / f"{shard.replace('/', '-')}.log").open("a")
        return subprocess.Popen(command, env=environment(), stdout=log, stderr=log)

    drivers = {shard: start(shard) for shard in SHARDS}
    deadline = time.monotonic() + 900
    while drivers and time.monotonic() < deadline:
        time.sleep(rng.uniform(0.5, 2.0))
        for shard, driver in list(drivers.items()):
            if driver.poll() == 0:
                del drivers[shard]
            elif driver.poll() is not None:
                drivers[shard] = start(shard)
        running = [shard for shard, driver in drivers.items() if driver.poll() is None]
        if running and kills < 12 and (folder / "evidence").exists():
            drivers[rng.choice(running)].kill()
            kills += 1
    logs = "\n".join(path.read_text() for path in tmp_path.glob("*.log"))
    assert not drivers, logs
    assert kills == 12, logs
    assert votes_of(folder) == votes_of(whole.folder), logs
    assert (folder / "table.md").read_bytes() == (whole.folder / "table.md").read_bytes()
    assert lease.names_in(location(folder)) == []
