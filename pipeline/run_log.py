"""What a driver saw, as JSON lines in the run's folder: logs/<start>-<host>-<process>-<number>.jsonl."""

import json
import os
import socket
import time
from contextlib import suppress
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

from upath import UPath

from pipeline.locations import LocationError, is_local, publish

LINES_A_FILE = 10_000
SECONDS_BETWEEN_WRITES = {True: 5.0, False: 60.0}  # here, and to an object store, where a file is written whole


class RunLog:
    """Lines of one driver. Each has time, event, run and host; those about a unit have its id, image and what it cost.

    A log never stops a run: what cannot be written is tried again with the next lines.
    """

    def __init__(self, folder: UPath) -> None:
        self.folder = folder
        started = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
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
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = {"time": now, "event": event, "run": str(self.folder), "host": socket.gethostname(), **fields}
        self.lines.append(json.dumps(line))
        full = len(self.lines) >= LINES_A_FILE
        if full or time.monotonic() - self.written_at > SECONDS_BETWEEN_WRITES[is_local(self.folder)]:
            self.write()
        if full and self.written == len(self.lines):
            self.lines, self.files, self.written = [], self.files + 1, 0

    def write(self) -> None:
        self.written_at = time.monotonic()
        with suppress(LocationError):
            path = self.folder / "logs" / f"{self.name}-{self.files:03}.jsonl"
            publish(path, "".join(f"{line}\n" for line in self.lines).encode())
            self.written = len(self.lines)
