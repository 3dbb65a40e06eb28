"""Paths and URIs: the one place where a file system is made, and where its errors become sentences.

A location is a folder or file on this machine, or on anything that fsspec reaches (s3://, gs://, ...).
"""

import errno
import logging
import os
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from upath import UPath

from pipeline.file_names import readable

# The checksums that newer clients add to uploads are unknown to most object stores but Amazon's.
os.environ.setdefault("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")

# Listings are not cached: another process may have added to them. Short timeouts, so that a lost store is noticed soon.
OPTIONS: dict[str, dict[str, Any]] = {
    "s3": {
        "use_listings_cache": False,
        "config_kwargs": {
            "connect_timeout": 5,
            "read_timeout": 60,
            "retries": {"max_attempts": 1, "mode": "standard"},  # s3fs tries again by itself
        },
    }
}
READ_AT_ONCE = 256
# A store that comes back within half a minute costs no work that is done already.
WAITS_SECONDS = (1, 2, 4, 8, 16)
WRONG_REGION = ("PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraint")
NO_ANSWER = ("EndpointConnection", "ConnectionClosed", "Connector", "Timeout", "ServerDisconnected", "ConnectionReset")


Where = str | os.PathLike[str] | UPath


class LocationError(ValueError):
    """A file, folder or object store that cannot be used: what, where, remedy."""


class NoSpaceError(LocationError):
    """There is no room for another file."""


def location(where: Where) -> UPath:
    """A path of this machine, or a URI.

    Raises:
        LocationError: a protocol that nothing here knows, a name that is not UTF-8, or an address that holds a password
            or a signature: it would be kept in run folders and shown in logs.
    """
    if isinstance(where, UPath):
        return where
    protocol, separator, place = str(where).partition("://")
    if separator and ("@" in place.partition("/")[0] or "?" in place):
        raise LocationError(
            f"an address by {protocol}:// holds credentials, or a query; leave them out: they come from the environment"
        )
    if str(where) != readable(str(where)):
        raise LocationError(f"{readable(str(where))} is no UTF-8, as run folders and reports are; rename it")
    if separator:  # aiohttp's tasks report a lost connection a second time; the request itself raises it
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    try:
        return UPath(str(where), **(OPTIONS.get(protocol, {}) if separator else {}))
    except (ValueError, ImportError) as error:
        raise LocationError(f"{where} cannot be opened: {error}") from error


def is_local(path: UPath | Path) -> bool:
    return isinstance(path, Path)


def absolute(path: UPath) -> str:
    """How another process on any node names the same place."""
    return str(path.absolute()) if is_local(path) else str(path)


@contextmanager
def reaching(path: UPath) -> Iterator[None]:
    """Turns what a file system raises into a LocationError; a missing file stays a FileNotFoundError."""
    try:
        yield
    except (LocationError, FileNotFoundError) as error:
        if isinstance(error, FileNotFoundError) and "NoSuchBucket" in _causes(error):
            raise LocationError(f"{path}: there is no such bucket; create it, or check its name") from error
        raise
    except Exception as error:
        if is_local(path) and not isinstance(error, OSError):
            raise
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpaceError(f"{path}: no space is left there; make room, then run the command again") from error
        raise LocationError(f"{path} {_reason(path, error)}") from error


def _causes(error: BaseException | None) -> str:
    causes = []
    while error is not None:
        causes.append(f"{type(error).__name__}: {error}")
        error = error.__cause__ or error.__context__
    return "; ".join(causes)


def _reason(path: UPath, error: Exception) -> str:
    causes = _causes(error)
    if is_local(path):
        return f"cannot be used: {getattr(error, 'strerror', None) or causes}"
    if any(code in causes for code in WRONG_REGION):
        return "is in another region than the one asked; set AWS_DEFAULT_REGION to the bucket's"
    if isinstance(error, PermissionError) or "NoCredentials" in causes:
        kind = next((code for code in ("InvalidAccessKeyId", "SignatureDoesNotMatch") if code in causes), "")
        refused = f"refused these credentials ({kind})" if kind else "refused access"
        return f"{refused}; check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY or your profile, and your rights there"
    if any(name in causes for name in NO_ANSWER):
        endpoint = os.environ.get("AWS_ENDPOINT_URL", "its endpoint")
        return f"does not answer at {endpoint}; check AWS_ENDPOINT_URL and the network, then run the command again"
    return f"cannot be used: {causes.splitlines()[0]}"


def read(path: UPath) -> bytes:
    """A file's content.

    Raises:
        FileNotFoundError: there is none.
        LocationError: it cannot be read.
    """
    with reaching(path):
        content: bytes = path.fs.cat_file(path.path)
        return content


def read_text(path: UPath) -> str:
    """The content of a text file that a user may have written: UTF-8, with a byte order mark or without.

    Raises:
        FileNotFoundError: there is none.
        LocationError: it cannot be read.
        UnicodeDecodeError: it is not UTF-8.
    """
    return read(path).decode("utf-8-sig")


def read_each(paths: Sequence[UPath]) -> Iterator[bytes]:
    """The contents of many files; from an object store, many at once."""
    for first in range(0, len(paths), READ_AT_ONCE):
        batch = paths[first : first + READ_AT_ONCE]
        if is_local(batch[0]):
            yield from (read(path) for path in batch)
        else:
            with reaching(batch[0]):
                fetched = batch[0].fs.cat([path.path for path in batch])
                contents = fetched if isinstance(fetched, dict) else {batch[0].path: fetched}
                yield from (contents[path.path] for path in batch)


def publish_patiently(path: UPath, content: bytes) -> None:
    """Publishes what took long to compute: tries for half a minute if an object store cannot be reached.

    Raises:
        LocationError: it cannot be written.
    """
    for seconds in () if is_local(path) else WAITS_SECONDS:
        try:
            return publish(path, content)
        except LocationError:
            time.sleep(seconds)
    publish(path, content)


def publish(path: UPath, content: bytes) -> None:
    """Publishes a file whole or not at all: one put to an object store; here also across a power cut.

    Raises:
        LocationError: it cannot be written.
    """
    with reaching(path):
        if not is_local(path):
            path.fs.pipe_file(path.path, content)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
        try:
            with partial.open("wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            partial.replace(path)
        except OSError:
            partial.unlink(missing_ok=True)
            raise


def exists(path: UPath) -> bool:
    with reaching(path):
        return bool(path.fs.isfile(path.path))


def remove(path: UPath) -> None:
    """Removes a file, if it is there."""
    with reaching(path):
        try:
            path.fs.rm_file(path.path)
        except (FileNotFoundError, KeyError):  # the latter from fsspec's memory
            return


def move(path: UPath, target: UPath) -> None:
    """Moves a file; on an object store it is copied and then removed."""
    with reaching(path):
        if is_local(path):
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
        else:
            path.fs.cp_file(path.path, target.path)
            path.fs.rm_file(path.path)


def files_of(folder: UPath) -> list[UPath]:
    """The files in a folder, sorted; empty if there is no such folder."""
    with reaching(folder):
        try:
            items = folder.fs.ls(folder.path, detail=True)
        except FileNotFoundError:
            return []
    return sorted(folder / Path(item["name"]).name for item in items if item["type"] == "file")


def files_of_shards(folder: UPath) -> list[UPath]:
    """The files in a folder's subfolders, sorted; in an object store, one listing per subfolder, many at once."""
    if is_local(folder):
        return sorted(path for path in folder.glob("*/*") if path.is_file())
    from concurrent.futures import ThreadPoolExecutor

    with reaching(folder):
        try:
            shards = [item["name"] for item in folder.fs.ls(folder.path, detail=True) if item["type"] == "directory"]
        except FileNotFoundError:
            return []
        with ThreadPoolExecutor(max_workers=16) as pool:
            listings = pool.map(lambda shard: files_of(folder / Path(shard).name), shards)
            return sorted(chain.from_iterable(listings))


def check_can_be_made(folder: UPath) -> None:
    """As `check_writable`, but makes no folder: on this machine the nearest one that exists is tried.

    Raises:
        LocationError: nothing can be written there.
    """
    with reaching(folder):
        while is_local(folder) and not folder.exists() and folder != folder.parent:
            folder = folder.parent
    check_writable(folder)


def check_writable(folder: UPath) -> None:
    """Writes and removes a file, so that credentials, bucket and endpoint are known to be right before work starts.

    Raises:
        LocationError: nothing can be written there.
    """
    probe = folder / f"probe-{uuid.uuid4().hex}"
    publish(probe, b"")
    remove(probe)


def cache_folder(what: str) -> Path:
    """A folder of this user's cache on this machine, made if need be.

    Raises:
        LocationError: there is no home, or it cannot be written.
    """
    try:
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(cache) / "ndc" / what
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    except (OSError, RuntimeError) as error:
        raise LocationError(
            f"this user's cache cannot be written ({error}); set XDG_CACHE_HOME to a folder of yours on this machine"
        ) from error
