"""One driver a run, wherever the run's folder is and whichever machine the drivers are on.

On one machine the system's lock says whether another driver lives, and lets go however it dies. Between machines a
lease does: a file that its holder renews. It is a courtesy, not what soundness rests on: evidence of two drivers of one
run is the same, and is counted once.
"""

import hashlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout
from upath import UPath

from pipeline.locations import LocationError, absolute, cache_folder, check_writable, is_local, publish, read, remove
from pipeline.side_channel import Say, SideChannel

LEASE_FILE = "lease.json"
RENEWED_EVERY_SECONDS = 10.0
DEAD_AFTER_SECONDS = 40.0  # without being renewed
SETTLING_SECONDS = 1.0  # of two that take a lease at once, the one that wrote last has it


class LeaseError(ValueError):
    """Another driver works on the run, or has taken it over."""


class Lease:
    """A held lease; `check` says whether it still is."""

    def __init__(self, path: UPath) -> None:
        self.path, self.token, self.taken_by = path, uuid.uuid4().hex, ""

    def content(self) -> bytes:
        holder = {"token": self.token, "host": socket.gethostname(), "pid": os.getpid(), "renewed_unix": time.time()}
        return json.dumps(holder).encode()

    def renew(self) -> None:
        """Renews it, unless another driver has taken it."""
        other = holder_of(self.path)
        if other and other["token"] != self.token:
            self.taken_by = described(other)
        else:
            publish(self.path, self.content())

    def check(self) -> None:
        """Raises LeaseError if another driver has taken the run over."""
        if self.taken_by:
            raise LeaseError(
                f"{self.path.parent} was taken over by {self.taken_by}; what this driver published is kept, and used"
            )


def holder_of(path: UPath) -> dict[str, str] | None:
    """What the lease says of its holder; None if there is none, or a torn file."""
    try:
        holder = json.loads(read(path))
        return {key: str(holder[key]) for key in ("token", "host", "pid", "renewed_unix")}
    except (FileNotFoundError, KeyError, TypeError):
        return None
    except LocationError:
        raise
    except ValueError:
        return None


def described(holder: dict[str, str]) -> str:
    return f"`ndc certify` on {holder['host']} (process {holder['pid']})"


def lock_file(folder: UPath) -> Path:
    """Where drivers on one machine meet: in the run's folder, or for one in an object store in this user's cache."""
    if is_local(folder):
        return Path(str(folder)) / "run.lock"
    return cache_folder("locks") / f"{hashlib.sha256(absolute(folder).encode()).hexdigest()}.lock"


@contextmanager
def held(folder: UPath, *, force: bool, say: Say) -> Iterator[Lease]:
    """Holds a run for this driver. Waits for a lease that is no more renewed; `force` takes it from whomever has it.

    Raises:
        LeaseError: another driver is at work.
        LocationError: the folder cannot be read or written.
    """
    check_writable(folder)
    lock, lease = FileLock(str(lock_file(folder))), Lease(folder / LEASE_FILE)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        if not force:
            holder = holder_of(lease.path)
            raise LeaseError(_in_use(folder, described(holder) if holder else "another `ndc certify`")) from error
    ended, renewing = threading.Event(), SideChannel("the renewal of the run's lease", say)

    def renew() -> None:
        while not ended.wait(RENEWED_EVERY_SECONDS):
            with renewing:  # tried again the next time, as when a store is away for a while
                lease.renew()

    renewal = threading.Thread(target=renew, daemon=True)
    try:
        if not force:
            _wait_for_holder(folder, lease.path, say)
        publish(lease.path, lease.content())
        if not is_local(folder):
            time.sleep(SETTLING_SECONDS)
            lease.renew()
            lease.check()
        renewal.start()
        yield lease
    finally:
        ended.set()
        if renewal.is_alive():
            renewal.join()
        with SideChannel("letting go of the run", say):
            with suppress(LocationError):
                if (holder_of(lease.path) or {}).get("token") == lease.token:
                    remove(lease.path)
            lock.release()


def _in_use(folder: UPath, by: str) -> str:
    return f"{folder} is in use by {by}; wait for it, choose another --run, or take the run over with --force"


def _wait_for_holder(folder: UPath, path: UPath, say: Say) -> None:
    """Returns once nobody holds the lease: a holder on this machine died, having let go of the lock."""
    first = holder_of(path)
    if first is None or first["host"] == socket.gethostname():
        return
    say(f"waiting {DEAD_AFTER_SECONDS:.0f} s to see whether {described(first)} still works on {folder}")
    waited_until = time.monotonic() + DEAD_AFTER_SECONDS
    while time.monotonic() < waited_until:
        time.sleep(min(RENEWED_EVERY_SECONDS, DEAD_AFTER_SECONDS) / 2)
        now = holder_of(path)
        if now is None:
            return
        if now != first:
            raise LeaseError(_in_use(folder, described(now)))
