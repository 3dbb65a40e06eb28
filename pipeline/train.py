"""Training of the embedded denoiser on a named data set, with a progress bar."""

import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from ndc_core.checkpoints import WEIGHTS_FILE
from ndc_core.training import TrainingProgress, TrainingSpec, save_trained, train_denoiser
from pipeline.datasets import DATASETS, DatasetSpec, Listing, examples_of, source_of
from pipeline.memory import keep_freed_memory
from pipeline.progress import duration

SECONDS_BETWEEN_LINES = 5.0


def train_on(dataset: str, out: Path, *, steps: int | None, seed: int) -> None:
    """Trains on the training split (the held-out images are never seen) and writes a checkpoint.

    Raises:
        ValueError: an unknown data set, or a folder that holds a checkpoint already.
    """
    if dataset not in DATASETS:
        raise ValueError(f"dataset {dataset!r} is unknown; there are: {', '.join(DATASETS)}")
    if (out / WEIGHTS_FILE).exists():
        raise ValueError(f"{out} holds a checkpoint already, which runs may depend on; choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    data = DatasetSpec(dataset, split="train")
    examples = list(examples_of(data, source_of(data), channels=1, corrupt=[]))
    digest = Listing([example.record(index) for index, example in enumerate(examples)], examples[0].image.shape).digest
    spec = TrainingSpec(seed=seed)
    if steps is not None:
        spec = replace(spec, steps=steps)
    keep_freed_memory()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    labels = [example.label for example in examples]
    with TrainingBar(spec.steps) as bar:
        denoiser = train_denoiser(
            torch.from_numpy(np.stack([example.image for example in examples])),
            torch.tensor(labels),
            num_classes=max(labels) + 1,
            spec=spec,
            on_step=bar.show,
        )
    notes = {"dataset": dataset, "split": "train", "images": len(examples), "sha256": digest}
    save_trained(out, denoiser, spec=spec, notes=notes)


class TrainingBar:
    """Loss and time left: a bar on a terminal, a line every few seconds elsewhere."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.last_line = 0.0
        columns = TextColumn("training"), BarColumn(), TextColumn("{task.fields[text]}")
        self.bar = Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty())
        self.task = self.bar.add_task("", total=1.0, text="")

    def __enter__(self) -> "TrainingBar":
        self.bar.start()
        return self

    def __exit__(self, *ended: object) -> None:
        self.bar.stop()

    def show(self, progress: TrainingProgress) -> None:
        left = progress.seconds * (1 / progress.share_done - 1)
        text = f"step {progress.step:,} of {self.steps:,}, loss {progress.loss:.3f}, {duration(left)} left"
        self.bar.update(self.task, completed=progress.share_done, text=text)
        due = progress.seconds - self.last_line >= SECONDS_BETWEEN_LINES
        if self.bar.disable and due:
            self.last_line = progress.seconds
            print(text, file=sys.stderr, flush=True)
