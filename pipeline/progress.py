"""Progress of long work: a bar on a terminal, a line every few seconds elsewhere."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from pipeline.side_channel import Listeners, safely

SECONDS_BETWEEN_LINES = 5.0
SECONDS_BETWEEN_UPDATES = 1.0  # of a bar


def duration(seconds: float) -> str:
    """Seconds as 1:02:03 or 2:03."""
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def moment(unix_seconds: float) -> str:
    """A point in time on this machine's clock, to the minute."""
    return datetime.fromtimestamp(unix_seconds).astimezone().strftime("%Y-%m-%d %H:%M %Z")


def show(line: str) -> None:
    """On standard error, which may be gone, or full where it is redirected."""
    safely(partial(print, file=sys.stderr, flush=True))(line)


class CountProgress:
    """How many of how many, and the time left: a bar on a terminal, a line every few seconds elsewhere.

    For work that ends sooner nothing is shown.
    """

    def __init__(self, what: str, total: int) -> None:
        self.what, self.total, self.done = what, total, 0
        self.started = self.last_line = time.monotonic()
        self.bar = Progress(
            TextColumn(what),
            BarColumn(bar_width=12),
            TextColumn("{task.completed:,.0f} of {task.total:,.0f}, {task.fields[left]} left"),
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
            transient=True,
        )
        self.task = self.bar.add_task("", total=total, left="")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *ended: object) -> None:
        self.bar.stop()

    def add(self, pieces: int) -> None:
        self.done += pieces
        now = time.monotonic()
        if now - self.last_line < (SECONDS_BETWEEN_LINES if self.bar.disable else SECONDS_BETWEEN_UPDATES):
            return
        self.last_line = now
        left = duration((self.total - self.done) * (now - self.started) / self.done)
        if self.bar.disable:
            show(f"{self.what} {self.done:,} of {self.total:,}, {left} left")
        else:
            self.bar.start()
            self.bar.update(self.task, completed=self.done, left=left)


@contextmanager
def counting(what: str, total: int) -> Iterator["Count"]:
    """What to call after each piece of long work, or after several. A terminal that fails does not end the work."""
    with Listeners[int]({"the progress display": lambda: CountProgress(what, total)}, say=show) as listeners:

        def count(pieces: int = 1) -> None:
            listeners.add(pieces)

        yield count


class Count(Protocol):
    def __call__(self, pieces: int = 1) -> None: ...


class ReadingProgress:
    """A line every few seconds: how many images were read so far."""

    def __init__(self) -> None:
        self.last_line = time.monotonic()

    def __call__(self, count: int) -> None:
        if time.monotonic() - self.last_line >= SECONDS_BETWEEN_LINES:
            self.last_line = time.monotonic()
            show(f"read {count:,} images")
