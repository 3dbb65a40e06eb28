"""How far a run is and what it proved so far, told to MLflow while it votes, so that a run that is stopped or killed
shows there what it has."""

import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Protocol, Self

from pipeline.side_channel import Say, SideChannel
from pipeline.store.evidence import EvidenceTable
from pipeline.workers.rows import Receipt
from pipeline.workers.usage import ActorsUsage

SECONDS_BETWEEN_POINTS = 30.0
SECONDS_BETWEEN_RESULTS = 60.0
SHARE_FOR_RESULTS = 0.02  # of the driver's time, at most: a large run's evidence takes long to read
LAST_SECONDS = 1.0  # for what is left to tell when votes end or are stopped: Ray kills a job 3 s after it stops it


class Progress(Protocol):
    def progress(self, metrics: Mapping[str, float], *, step: int) -> None: ...


class TrackedVotes:
    """A point now and then, from a thread of its own: a slow server slows no votes, and a dead one fails alone.

    Counts include what there was before; a point's step is the number of votes. `results` gives what the complete
    images prove, from the evidence. The actors' use of their machines is told, too.
    """

    def __init__(
        self,
        tracker: Progress,
        before: EvidenceTable,
        *,
        results: Callable[[], Mapping[str, float]] = dict,
        say: Say,
    ) -> None:
        self.tracker, self.channel = tracker, SideChannel("progress in MLflow", say)
        self.results, self.results_due = results, time.monotonic() + SECONDS_BETWEEN_RESULTS
        self.units, self.votes, self.evaluations = len(before), before.draws, before.evaluations
        self.images, self.failed, self.usage = set(before.images), 0, ActorsUsage()
        self.ended, self.lock = threading.Event(), threading.Lock()
        self.thread = threading.Thread(target=self._tell, daemon=True)

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.ended.set()
        self.thread.join(LAST_SECONDS)

    def add(self, receipt: Receipt) -> None:
        with self.lock:
            if receipt.usage:
                self.usage.add(receipt.usage)
            if receipt.error:
                self.failed += 1
            elif receipt.seconds:  # otherwise it was there before, and is counted
                self.units += 1
                self.votes += receipt.draws
                self.evaluations += receipt.evaluations
                self.images.add(receipt.image_id)

    def counts(self) -> dict[str, int]:
        with self.lock:
            return {
                "progress/units": self.units,
                "progress/votes": self.votes,
                "progress/evaluations": self.evaluations,
                "progress/images_begun": len(self.images),
                "progress/units_failed": self.failed,
            }

    def _used(self) -> Mapping[str, float]:
        with self.lock:
            return self.usage.metrics(now_unix=time.time())

    def _tell(self) -> None:
        logged: dict[str, int] = {}
        last = False
        while not last:
            last = self.ended.wait(SECONDS_BETWEEN_POINTS)
            counts = self.counts()
            if counts != logged:
                with self.channel:
                    self.tracker.progress({**counts, **self._used()}, step=counts["progress/votes"])
                    logged = counts
                if not last:
                    self._tell_results(step=counts["progress/votes"])

    def _tell_results(self, *, step: int) -> None:
        began = time.monotonic()
        if began < self.results_due:
            return
        with self.channel:
            if results := self.results():
                self.tracker.progress(results, step=step)
        ended = time.monotonic()
        self.results_due = ended + max(SECONDS_BETWEEN_RESULTS, (ended - began) / SHARE_FOR_RESULTS)
