"""The models of a run: checkpoints in an object store are copied to each node once, and checked."""

import hashlib
import json
import os
from pathlib import Path

from filelock import FileLock

from ndc_core.checkpoints import (
    DESCRIPTION_FILE,
    WEIGHTS_FILE,
    CheckpointError,
    denoiser_digest,
    describe_denoiser,
    file_sha256,
    load_denoiser,
)
from ndc_core.denoiser import EDMDenoiser
from ndc_core.execution import Execution
from ndc_core.unconditional import UNCONDITIONALS, Unconditional, null_label
from pipeline.config import RunConfig
from pipeline.locations import is_local, location, reaching, read


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "ndc" / "models"


def local_checkpoint(where: str) -> Path:
    """A checkpoint's folder on this node; one of an object store is fetched by the first process that asks.

    Raises:
        CheckpointError: there is none, it is a file of another program, or what arrived is not what was written.
        LocationError: the object store cannot be used.
    """
    place = location(where)
    if is_local(place):
        describe_denoiser(Path(where))
        return Path(where)
    try:
        description = read(place / DESCRIPTION_FILE)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{where} is no checkpoint ({DESCRIPTION_FILE} is missing); fetch a model of another program, take it in "
            "with `ndc convert FILE FOLDER`, and put that folder there"
        ) from error
    folder = cache_folder() / hashlib.sha256(description).hexdigest()
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "fetch.lock"):
        if not (folder / WEIGHTS_FILE).is_file():
            partial = folder / f"{WEIGHTS_FILE}.partial"
            with reaching(place):
                place.fs.get_file((place / WEIGHTS_FILE).path, str(partial))
            if file_sha256(partial) != json.loads(description).get("weights_sha256"):
                partial.unlink()
                raise CheckpointError(
                    f"{place / WEIGHTS_FILE} is not the file that {DESCRIPTION_FILE} was written for (SHA-256 "
                    "differs): truncated or replaced; copy the checkpoint there again"
                )
            (folder / DESCRIPTION_FILE).write_bytes(description)
            partial.replace(folder / WEIGHTS_FILE)
    return folder


def model_digests(config: RunConfig) -> dict[str, str]:
    """What of the models decides a vote, for a run's law.

    Raises:
        CheckpointError: a model that cannot be used, or that was never trained without a label though it is asked to.
    """
    unconditional = config.unconditional
    if unconditional not in UNCONDITIONALS:
        unconditional = denoiser_digest(local_checkpoint(unconditional))
    return {"model_sha256": denoiser_digest(local_checkpoint(config.model)), "unconditional": unconditional}


def load_models(config: RunConfig, *, device: str) -> tuple[EDMDenoiser, Unconditional]:
    """The conditional denoiser and the unconditional estimate of a run: see `load_pair`."""
    execution = Execution(config.compute.precision, config.compute.channels_last, config.compute.compile)
    return load_pair(
        config.model, config.unconditional, classifier=config.classifier.name, device=device, execution=execution
    )


def load_pair(
    model: str, unconditional: str, *, classifier: str, device: str, execution: Execution | None = None
) -> tuple[EDMDenoiser, Unconditional]:
    """A conditional denoiser, and an unconditional estimate by its name or from a checkpoint.

    Raises:
        CheckpointError: a model that cannot be used; no label is asked of one that was never trained without; or the
            two models are of different images.
    """
    denoiser = load_denoiser(local_checkpoint(model), device=device, execution=execution)
    if denoiser.num_classes < 2:
        raise CheckpointError(f"{model} knows no classes: it can stand as unconditional, not as the model")
    if unconditional in UNCONDITIONALS:
        needs_it = classifier.startswith("apndc") and unconditional == "null_label"
        if needs_it and not denoiser.knows_no_label:
            raise CheckpointError(
                f"{model} was never trained without a label, which {classifier} asks for; set "
                "unconditional to a checkpoint without classes, to 'label_mean' or to 'blended_label', or take epndc"
            )
        return denoiser, UNCONDITIONALS[unconditional](denoiser)
    other = load_denoiser(local_checkpoint(unconditional), device=device, execution=execution)
    if other.image_shape != denoiser.image_shape or not other.knows_no_label:
        raise CheckpointError(
            f"{unconditional} cannot stand for {model} without a label: it makes images of shape "
            f"{other.image_shape}, not {denoiser.image_shape}, or needs a label itself"
        )
    return denoiser, null_label(other)
