"""Tuning of a run's class heads for that run: its formula, grid, weight and noise levels."""

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from ndc_core.checkpoints.denoisers import CheckpointError, denoiser_digest, describe_denoiser, save_denoiser
from ndc_core.classifiers.diffusion import DiffusionClassifier
from ndc_core.models.class_heads import HeadsDenoiser
from ndc_core.models.denoiser import EDMDenoiser
from ndc_core.training.fitting import DivergedError, Machine
from ndc_core.training.tuning import Judgement, Tuned, TuningSpec, split, tune
from pipeline.data.datasets import DATASETS, DatasetSpec
from pipeline.data.source import DataError
from pipeline.declaration.config import ComputeConfig, Device, RunConfig
from pipeline.model_tools.train import TrainingBar, refuse_to_overwrite
from pipeline.model_tools.training_images import TrainingImages, labelled_images
from pipeline.model_tools.training_tracker import listeners
from pipeline.named_functions import is_function
from pipeline.workers.compute import pick_device, set_up_process, threads_for
from pipeline.workers.models import build_classifier, local_checkpoint


def tune_for(
    config: RunConfig,
    out: Path,
    *,
    data: str | None,
    data_format: str | None,
    limit: int | None,
    settings: dict[str, Any],
    device: Device = "auto",
    say: Callable[[str], None] = print,
) -> Tuned:
    """Tunes the heads of the run's model on training images, and writes them as a checkpoint that names its parent.

    Raises:
        ValueError: a run without class heads, images that do not fit it or that it certifies, settings out of
            range, or a folder that holds a checkpoint already.
        DivergedError: the loss is not finite any more; nothing is written, the parent is as it was.
    """
    refuse_to_overwrite(out)
    if is_function(config.model):
        raise CheckpointError(
            f"{config.model} is a function, and tuned heads are kept as a checkpoint, which says how to build their "
            "network: distil it with `ndc distill`, and tune the heads"
        )
    spec = TuningSpec(**settings)
    classifier = heads_of(config)
    images = labelled_images(training_data(config, data, data_format, limit), batch=spec.batch, say=say)
    refuse_misfit(classifier.denoiser, images)
    held_out, train = split(len(images.pixels), spec)
    machine = Machine(pick_device(device))
    say(f"tuning {config.model} on {len(train):,} images; {len(held_out):,} judge; on {machine.device}")
    out.mkdir(parents=True, exist_ok=True)
    set_up_process(threads=threads_for(images.image_shape))
    bar = partial(TrainingBar, spec.steps, "tuning", device=machine.device)
    declaration = {"parent": config.model, **tuned_for(config), "tuning": asdict(spec), **images.notes}
    with listeners(bar, out=out, declaration=declaration, tracking=config.tracking, say=say) as followers:
        try:
            tuned = tune(
                classifier,
                images.pixels,
                images.labels,
                sigma_pixel=config.sigma_pixel,
                spec=spec,
                machine=machine,
                on_step=followers.add,
                on_judgement=partial(tell, say),
            )
        except DivergedError as error:
            raise DivergedError(f"{error}: nothing is written, {config.model} is as it was") from error
    write(out, config, tuned, spec, images)
    return tuned


def heads_of(config: RunConfig) -> DiffusionClassifier:
    """The run's classifier, whose model has class heads; raises ValueError for another."""
    if 0 in config.sigma_pixel:
        raise ValueError("a run without noise has no votes to tune for: choose one with sigma_pixel above 0")
    whole = config.model_copy(update={"compute": ComputeConfig()})  # weights of half precision are not to be kept
    classifier = build_classifier(whole, device="cpu")
    if not isinstance(classifier, DiffusionClassifier) or not isinstance(classifier.denoiser, HeadsDenoiser):
        raise CheckpointError(
            f"{config.model} has no class heads to tune: make some with `ndc distill {config.model} OUT`, and name "
            "them with --model"
        )
    if config.unconditional != "null_label":
        raise ValueError(f"heads are tuned with their own estimate without a label, not {config.unconditional}")
    return classifier


def training_data(config: RunConfig, data: str | None, data_format: str | None, limit: int | None) -> DatasetSpec:
    """The images to tune on: those named, or the training split of an embedded data set.

    Raises:
        DataError: the run's own images are files, which may be those that it certifies.
    """
    own = config.dataset
    if data is None and own.name not in DATASETS:
        raise DataError(
            f"say with --data what to tune on: images that the run does not certify, as those of {own.name}"
        )
    return DatasetSpec(
        data or own.name,
        format=data_format,
        split="train",
        limit=limit,
        channels=own.channels,
        resize=own.resize,
        filter=own.filter,
        classes=own.classes,
        label_order=own.label_order,
    )


def refuse_misfit(denoiser: Any, images: TrainingImages) -> None:
    """Raises DataError for images or classes that are not the model's."""
    assert isinstance(denoiser, EDMDenoiser)
    if images.image_shape != denoiser.image_shape or images.num_classes != denoiser.num_classes:
        raise DataError(
            f"the data have images of shape {images.image_shape} and {images.num_classes} classes, the model takes "
            f"{denoiser.image_shape} and knows {denoiser.num_classes}; choose other --data"
        )


def tell(say: Callable[[str], None], judgement: Judgement) -> None:
    accuracy = f"{100 * judgement.accuracy:.1f} % of short votes are right"
    say(f"held-out images after step {judgement.step:,}: loss {judgement.loss:.4f}, {accuracy}")


def tuned_for(config: RunConfig) -> dict[str, Any]:
    return {"tuned_for": config.model_dump(mode="json", include={"sigma_pixel", "classifier"})}


def write(out: Path, config: RunConfig, tuned: Tuned, spec: TuningSpec, images: TrainingImages) -> None:
    parent = local_checkpoint(config.model)
    description = describe_denoiser(parent)
    notes = {
        "parent": config.model,
        "parent_sha256": denoiser_digest(parent),
        "tuning": asdict(spec),
        **tuned_for(config),
        "judgements": [asdict(judgement) for judgement in tuned.judgements],
        **images.notes,
    }
    save_denoiser(out, tuned.denoiser, network=description["network"], arguments=description["arguments"], notes=notes)
