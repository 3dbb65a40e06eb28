"""Actors of tests, in a module that Ray's processes import at once: it needs no torch."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipeline.workers.watchdog import LOADING, UnitGivenUpError


class Poisoned:
    """An actor that one unit kills and another makes hang, each time."""

    def __init__(self, settings, heartbeat) -> None:
        self.heartbeat = heartbeat
        heartbeat.arrive()
        heartbeat.end(LOADING)

    def __call__(self, batch):
        for name in batch["unit"].tolist():
            try:
                self.heartbeat.begin(name)
                if name == "deadly":
                    os._exit(1)
                if name == "hanging":
                    time.sleep(3600)
                error = ""
            except UnitGivenUpError as given_up:
                error = str(given_up)
            self.heartbeat.end(name)
            yield {"unit": np.array([name]), "error": np.array([error])}


class Counting:
    """Says of each row how many came with it, in which call and task, and what its actor holds. Of the rows of a call
    the second waits until the driver has seen the first's receipt."""

    def __init__(self, settings: str, heartbeat) -> None:
        import ray

        self.seen, self.calls, self.heartbeat = Path(settings), 0, heartbeat
        self.gpus = len(ray.get_runtime_context().get_accelerator_ids()["GPU"])
        heartbeat.arrive()
        heartbeat.end(LOADING)

    def __call__(self, batch) -> Iterator[dict[str, np.ndarray]]:
        import ray

        self.calls += 1
        names = batch["unit"].tolist()
        for place, name in enumerate(names):
            deadline = time.monotonic() + 20
            while place == 1 and not (self.seen / names[0]).exists() and time.monotonic() < deadline:
                time.sleep(0.01)
            values = [name, len(names), ray.get_runtime_context().get_task_id(), self.gpus, time.monotonic() > deadline]
            yield dict(zip(("unit", "rows", "task", "gpus", "late"), map(_column, values), strict=True))


class LateSecond:
    """Of two actors the second is ready seconds after the first, which is at work until the second has work too."""

    def __init__(self, settings: str, heartbeat) -> None:
        self.at_work, self.second = Path(settings) / "second-is-at-work", False
        try:
            (Path(settings) / "first").touch(exist_ok=False)
        except FileExistsError:
            self.second = True
            time.sleep(3)
        heartbeat.arrive()
        heartbeat.end(LOADING)

    def __call__(self, batch) -> Iterator[dict[str, np.ndarray]]:
        for name in batch["unit"].tolist():
            if self.second:
                self.at_work.touch()
            deadline = time.monotonic() + 60
            while not self.at_work.exists() and time.monotonic() < deadline:
                time.sleep(0.1)
            yield {"unit": _column(name), "process": _column(os.getpid())}


def _column(value) -> np.ndarray:
    return np.array([value])
