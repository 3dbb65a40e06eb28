"""How a training goes, told to MLflow from a thread of its own: a slow or dead server neither slows nor ends it."""

import hashlib
import json
import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, Self

from upath import UPath

from ndc_core.training.fitting import TrainingProgress
from pipeline.report.mlflow_tracker import TrainingRun
from pipeline.side_channel import Listener, Listeners, Say, SideChannel

SECONDS_BETWEEN_POINTS = 15.0
LAST_SECONDS = 10.0  # for what is left to tell at the end


Tracking = Literal["mlflow", "none"]


def listeners(
    bar: Callable[[], Listener[TrainingProgress]],
    *,
    out: Path,
    declaration: Mapping[str, Any],
    tracking: Tracking,
    say: Say,
) -> Listeners[TrainingProgress]:
    """Who follows a training: its progress bar, and MLflow, if it is asked for, under the name of the folder `out`: one
    MLflow run for each declaration and folder."""
    makers: dict[str, Callable[[], Listener[TrainingProgress]]] = {"the progress bar": bar}
    if tracking == "mlflow":
        digest = hashlib.sha256(json.dumps(declaration, sort_keys=True).encode()).hexdigest()
        start = partial(TrainingRun, out.name, folder=UPath(out), fingerprint=digest, parameters=dict(declaration))
        makers["MLflow"] = partial(TrainingTracker, start, say=say)
    return Listeners(makers, say=say)


class Run(Protocol):
    def points(self, metrics: dict[str, float], *, step: int) -> None: ...

    def ended(self, status: str) -> None: ...


class TrainingTracker:
    """Logs a point now and then; a point's step is the training's."""

    def __init__(self, start: Callable[[], Run], *, say: Say) -> None:
        self.start, self.channel = start, SideChannel("MLflow", say)
        self.latest: TrainingProgress | None = None
        self.status = "FINISHED"
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._tell, daemon=True)

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind:
            self.status = "FAILED" if issubclass(kind, Exception) else "KILLED"
        self.over.set()
        self.thread.join(LAST_SECONDS)

    def add(self, progress: TrainingProgress) -> None:
        self.latest = progress

    def _tell(self) -> None:
        with self.channel:
            run, logged_step = self.start(), 0
            while not self.over.wait(SECONDS_BETWEEN_POINTS):
                logged_step = self._point(run, logged_step)
            self._point(run, logged_step)
            run.ended(self.status)

    def _point(self, run: Run, logged_step: int) -> int:
        progress = self.latest
        if progress is None or progress.step == logged_step:
            return logged_step
        run.points(metrics_of(progress), step=progress.step)
        return progress.step


def metrics_of(progress: TrainingProgress) -> dict[str, Any]:
    return {
        "training/loss": progress.loss,
        "training/images_per_s": progress.images_per_second,
        "training/seconds": progress.seconds,
    }
