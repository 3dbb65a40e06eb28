"""Logs as JSON lines, each with time, event, run and host; about a unit also with its id, image and noise level.

A driver's are in the run's folder, logs/<start>-<host>-<process>-<number>.jsonl; an actor's go to its standard error,
which Ray keeps among its logs.
"""

import json
import os
import socket
import sys
import time
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

from upath import UPath

from pipeline.locations import is_local, publish
from pipeline.side_channel import Say, SideChannel

LINES_A_FILE = 10_000
SECONDS_BETWEEN_WRITES = {True: 5.0, False: 60.0}  # here, and to an object store, where a file is written whole


def line(event: str, run: str, **fields: Any) -> str:
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    return json.dumps({"time": now, "event": event, "run": run, "host": socket.gethostname(), **fields})


def log_from_actor(event: str, run: str, **fields: Any) -> None:
    with SideChannel("an actor's log", lambda said: None):  # the place to report it is the one that fails
        print(line(event, run, process=os.getpid(), **fields), file=sys.stderr, flush=True)


class EventLog:
    """Lines of one driver.

    A log never stops a run: what cannot be written is tried again with the next lines.
    """

    def __init__(self, folder: UPath, *, say: Say) -> None:
        self.folder, self.channel = folder, SideChannel("the run's log", say)
        started = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")  # a process may begin two within a second
        self.name = f"{started}-{socket.gethostname()}-{os.getpid()}"
        self.lines: list[str] = []
        self.files = 0
        self.written, self.written_at = 0, time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.add("end")
        else:
            self.add("end", error=f"{type(error).__name__}: {error}")
        self.write()

    def add(self, event: str, **fields: Any) -> None:
        with self.channel:
            self.lines.append(line(event, str(self.folder), **fields))
            full = len(self.lines) >= LINES_A_FILE
            if full or time.monotonic() - self.written_at > SECONDS_BETWEEN_WRITES[is_local(self.folder)]:
                self.write()
            if full and self.written == len(self.lines):
                self.lines, self.files, self.written = [], self.files + 1, 0

    def write(self) -> None:
        self.written_at = time.monotonic()
        with self.channel:
            path = self.folder / "logs" / f"{self.name}-{self.files:03}.jsonl"
            publish(path, "".join(f"{line}\n" for line in self.lines).encode())
            self.written = len(self.lines)
