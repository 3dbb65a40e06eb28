"""Training of the embedded denoiser, and of the embedded classifier, on a named data set with a progress bar."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from torch import Tensor

from ndc_core.checkpoints.denoisers import WEIGHTS_FILE
from ndc_core.checkpoints.image_classifiers import refuse_to_replace, save_small_classifier
from ndc_core.training.denoiser import TrainingProgress, TrainingSpec, save_trained, train_denoiser
from ndc_core.training.image_classifier import ClassifierSpec, train_classifier
from pipeline.data.datasets import DATASETS, DatasetSpec, Example, Listing, examples_of, source_of
from pipeline.progress import SECONDS_BETWEEN_LINES, duration
from pipeline.workers.compute import set_up_process, threads_for
from pipeline.workers.cores import usable_cores


def train_on(dataset: str, out: Path, *, settings: dict[str, Any], heads: bool = False) -> None:
    """Trains on the training split (the held-out images are never seen) and writes a checkpoint; `settings` are those
    of `TrainingSpec`.

    Raises:
        ValueError: an unknown data set, or a folder that holds a checkpoint already.
    """
    refuse_to_overwrite(out)
    spec = TrainingSpec(**settings)
    data, examples = training_images(dataset)
    out.mkdir(parents=True, exist_ok=True)
    set_up_process(threads=usable_cores())
    network = "small-heads" if heads else "small"
    labels = [example.label for example in examples]
    with TrainingBar(spec.steps) as bar:
        denoiser = train_denoiser(
            stacked(examples),
            torch.tensor(labels),
            num_classes=max(labels) + 1,
            spec=spec,
            network=network,
            on_step=bar.show,
        )
    save_trained(out, denoiser, spec=spec, notes=data_notes(data, examples), network=network)


def train_classifier_on(dataset: str, out: Path, *, settings: dict[str, Any]) -> None:
    """Trains an image classifier for the baselines on the training split; `settings` are those of `ClassifierSpec`.

    Raises:
        ValueError: as `train_on`.
    """
    refuse_to_replace(out)
    spec = ClassifierSpec(**settings)
    data, examples = training_images(dataset)
    out.mkdir(parents=True, exist_ok=True)
    set_up_process(threads=threads_for(examples[0].image.shape))
    labels = [example.label for example in examples]
    with TrainingBar(spec.steps) as bar:
        classifier = train_classifier(
            stacked(examples), torch.tensor(labels), num_classes=max(labels) + 1, spec=spec, on_step=bar.show
        )
    notes = {"training": asdict(spec), **data_notes(data, examples)}
    save_small_classifier(out, classifier, arguments={"channels": spec.channels}, notes=notes)


def training_images(dataset: str) -> tuple[DatasetSpec, list[Example]]:
    """Raises ValueError for a data set that there is not."""
    if dataset not in DATASETS:
        raise ValueError(f"dataset {dataset!r} is unknown; there are: {', '.join(DATASETS)}")
    data = DatasetSpec(dataset, split="train")
    return data, list(examples_of(data, source_of(data), channels=1, corrupt=[]))


def refuse_to_overwrite(out: Path) -> None:
    if (out / WEIGHTS_FILE).exists():
        raise ValueError(f"{out} holds a checkpoint already, which runs may depend on; choose another folder")


def stacked(examples: list[Example]) -> UInt8[Tensor, "n c h w"]:
    return torch.from_numpy(np.stack([example.image for example in examples]))


def data_notes(data: DatasetSpec, examples: list[Example]) -> dict[str, object]:
    """What a checkpoint says of the images that it was made from."""
    records = [example.record(index) for index, example in enumerate(examples)]
    digest = Listing(records, examples[0].image.shape).digest
    return {"dataset": data.name, "split": data.split, "images": len(examples), "sha256": digest}


class TrainingBar:
    """Loss and time left: a bar on a terminal, a line every few seconds elsewhere."""

    def __init__(self, steps: int, what: str = "training") -> None:
        self.steps = steps
        self.last_line = 0.0
        columns = TextColumn(what), BarColumn(), TextColumn("{task.fields[text]}")
        self.bar = Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty())
        self.task = self.bar.add_task("", total=1.0, text="")
        if torch.cuda.is_available():
            print(f"{what} on the CPU: the GPU stays idle, only votes and `ndc diagnose` use it", file=sys.stderr)

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
