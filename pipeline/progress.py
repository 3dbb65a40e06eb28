"""Progress of a run: a live bar on a terminal, a line every few seconds elsewhere."""

import sys
import time
from functools import partial
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from pipeline.side_channel import safely

SECONDS_BETWEEN_LINES = 5.0


def duration(seconds: float) -> str:
    """Seconds as 1:02:03 or 2:03."""
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def show(line: str) -> None:
    """On standard error, which may be gone, or full where it is redirected."""
    safely(partial(print, file=sys.stderr, flush=True))(line)


class CountProgress:
    """A line every few seconds: how many of how many, and the time left."""

    def __init__(self, what: str, total: int) -> None:
        self.what, self.total, self.done = what, total, 0
        self.started = self.last_line = time.monotonic()

    def add(self) -> None:
        self.done += 1
        now = time.monotonic()
        if now - self.last_line >= SECONDS_BETWEEN_LINES or self.done == self.total:
            self.last_line = now
            left = (self.total - self.done) * (now - self.started) / self.done
            show(f"{self.what} {self.done:,} of {self.total:,}, {duration(left)} left")


class ReadingProgress:
    """A line every few seconds: how many images were read so far."""

    def __init__(self) -> None:
        self.last_line = time.monotonic()

    def __call__(self, count: int) -> None:
        if time.monotonic() - self.last_line >= SECONDS_BETWEEN_LINES:
            self.last_line = time.monotonic()
            show(f"read {count:,} images")


class FinishedUnit(Protocol):
    """What the progress of a run is made of; `seconds` is 0 where the votes were there before."""

    @property
    def draws(self) -> int: ...

    @property
    def evaluations(self) -> int: ...

    @property
    def seconds(self) -> float: ...

    @property
    def error(self) -> str: ...


class VoteProgress:
    """Votes done, evaluations per second and time left; rates count what this process saw happen."""

    def __init__(self, *, votes: int, votes_done_before: int, at_most: str = "") -> None:
        self.votes = votes
        self.at_most = at_most
        self.votes_done = votes_done_before
        self.votes_here = 0
        self.evaluations = 0
        self.failed = 0
        self.started = self.last_line = time.monotonic()
        self.bar: Progress | None = None
        if sys.stderr.isatty():
            self.bar = Progress(
                TextColumn(f"votes {{task.completed:,.0f}} of {at_most}{{task.total:,.0f}}"),
                BarColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeElapsedColumn(),
                console=Console(stderr=True),
            )
            self.task = self.bar.add_task("", total=votes, completed=self.votes_done, rate="starting")

    def __enter__(self) -> Self:
        if self.bar:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar:
            self.bar.stop()

    def rate(self) -> str:
        seconds = max(1e-9, time.monotonic() - self.started)
        left = (self.votes - self.votes_done) * seconds / max(1, self.votes_here)
        failed = f", {self.failed} units failed" if self.failed else ""
        return f"{self.evaluations / seconds:,.0f} evaluations/s, {self.at_most}{duration(left)} left{failed}"

    def add(self, receipt: FinishedUnit) -> None:
        """Takes note of a finished unit; the clock of the rates starts when the first one did."""
        if not self.votes_here:
            self.started = time.monotonic() - receipt.seconds
        if receipt.error:
            self.failed += 1
        elif receipt.seconds:  # else it was there before, and is counted
            self.votes_done += receipt.draws
            self.votes_here += receipt.draws
            self.evaluations += receipt.evaluations
        if self.bar:
            self.bar.update(self.task, completed=self.votes_done, rate=self.rate())
        elif time.monotonic() - self.last_line >= SECONDS_BETWEEN_LINES:
            self.last_line = time.monotonic()
            show(f"votes {self.votes_done:,} of {self.at_most}{self.votes:,}, {self.rate()}")
