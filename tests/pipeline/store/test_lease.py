"""One driver a run: on one machine by the system's lock, between machines by a lease that is renewed."""

import json
import multiprocessing
import threading
import time
from pathlib import Path

import pytest

from pipeline.locations import LocationError, exists, location, publish, read
from pipeline.store import lease
from pipeline.store.lease import (
    DECLARATION,
    LEASE_FILE,
    LeaseError,
    held,
    holder_of,
    lease_path,
    lock_file,
    names_in,
)

ELSEWHERE = {"token": "t", "host": "another-host", "pid": 7, "renewed_unix": 0.0}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, seconds in (("RENEWED_EVERY_SECONDS", 0.05), ("DEAD_AFTER_SECONDS", 0.6), ("SETTLING_SECONDS", 0.1)):
        monkeypatch.setattr(lease, name, seconds)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path):
    where = tmp_path / "run" if request.param == "local" else f"{request.getfixturevalue('s3')}/run"
    return location(where)


def hold(folder: str, has_it, release) -> None:
    with held(location(folder), force=False, say=print):
        has_it.set()
        release.wait(30)


def test_a_second_driver_on_this_machine_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    has_it, release = context.Event(), context.Event()
    folder = tmp_path / "run"
    other = context.Process(target=hold, args=(str(folder), has_it, release))
    other.start()
    assert has_it.wait(60)
    expected = rf"in use by `ndc certify` on .* \(process {other.pid}\); wait for it, .* with --force"
    with pytest.raises(LeaseError, match=expected), held(location(folder), force=False, say=print):
        pass
    other.kill()  # the lock goes with the process, however it ends
    other.join()
    said: list[str] = []
    with held(location(folder), force=False, say=said.append):
        assert holder_of(location(folder) / LEASE_FILE)["token"]
    assert said == [], "a dead driver of this machine is not waited for"


def test_a_driver_on_another_machine_is_refused_as_long_as_it_renews(folder) -> None:
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(0.05):
            publish(folder / LEASE_FILE, json.dumps({**ELSEWHERE, "renewed_unix": time.time()}).encode())

    publish(folder / LEASE_FILE, json.dumps(ELSEWHERE).encode())
    thread = threading.Thread(target=renew)
    thread.start()
    try:
        with pytest.raises(LeaseError, match=r"in use by .* on another-host"), held(folder, force=False, say=print):
            pass
    finally:
        ended.set()
        thread.join()


def test_a_lease_that_nobody_renews_is_taken_after_a_wait(folder) -> None:
    publish(folder / LEASE_FILE, json.dumps(ELSEWHERE).encode())
    said: list[str] = []
    with held(folder, force=False, say=said.append):
        assert json.loads(read(folder / LEASE_FILE))["host"] != "another-host"
    assert "whether `ndc certify` on another-host (process 7) still works" in said[0]
    assert holder_of(folder / LEASE_FILE) is None, "a driver that ends takes its lease with it"


def test_who_is_taken_over_by_force_learns_of_it(folder) -> None:
    with held(folder, force=False, say=print) as first:
        first.check()
        with held(folder, force=True, say=print) as second:
            time.sleep(0.5)
            second.check()
            with pytest.raises(LeaseError, match="was taken over by"):
                first.check()


def renewed_elsewhere(folder, name: str, *, clock: float = 0.0) -> threading.Event:
    """Another machine's driver, whose clock differs by so many seconds, renews its lease until the event is set."""
    ended = threading.Event()
    path = lease_path(folder, name)

    def renew() -> None:
        while True:
            holder = {**ELSEWHERE, "name": name, "renewed_unix": time.time() + clock}
            publish(path, json.dumps(holder).encode())
            if ended.wait(0.05):
                return

    threading.Thread(target=renew, daemon=True).start()
    while not exists(path):
        time.sleep(0.01)
    return ended


def test_shards_of_as_many_are_held_beside_each_other_and_by_one_driver_each(folder) -> None:
    with (
        held(folder, force=False, say=print, name="1-of-2") as first,
        held(folder, force=False, say=print, name="2-of-2") as second,
    ):
        with (
            pytest.raises(LeaseError, match=r"in use by `ndc certify --shard 2/2` on "),
            held(folder, force=False, say=print, name="2-of-2"),
        ):
            pass
        first.check()
        second.check()
        assert sorted(names_in(folder)) == ["1-of-2", "2-of-2"]
    assert names_in(folder) == []


NOT_BESIDE = [("2-of-8", "2-of-4"), ("2-of-8", ""), ("", "2-of-8"), ("2-of-8", DECLARATION), ("", DECLARATION)]


@pytest.mark.parametrize(("at_work", "wanted"), [*NOT_BESIDE, (DECLARATION, "")])
def test_those_who_may_not_be_beside_each_other_are_not(tmp_path: Path, at_work: str, wanted: str) -> None:
    folder = location(tmp_path / "run")
    with held(folder, force=False, say=print, name=at_work):
        with (
            pytest.raises(LeaseError, match=r"is in use by `ndc certify"),
            held(folder, force=False, say=print, name=wanted),
        ):
            pass
        assert names_in(folder) == [at_work], "who is refused leaves nothing"
    with held(folder, force=False, say=print, name=wanted):
        assert names_in(folder) == [wanted]


@pytest.mark.parametrize("clock", [-60.0, 0.0, 60.0])
@pytest.mark.parametrize("wanted", ["2-of-8", "2-of-4", ""])
def test_a_task_that_is_requeued_while_its_old_driver_lives_is_refused_whatever_the_clocks_say(
    tmp_path: Path, wanted: str, clock: float
) -> None:
    folder = location(tmp_path / "run")
    ended = renewed_elsewhere(folder, "2-of-8", clock=clock)
    with (
        pytest.raises(LeaseError, match=r"in use by `ndc certify --shard 2/8` on another-host"),
        held(folder, force=False, say=print, name=wanted),
    ):
        pass
    ended.set()
    time.sleep(0.1)
    with held(folder, force=False, say=print, name=wanted):  # it does not renew its lease any more
        assert names_in(folder) == sorted({wanted, "2-of-8"})


def test_by_force_the_whole_run_is_taken_from_all_shards(tmp_path: Path) -> None:
    folder = location(tmp_path / "run")
    with (
        held(folder, force=False, say=print, name="1-of-2") as first,
        held(folder, force=False, say=print, name="2-of-2") as second,
    ):
        with held(folder, force=True, say=print) as whole:
            time.sleep(0.5)
            whole.check()
            for lease_of_shard in (first, second):
                with pytest.raises(LeaseError, match="was taken over by `ndc certify` on"):
                    lease_of_shard.check()
        assert names_in(folder) == []


def test_a_torn_lease_is_nobodys(folder) -> None:
    publish(folder / LEASE_FILE, b'{"token": ')
    with held(folder, force=False, say=print) as holder:
        holder.check()


def test_the_locks_of_two_runs_in_an_object_store_are_two(s3: str) -> None:
    assert lock_file(location(f"{s3}/a")) != lock_file(location(f"{s3}/b"))


def test_an_unwritable_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(LocationError, match="cannot be used: Not a directory"),
        held(location(tmp_path / "file" / "run"), force=False, say=print),
    ):
        pass
