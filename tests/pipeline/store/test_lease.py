"""One driver a run: on one machine by the system's lock, between machines by a lease that is renewed."""

import json
import multiprocessing
import threading
import time
from pathlib import Path

import pytest

from pipeline.locations import LocationError, location, publish, read
from pipeline.store import lease
from pipeline.store.lease import LEASE_FILE, LeaseError, held, holder_of, lock_file

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
