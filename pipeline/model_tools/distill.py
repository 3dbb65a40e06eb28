"""Distillation of a conditional checkpoint into one with class heads, on any data that can be read."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ndc_core.checkpoints.denoisers import CheckpointError, denoiser_digest, load_denoiser
from ndc_core.models.denoiser import EDMDenoiser
from ndc_core.training.denoiser import save_trained
from ndc_core.training.distillation import DistillationSpec, distil
from pipeline.data.datasets import DatasetSpec, Example, examples_of, source_of
from pipeline.data.source import DataError
from pipeline.model_tools.train import TrainingBar, refuse_to_overwrite
from pipeline.model_tools.training_images import data_notes, stacked
from pipeline.workers.compute import set_up_process, threads_for
from pipeline.workers.models import local_checkpoint

CHANNELS_STEP = 8  # of a group in the network's normalisations


def distill(
    teacher: str,
    out: Path,
    *,
    data: DatasetSpec,
    settings: dict[str, Any],
    say: Callable[[str], None] = print,
) -> None:
    """Teaches a small network with class heads what a checkpoint says of noisy images, and writes it.

    Raises:
        ValueError: a teacher that cannot be used, images that do not fit it, settings that make no network, or a
            folder that holds a checkpoint already.
    """
    refuse_to_overwrite(out)
    spec = DistillationSpec(**settings)
    if spec.channels % CHANNELS_STEP:
        raise ValueError(f"{spec.channels} channels make no network; take a multiple of {CHANNELS_STEP}")
    folder = local_checkpoint(teacher)
    denoiser = load_denoiser(folder)
    check_teacher(teacher, denoiser)
    examples = fitting_images(data, denoiser.image_shape, say)
    out.mkdir(parents=True, exist_ok=True)
    set_up_process(threads=threads_for(denoiser.image_shape))
    with TrainingBar(spec.steps, "distilling") as bar:
        student = distil(
            denoiser, stacked(examples), knows_no_label=denoiser.knows_no_label, spec=spec, on_step=bar.add
        )
    no_class = "the teacher without a label" if denoiser.knows_no_label else "the teacher's mean over classes"
    notes = {"teacher_sha256": denoiser_digest(folder), "head_for_no_class": no_class, **data_notes(data, examples)}
    save_trained(out, student, spec=spec, notes=notes, network="small-heads")


def check_teacher(teacher: str, denoiser: EDMDenoiser) -> None:
    if denoiser.num_classes < 2:
        raise CheckpointError(
            f"{teacher} knows {denoiser.num_classes} classes, and heads tell classes apart: distil a model that was "
            "trained with at least two"
        )
    if any(side % 2 for side in denoiser.image_shape[1:]):
        raise CheckpointError(
            f"{teacher} makes images of shape {denoiser.image_shape} (channels, height, width); the network with heads "
            "halves height and width, which must be even: distil another model"
        )


def fitting_images(data: DatasetSpec, image_shape: tuple[int, int, int], say: Callable[[str], None]) -> list[Example]:
    """All images of the data, which need no meaningful labels. Says what was decided about the data by rule."""
    corrupt: list[str] = []
    examples, source = [], source_of(data)
    for example in examples_of(data, source, channels=image_shape[0], corrupt=corrupt):
        image = example.image
        if image.shape != image_shape or image.dtype != np.uint8:
            raise DataError(
                f"image {example.image_id} of {data.name} is {image.dtype} of shape {image.shape} (channels, height, "
                f"width), the teacher takes uint8 of shape {image_shape}; choose other --data or another teacher"
            )
        examples.append(example)
    if corrupt:
        raise DataError(f"{len(corrupt):,} images of {data.name} cannot be decoded, first {corrupt[0]}; mend them")
    if not examples:
        raise DataError(f"{data.name} has no images to learn from; choose other --data")
    for note in source.notes.lines():
        say(f"data: {note}")
    return examples
