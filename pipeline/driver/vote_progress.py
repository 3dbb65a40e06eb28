"""Progress of a run's votes: a live bar on a terminal, a line every few seconds elsewhere."""

import math
import sys
import time
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from pipeline.certificates.remaining import RemainingWork
from pipeline.progress import SECONDS_BETWEEN_LINES, SECONDS_BETWEEN_UPDATES, duration, show


class FinishedUnit(Protocol):
    """What the progress of a run is made of; `seconds` is 0 where the votes were there before."""

    @property
    def image_id(self) -> str: ...

    @property
    def sigma_pixel(self) -> float: ...

    @property
    def draws(self) -> int: ...

    @property
    def evaluations(self) -> int: ...

    @property
    def seconds(self) -> float: ...

    @property
    def decided(self) -> bool: ...

    @property
    def error(self) -> str: ...


class VoteProgress:
    """Images decided, evaluations per second and time left; rates count what this process saw happen.

    If no image is begun after `begin_until` (seconds since 1970), the time until then is shown, unless all ends sooner.
    """

    def __init__(self, work: RemainingWork, *, begin_until: float = math.inf) -> None:
        self.work, self.begin_until = work, begin_until
        self.evaluations = self.failed = 0
        self.started: float | None = None
        self.last_line = time.monotonic()
        self.bar: Progress | None = None
        if sys.stderr.isatty():
            self.bar = Progress(
                TextColumn("{task.completed:,.0f} of {task.total:,.0f} decided"),
                BarColumn(bar_width=12),
                TextColumn("{task.fields[rate]}"),
                TimeElapsedColumn(),
                console=Console(stderr=True),
            )
            self.task = self.bar.add_task("", total=work.cells, completed=work.decided, rate="starting")

    def __enter__(self) -> Self:
        if self.bar:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar:
            self.bar.update(self.task, completed=self.work.decided, rate=self.rate())
            self.bar.stop()

    def rate(self) -> str:
        seconds = max(1e-9, time.monotonic() - (self.started or 0.0))
        failed = f", {self.failed} units failed" if self.failed else ""
        if self.started is None or not self.evaluations:
            return f"starting{failed}"
        per_second = self.evaluations / seconds
        return f"{per_second:,.0f} evaluations/s, {self._left(per_second)}{failed}"

    def _left(self, per_second: float) -> str:
        left, of_budget = self.work.evaluations_left().times(1 / per_second), self.begin_until - time.time()
        if (left.known and left.expected <= of_budget) or math.isinf(of_budget):
            return left.text()
        return f"{duration(of_budget)} of the budget left" if of_budget > 0 else "finishing images that are begun"

    def add(self, receipt: FinishedUnit) -> None:
        """Takes note of a finished unit; the clock of the rates starts when the first one did."""
        if self.started is None:
            self.started = time.monotonic() - receipt.seconds
        if receipt.error:
            self.failed += 1
        elif receipt.seconds:  # otherwise it was there before, and is counted
            self.evaluations += receipt.evaluations
            self.work.add(
                (receipt.sigma_pixel, receipt.image_id),
                draws=receipt.draws,
                evaluations=receipt.evaluations,
                decided=receipt.decided,
            )
        if time.monotonic() - self.last_line < (SECONDS_BETWEEN_UPDATES if self.bar else SECONDS_BETWEEN_LINES):
            return
        self.last_line = time.monotonic()
        if self.bar:
            self.bar.update(self.task, completed=self.work.decided, rate=self.rate())
        else:
            show(f"{self.work.decided:,} of {self.work.cells:,} images and noise levels decided, {self.rate()}")
