"""A training on disk before it is done: `step-N` folders, each a whole checkpoint with what it takes to go on.

OUT/step-00001200/denoiser.safetensors, denoiser.json    a checkpoint of the average, which `ndc certify` takes
OUT/step-00001200/training.pt                            weights, optimiser and random numbers
OUT/step-00001200/training.json                          what is trained, to be the same when it goes on
"""

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from ndc_core.training.fitting import DivergedError, Fitting

SECONDS_BETWEEN_CHECKPOINTS = 180.0
STATE_FILE, DECLARATION_FILE = "training.pt", "training.json"


class TrainingError(RuntimeError):
    """A training ended early; says which checkpoint is kept."""


class TrainingState:
    """The folder of one training. A checkpoint is written beside its predecessor, renamed when it is whole, and only
    then is the predecessor removed: at any moment the last good one is there."""

    def __init__(
        self,
        out: Path,
        declaration: dict[str, Any],
        *,
        write: Callable[[Path, Any, dict[str, object]], None],
        seconds_between: float = SECONDS_BETWEEN_CHECKPOINTS,
    ) -> None:
        self.out, self.declaration = out, json.loads(json.dumps(declaration))
        self.write, self.seconds_between = write, seconds_between
        self.last = time.monotonic()

    def latest(self) -> Path | None:
        """The newest whole checkpoint."""
        whole = [path for path in self.out.glob("step-*") if path.suffix != ".partial"]
        return max(whole, default=None)

    def load(self) -> dict[str, Any] | None:
        """What the training goes on from, if it was begun.

        Raises:
            ValueError: what was begun here is another training.
        """
        if (folder := self.latest()) is None:
            return None
        begun = json.loads((folder / DECLARATION_FILE).read_text())
        for key in [*self.declaration, *begun]:
            if begun.get(key) != self.declaration.get(key):
                raise ValueError(
                    f"{self.out} holds the beginning of another training: its {key} is {begun.get(key)}, not "
                    f"{self.declaration.get(key)}; give the same command to go on, or choose another folder"
                )
        state: dict[str, Any] = torch.load(folder / STATE_FILE, map_location="cpu", weights_only=True)
        return state

    def watch(self, fitting: Fitting[Any]) -> None:
        """Keeps a checkpoint when it is time to."""
        if time.monotonic() - self.last >= self.seconds_between:
            self.keep(fitting)
            self.last = time.monotonic()

    def keep(self, fitting: Fitting[Any]) -> None:
        """Writes a checkpoint and removes the one before.

        Raises:
            DivergedError: a weight is not finite; nothing is written.
            TrainingError: the disk is full, or cannot be written; names what is kept.
        """
        fitting.refuse_non_finite()
        whole = self.out / f"step-{fitting.step:08}"
        partial = whole.with_suffix(".partial")
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            self.write(partial, fitting.average, {"unfinished": f"after step {fitting.step:,}"})
            torch.save(fitting.state(), partial / STATE_FILE)
            (partial / DECLARATION_FILE).write_text(json.dumps(self.declaration, indent=1) + "\n")
            for path in partial.iterdir():
                with path.open("rb+") as stream:
                    os.fsync(stream.fileno())
            before = self.latest()
            shutil.rmtree(whole, ignore_errors=True)
            partial.rename(whole)
        except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors have errors of their own
            shutil.rmtree(partial, ignore_errors=True)
            raise TrainingError(f"no checkpoint can be written: {error}; {self.kept()}") from error
        if before and before != whole:
            shutil.rmtree(before)

    def kept(self) -> str:
        """What there is to go on from, in words."""
        if folder := self.latest():
            return f"the last good checkpoint is kept: {folder}"
        return "none was kept before"

    def ended(self, error: DivergedError) -> TrainingError:
        return TrainingError(f"{error}: training ends; {self.kept()}. A lower --learning-rate may help")

    def clear(self) -> None:
        """Removes what is only needed to go on."""
        for folder in self.out.glob("step-*"):
            shutil.rmtree(folder)
