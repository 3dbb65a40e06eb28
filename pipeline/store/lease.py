"""Who works on a run: one driver, or one for each shard, wherever its folder is and on any machine.

On one machine the system's lock says whether another driver lives, and is released however it dies. Between machines a
lease does: a file that its holder renews, and that others watch for a while, by their own clocks alone. It is a
courtesy, not what soundness rests on: evidence of two drivers of one run is the same, and is counted once.
"""

import hashlib
import json
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout
from upath import UPath

from pipeline.declaration.shards import WHOLE, Shard
from pipeline.locations import (
    LocationError,
    absolute,
    cache_folder,
    check_writable,
    files_of,
    is_local,
    publish,
    read,
    remove,
)
from pipeline.side_channel import Say, SideChannel

LEASE_FILE = "lease.json"  # of the driver of a whole run; those of others are in LEASES
LEASES = "leases"
DECLARATION, REPORT = "declaration", "report"  # what one of several drivers does for all
SHARD = re.compile(r"(\d+)-of-(\d+)")
RENEWED_EVERY_SECONDS = 10.0
DEAD_AFTER_SECONDS = 40.0  # without being renewed
SETTLING_SECONDS = 1.0  # of two that take a lease at once, the one that wrote last has it

Holder = dict[str, str]


class LeaseError(ValueError):
    """Another driver works on the run, or has taken it over."""


def name_of(shard: Shard) -> str:
    """The name of a shard's lease; that of the whole run is empty."""
    return "" if shard.is_whole else f"{shard.number}-of-{shard.total}"


def shard_named(name: str) -> Shard | None:
    """The shard whose lease has this name."""
    numbers = SHARD.fullmatch(name)
    return Shard(int(numbers[1]), int(numbers[2])) if numbers else None


def lease_path(folder: UPath, name: str = "") -> UPath:
    return folder / LEASES / f"{name}.json" if name else folder / LEASE_FILE


def lock_file(folder: UPath, name: str = "") -> Path:
    """The file that drivers on one machine lock: in the run's folder, or in this user's cache for an object store."""
    if is_local(folder):
        return Path(str(folder)) / (f"{LEASES}/{name}.lock" if name else "run.lock")
    digest = hashlib.sha256(absolute(folder).encode()).hexdigest()
    return cache_folder("locks") / f"{digest}{name and f'-{name}'}.lock"


def names_in(folder: UPath) -> list[str]:
    """The leases that lie in a run's folder, living or not."""
    names = [""] if holder_of(lease_path(folder)) else []
    return names + [path.stem for path in files_of(folder / LEASES) if path.suffix == ".json"]


def may_not_be_beside(name: str, other: str) -> bool:
    """Whether a driver that wants the lease `name` is refused as long as `other` is held.

    Shards of the same division may run side by side; those of different divisions would have images in common. Nobody
    may work while the declaration changes, but a shard may begin while a driver checks whether anything is to declare.
    """
    if name == other or REPORT in (name, other):
        return False
    own, others = shard_named(name), shard_named(other)
    if own and others:
        return own.total != others.total
    return not (own and other == DECLARATION)


class Lease:
    """A held lease; `check` says whether it still is."""

    def __init__(self, folder: UPath, name: str) -> None:
        self.folder, self.name, self.path = folder, name, lease_path(folder, name)
        self.token, self.taken_by = uuid.uuid4().hex, ""

    def content(self) -> bytes:
        holder = {"token": self.token, "host": socket.gethostname(), "pid": os.getpid(), "renewed_unix": time.time()}
        return json.dumps({**holder, "name": self.name}).encode()

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
                f"{self.folder} was taken over by {self.taken_by}; what this driver published is kept, and used"
            )

    def end(self, names: Iterable[str]) -> None:
        """Removes those of these leases that this driver holds."""
        for path in (lease_path(self.folder, name) for name in names):
            with suppress(LocationError):
                if (holder_of(path) or {}).get("token") == self.token:
                    remove(path)


def holder_of(path: UPath) -> Holder | None:
    """What the lease says of its holder; None if there is none, or a torn file."""
    try:
        holder = json.loads(read(path))
        needed = {key: str(holder[key]) for key in ("token", "host", "pid", "renewed_unix")}
        return needed | {"name": str(holder.get("name", ""))}
    except (FileNotFoundError, KeyError, TypeError):
        return None
    except LocationError:
        raise
    except ValueError:
        return None


def described(holder: Holder) -> str:
    shard = shard_named(holder["name"])
    does = {DECLARATION: ", which declares the run", REPORT: ", which makes the report"}.get(holder["name"], "")
    return f"`ndc certify{shard.option if shard else ''}` on {holder['host']} (process {holder['pid']}){does}"


@contextmanager
def held(folder: UPath, *, force: bool, say: Say, name: str = name_of(WHOLE)) -> Iterator[Lease]:
    """Holds a run, or what a lease of another name is for, for this driver.

    Waits for leases that are no longer renewed; `force` takes them from their holders.

    Raises:
        LeaseError: another driver is at work.
        LocationError: the folder cannot be read or written.
    """
    check_writable(folder)
    path = lock_file(folder, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock, lease = FileLock(str(path)), Lease(folder, name)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        if not force:
            holder = holder_of(lease.path)
            raise LeaseError(_in_use(folder, described(holder) if holder else "another `ndc certify`")) from error
    ended, renewing = threading.Event(), SideChannel("the renewal of the run's lease", say)

    def renew() -> None:
        while not ended.wait(RENEWED_EVERY_SECONDS):
            with renewing:  # tried again the next time: a store may be unreachable for a while
                lease.renew()

    renewal, taken = threading.Thread(target=renew, daemon=True), [name]
    try:
        if not force:
            _refuse_living(folder, [name], say, own_lock=name)
        publish(lease.path, lease.content())  # before others are looked for: of two at once, one sees the other
        if not is_local(folder):
            time.sleep(SETTLING_SECONDS)
            if force:
                publish(lease.path, lease.content())  # its last holder may have renewed it at the same moment
            lease.renew()
            lease.check()
        renewal.start()
        rivals = [other for other in names_in(folder) if may_not_be_beside(name, other)]
        if not force:
            _refuse_living(folder, rivals, say)
        for other in rivals:  # whose holders are dead, or learn from it that they have lost the run
            publish(lease_path(folder, other), lease.content())
            taken.append(other)
        yield lease
    finally:
        ended.set()
        if renewal.is_alive():
            renewal.join()
        with SideChannel("letting go of the run", say):
            lease.end(taken)
            lock.release()


def _in_use(folder: UPath, by: str) -> str:
    return f"{folder} is in use by {by}; wait for it, choose another --run, or take the run over with --force"


def _refuse_living(folder: UPath, names: Sequence[str], say: Say, *, own_lock: str | None = None) -> None:
    """Returns once nobody holds these leases: a holder on this machine lives as long as it has its lock, one on another
    machine as long as it renews its lease.

    Raises:
        LeaseError: somebody does.
    """
    elsewhere: dict[str, Holder] = {}
    for name in names:
        holder = holder_of(lease_path(folder, name))
        if holder is None:
            continue
        if holder["host"] != socket.gethostname():
            elsewhere[name] = holder
        elif name != own_lock and _is_locked(lock_file(folder, name)):
            raise LeaseError(_in_use(folder, described(holder)))
    if not elsewhere:
        return
    others = ", ".join(described(holder) for holder in elsewhere.values())
    say(f"waiting {DEAD_AFTER_SECONDS:.0f} s to see whether {others} still works on {folder}")
    waited_until = time.monotonic() + DEAD_AFTER_SECONDS
    while elsewhere and time.monotonic() < waited_until:
        time.sleep(min(RENEWED_EVERY_SECONDS, DEAD_AFTER_SECONDS) / 2)
        for name, first in list(elsewhere.items()):
            now = holder_of(lease_path(folder, name))
            if now is None:
                del elsewhere[name]
            elif now != first:
                raise LeaseError(_in_use(folder, described(now)))


def _is_locked(path: Path) -> bool:
    lock = FileLock(str(path))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False
