"""Distillation of a conditional checkpoint into one with class heads, on any data that can be read."""

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from torch import Tensor

from ndc_core.checkpoints.denoisers import CheckpointError, describe_denoiser, save_denoiser
from ndc_core.models.class_heads import HeadsDenoiser
from ndc_core.models.denoiser import DescribedDenoiser, EDMDenoiser
from ndc_core.models.execution import Execution
from ndc_core.training.distillation import DistillationSpec, distil
from ndc_core.training.fitting import DivergedError, Machine, TrainingProgress
from ndc_core.training.students import heads_arguments, linear_student, small_student
from pipeline.data.datasets import DatasetSpec, Example, examples_of, source_of
from pipeline.data.source import DataError
from pipeline.declaration.config import Device
from pipeline.model_tools.distillation_settings import StudentNetwork, distillation_spec, student_network
from pipeline.model_tools.train import TrainingBar, place_of_images, refuse_to_overwrite, where
from pipeline.model_tools.training_images import data_notes, stacked
from pipeline.model_tools.training_state import SECONDS_BETWEEN_CHECKPOINTS, TrainingState
from pipeline.model_tools.training_tracker import Tracking, listeners
from pipeline.named_functions import is_function
from pipeline.workers.compute import pick_device, set_up_process, threads_for
from pipeline.workers.models import load_model, local_checkpoint, model_digest

# What the last head learns.
WITHOUT_LABEL, MEAN_OF_CLASSES = "the teacher without a label", "the teacher's mean over classes"


def distill(
    teacher: str,
    out: Path,
    *,
    data: DatasetSpec,
    network: StudentNetwork | None = None,
    settings: dict[str, Any],
    device: Device = "auto",
    tracking: Tracking = "none",
    say: Callable[[str], None] = print,
    seconds_between_checkpoints: float = SECONDS_BETWEEN_CHECKPOINTS,
) -> None:
    """Teaches a network with class heads what a checkpoint says of noisy images, and writes it.

    A distillation that was stopped goes on from its last checkpoint; on a CPU, if steps end it, to the same weights as
    one that was not stopped.

    Raises:
        ValueError: a teacher that cannot be used, images that do not fit it, settings that make no network, or a
            folder that holds a checkpoint or another distillation.
        TrainingError: the distillation diverged, or the disk is full; names the last good checkpoint.
    """
    refuse_to_overwrite(out)
    description = {} if is_function(teacher) else describe_denoiser(local_checkpoint(teacher))
    kind = student_network(network, description.get("network", "of a function"))
    spec = distillation_spec(kind, settings)
    denoiser = load_model(teacher)
    check_teacher(teacher, denoiser, kind)
    images = fitting_images(data, denoiser, say)
    refuse_few(data.name, images, spec)
    machine = machine_of(pick_device(device))
    student, name, arguments = student_of(denoiser, description, kind, spec)
    say(f"{name} for {denoiser.num_classes:,} classes on {len(images):,} images, {where(machine)}")
    notes = {
        "training": asdict(spec),
        "teacher_sha256": model_digest(teacher),
        "head_for_no_class": WITHOUT_LABEL if denoiser.knows_no_label else MEAN_OF_CLASSES,
        **data_notes(data, images),
        "trained_on": where(machine),
    }

    def write(folder: Path, distilled: EDMDenoiser, more: dict[str, object]) -> None:
        save_denoiser(folder, distilled, network=name, arguments=arguments, notes={**notes, **more})

    declaration = {"network": name, "arguments": arguments, **notes}
    state = TrainingState(out, declaration, write=write, seconds_between=seconds_between_checkpoints)
    if begun := state.load():
        say(f"going on after step {begun['step']:,}")
    out.mkdir(parents=True, exist_ok=True)
    set_up_process(threads=threads_for(denoiser.image_shape))
    if machine.device == "cuda":  # no less than TF32: the small differences between classes are what is learned
        denoiser = load_model(teacher, device="cuda", execution=Execution("tf32", channels_last=True))
    bar = partial(TrainingBar, spec.steps, "distilling", device=machine.device)
    with listeners(bar, out=out, declaration=state.declaration, tracking=tracking, say=say) as followers:
        heads = taught(denoiser, student, stacked(images), spec, machine, state, begun, on_step=followers.add)
    write(out, heads, {})
    state.clear()


def taught(
    teacher: DescribedDenoiser,
    student: HeadsDenoiser,
    images: UInt8[Tensor, "n c h w"],
    spec: DistillationSpec,
    machine: Machine,
    state: TrainingState,
    begun: dict[str, Any] | None,
    *,
    on_step: Callable[[TrainingProgress], None],
) -> HeadsDenoiser:
    """The distillation itself; raises TrainingError if it diverges."""
    try:
        return distil(
            teacher,
            student,
            images.to(place_of_images(images, machine)),
            knows_no_label=teacher.knows_no_label,
            spec=spec,
            machine=machine,
            state=begun,
            on_step=on_step,
            watch=state.watch,
        )
    except DivergedError as error:
        raise state.ended(error) from error


def student_of(
    teacher: DescribedDenoiser, description: dict[str, Any], kind: StudentNetwork, spec: DistillationSpec
) -> tuple[HeadsDenoiser, str, dict[str, Any]]:
    """The network before its distillation, and the name and arguments by which a checkpoint builds it."""
    if kind == "own":
        assert isinstance(teacher, EDMDenoiser)  # it is a checkpoint's
        arguments = heads_arguments(description["network"], description["arguments"])
        return linear_student(teacher, arguments, seed=spec.seed), "linear-heads", arguments
    sizes = {"image_channels": teacher.image_shape[0], "num_classes": teacher.num_classes, "channels": spec.channels}
    return small_student(teacher, channels=spec.channels, seed=spec.seed), "small-heads", sizes


def machine_of(device: str) -> Machine:
    return Machine(device, channels_last=device == "cuda")


def check_teacher(teacher: str, denoiser: DescribedDenoiser, kind: StudentNetwork) -> None:
    if denoiser.num_classes < 2:
        raise CheckpointError(
            f"{teacher} knows {denoiser.num_classes} classes, and heads tell classes apart: distil a model that was "
            "trained with at least two"
        )
    if kind == "small" and any(side % 2 for side in denoiser.image_shape[1:]):
        raise CheckpointError(
            f"{teacher} makes images of shape {denoiser.image_shape} (channels, height, width); the network with heads "
            "halves height and width, which must be even: distil another model"
        )


def fitting_images(data: DatasetSpec, teacher: DescribedDenoiser, say: Callable[[str], None]) -> list[Example]:
    """All images of the data, which need no meaningful labels. Says what was decided about the data by rule.

    Raises:
        DataError: there are none, or they are of another size or, as far as the data name their classes, of other
            classes than the teacher's.
    """
    corrupt: list[str] = []
    examples, source, image_shape = [], source_of(data), teacher.image_shape
    if source.class_names is not None and len(source.class_names) != teacher.num_classes:
        raise DataError(
            f"{data.name} names {len(source.class_names):,} classes, and the teacher knows {teacher.num_classes:,}: "
            "it would be asked about images that it does not know; choose other data or another teacher"
        )
    for example in examples_of(data, source, channels=image_shape[0], corrupt=corrupt):
        image = example.image
        if image.shape != image_shape or image.dtype != np.uint8:
            raise DataError(
                f"image {example.image_id} of {data.name} is {image.dtype} of shape {image.shape} (channels, height, "
                f"width), the teacher takes uint8 of shape {image_shape}; choose other data or another teacher, or "
                "declare a --resize"
            )
        examples.append(example)
    if corrupt:
        raise DataError(f"{len(corrupt):,} images of {data.name} cannot be decoded, first {corrupt[0]}; mend them")
    if not examples:
        raise DataError(f"{data.name} has no images to learn from; choose other data")
    for note in source.notes.lines():
        say(f"data: {note}")
    return examples


def refuse_few(name: str, images: list[Example], spec: DistillationSpec) -> None:
    """Raises DataError for fewer images than a batch."""
    if len(images) < spec.batch:
        raise DataError(
            f"{name} has {len(images):,} images, fewer than a batch of {spec.batch}; name more, or a smaller --batch"
        )
