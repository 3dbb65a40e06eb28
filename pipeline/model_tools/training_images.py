"""The labelled images that a network learns from, read whole and checked before any work."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from pipeline.data.datasets import (
    CHANNELS,
    DATASETS,
    DatasetSpec,
    Example,
    Listing,
    check_classes,
    examples_of,
    meaning_of_labels,
    source_of,
)
from pipeline.data.source import DataError

FEWEST_CLASSES = 2


@dataclass(frozen=True)
class TrainingImages:
    pixels: UInt8[Tensor, "n c h w"]
    labels: Int[Tensor, " n"]
    num_classes: int
    notes: dict[str, object]
    """What a checkpoint says of the images that it was made from."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        _, channels, height, width = self.pixels.shape
        return channels, height, width


def labelled_images(data: DatasetSpec, *, batch: int, say: Callable[[str], None]) -> TrainingImages:
    """All images of the data with labels 0, 1, ...; says what was decided about the data by rule.

    Raises:
        DataError: there are no such data, images that differ in shape or cannot be decoded, labels that count no
            classes, fewer than two classes, or fewer images than a batch.
    """
    source, corrupt = source_of(data), list[str]()
    if source.class_names is not None:
        check_classes(data, source, num_classes=len(source.class_names))
    channels = CHANNELS["grey" if data.name in DATASETS else "rgb"]
    examples = list(examples_of(data, source, channels=channels, corrupt=corrupt))
    if corrupt:
        raise DataError(f"{len(corrupt):,} images of {data.name} cannot be decoded, first {corrupt[0]}; mend them")
    if len(examples) < batch:
        raise DataError(
            f"{data.name} has {len(examples):,} images, fewer than a batch of {batch}; name more, or a smaller --batch"
        )
    refuse_unlike(data.name, examples)
    counts = Counter(example.label for example in examples)
    num_classes = len(source.class_names) if source.class_names else max(counts) + 1
    refuse_labels(data.name, counts, num_classes=num_classes)
    say(meaning_of_labels(data, source, num_classes=num_classes))
    for note in source.notes.lines():
        say(f"data: {note}")
    if missing := num_classes - len(counts):
        say(f"data: {missing:,} of {num_classes:,} classes have no image: what the model says about them means nothing")
    return TrainingImages(
        stacked(examples),
        torch.tensor([example.label for example in examples]),
        num_classes,
        data_notes(data, examples),
    )


def refuse_unlike(name: str, examples: list[Example]) -> None:
    """Raises DataError for images that are not 8-bit and all of one shape."""
    first = examples[0].image.shape
    for example in examples:
        if example.image.shape != first or example.image.dtype != np.uint8:
            raise DataError(
                f"image {example.image_id} of {name} is {example.image.dtype} of shape {example.image.shape} "
                f"(channels, height, width), the first is uint8 of shape {first}; declare --resize and --filter"
            )


def refuse_labels(name: str, counts: Counter[int], *, num_classes: int) -> None:
    """Raises DataError for a label beyond the classes that the data name, and for fewer than two classes."""
    if max(counts) >= num_classes:
        raise DataError(f"{name} has the label {max(counts)}, and names {num_classes} classes, counted from 0")
    if len(counts) < FEWEST_CLASSES:
        raise DataError(f"{name} has images of one class only: there is nothing to tell apart")


def stacked(examples: list[Example]) -> UInt8[Tensor, "n c h w"]:
    return torch.from_numpy(np.stack([example.image for example in examples]))


def data_notes(data: DatasetSpec, examples: list[Example]) -> dict[str, object]:
    records = [example.record(index) for index, example in enumerate(examples)]
    digest = Listing(records, examples[0].image.shape).digest
    return {"dataset": data.name, "split": data.split, "images": len(examples), "sha256": digest}
