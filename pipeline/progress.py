"""Progress of long work, a line every few seconds."""

import sys
import time
from datetime import datetime
from functools import partial

from pipeline.side_channel import safely

SECONDS_BETWEEN_LINES = 5.0


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
