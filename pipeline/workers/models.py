"""The models of a run. Checkpoints in an object store are copied to each node once, and checked."""

import hashlib
import os
from pathlib import Path

from filelock import FileLock

from ndc_core.analysis.contract import check_rows
from ndc_core.checkpoints.denoisers import (
    DESCRIPTION_FILE,
    WEIGHTS_FILE,
    CheckpointError,
    denoiser_digest,
    describe_denoiser,
    file_sha256,
    load_denoiser,
    parse_description,
)
from ndc_core.checkpoints.image_classifiers import (
    CLASSIFIER_DESCRIPTION,
    classifier_digest,
    describe_classifier,
    load_classifier,
    parse_classifier,
)
from ndc_core.classifiers.baselines import Baseline
from ndc_core.classifiers.diffusion import DiffusionClassifier
from ndc_core.classifiers.unconditional import UNCONDITIONALS, Unconditional, null_label
from ndc_core.classifiers.voter import Voter
from ndc_core.models.denoiser import DescribedDenoiser
from ndc_core.models.execution import Execution
from ndc_core.models.image_classifier import ImageClassifier
from ndc_core.untrusted_files.file_kinds import foreign_kind
from pipeline.declaration.config import DenoiseConfig, PlainConfig, RunConfig
from pipeline.hub import HubName, is_hub, local_copy
from pipeline.locations import cache_folder, is_local, location, reaching, read
from pipeline.named_functions import is_function, named_function
from pipeline.workers.own_models import own_classifier, own_denoiser, own_digest

NEED_NO_LABEL = ("apndc", "apndc-ensemble", "denoise")


def local_checkpoint(where: str) -> Path:
    """A denoiser's folder on this node; one of an object store is fetched by the first process that asks.

    Raises:
        CheckpointError: there is none, it is a file of another program, or what arrived is not what was written.
        LocationError: the object store cannot be used.
    """
    if is_hub(where):
        where = _of_hub(where, DESCRIPTION_FILE, WEIGHTS_FILE)
    if is_local(location(where)):
        describe_denoiser(Path(where))
        return Path(where)
    content = _read_description(
        where,
        DESCRIPTION_FILE,
        kind="checkpoint",
        remedy="fetch a model of another program, take it in with `ndc convert FILE FOLDER`",
    )
    description = parse_description(content, where=str(location(where) / DESCRIPTION_FILE))
    return _fetched(where, (DESCRIPTION_FILE, content), WEIGHTS_FILE, description.get("weights_sha256"))


def local_classifier(where: str) -> Path:
    """The same for the folder of an image classifier."""
    if is_hub(where):
        where = _of_hub(where, CLASSIFIER_DESCRIPTION, f"{Path(CLASSIFIER_DESCRIPTION).stem}.*")
    if is_local(location(where)):
        describe_classifier(Path(where))
        return Path(where)
    content = _read_description(
        where,
        CLASSIFIER_DESCRIPTION,
        kind="image classifier",
        remedy="take one in with `ndc convert --classifier FILE FOLDER`",
    )
    description = parse_classifier(content, where=str(location(where) / CLASSIFIER_DESCRIPTION))
    return _fetched(where, (CLASSIFIER_DESCRIPTION, content), description.file, description.sha256)


def _of_hub(where: str, description: str, weights: str) -> str:
    """The local copy of a folder in a repository of the Hugging Face hub, which is fetched once per node."""
    name = HubName.parse(where)
    below = f"{name.path}/" if name.path else ""
    folder, exact = local_copy(name, [f"{below}{description}", f"{below}{weights}"])
    if not (folder / name.path / description).is_file():
        raise CheckpointError(
            f"{exact} is no model of ndc ({description} is missing); take it in with `ndc convert {where} FOLDER`, and "
            "name that folder"
        )
    return str(folder / name.path)


def _read_description(where: str, name: str, *, kind: str, remedy: str) -> bytes:
    try:
        return read(location(where) / name)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{where} is no {kind} ({name} is missing); {remedy}, and put that folder there"
        ) from error


def _fetched(where: str, description: tuple[str, bytes], weights: str, sha256: str | None) -> Path:
    place = location(where)
    name, content = description
    folder = cache_folder("models") / hashlib.sha256(content).hexdigest()
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "fetch.lock"):
        if not (folder / weights).is_file():
            partial = folder / f"{weights}.partial"
            with reaching(place):
                place.fs.get_file((place / weights).path, str(partial))
            if file_sha256(partial) != sha256:
                kind = foreign_kind(partial)
                partial.unlink()
                if kind:
                    raise CheckpointError(f"{place / weights} is {kind}")
                raise CheckpointError(
                    f"{place / weights} is not the file that {name} was written for (SHA-256 "
                    "differs): truncated or replaced; copy the checkpoint there again"
                )
            (folder / name).write_bytes(content)
            partial.replace(folder / weights)
    return folder


def checkpoints_of(config: RunConfig) -> dict[str, str]:
    """Where the models that decide a vote lie, by name; an unconditional estimate may be no checkpoint."""
    if isinstance(config.classifier, PlainConfig):
        return {"model_sha256": config.model}
    checkpoints = {"model_sha256": config.model, "unconditional": config.unconditional}
    if isinstance(config.classifier, DenoiseConfig):
        checkpoints["network_sha256"] = config.classifier.network
    return checkpoints


def model_digests(config: RunConfig) -> dict[str, str]:
    """What decides a vote about the models, for a run's declaration.

    Raises:
        CheckpointError: a model that cannot be used, or that was never trained without a label and must do without.
    """
    digests = {}
    for name, where in checkpoints_of(config).items():
        if name == "unconditional" and where in UNCONDITIONALS:
            digests[name] = where
        else:
            is_classifier = name == "network_sha256" or isinstance(config.classifier, PlainConfig)
            digests[name] = model_digest(where, is_classifier=is_classifier)
    return digests


def model_digest(where: str, *, is_classifier: bool = False) -> str:
    """The digest of a checkpoint, or of a function's source and what it returns."""
    if is_function(where):
        return own_digest(where)
    return classifier_digest(local_classifier(where)) if is_classifier else denoiser_digest(local_checkpoint(where))


def load_model(where: str, *, device: str = "cpu", execution: Execution | None = None) -> DescribedDenoiser:
    """The denoiser of a checkpoint, or the one that a function returns.

    Raises:
        CheckpointError: a checkpoint that cannot be used.
        FunctionError, ContractError: a function that cannot be used, or returns what cannot be: see `own_models`.
    """
    if is_function(where):
        return own_denoiser(where, device=device, execution=execution or Execution())
    return load_denoiser(local_checkpoint(where), device=device, execution=execution)


def load_image_classifier(where: str, *, device: str, execution: Execution) -> ImageClassifier:
    """The same of an image classifier."""
    if is_function(where):
        return own_classifier(where, device=device, execution=execution)
    return load_classifier(local_classifier(where), device=device, execution=execution)


def functions_of(config: RunConfig) -> list[str]:
    """The models that are functions, each with the files that its digest covers, for people."""
    named = [named_function(where) for where in dict.fromkeys(checkpoints_of(config).values()) if is_function(where)]
    return [f"{function.name} is run as a program; it is declared with its {function.source}" for function in named]


def execution_of(config: RunConfig) -> Execution:
    return Execution(config.compute.precision, config.compute.channels_last, config.compute.compile)


def keep_compiled() -> None:
    """Kernels that Triton and `torch.compile` make are kept beside the models: one process of a node waits for them."""
    if "TRITON_CACHE_DIR" not in os.environ:
        os.environ["TRITON_CACHE_DIR"] = str(cache_folder("triton"))
    if "TORCHINDUCTOR_CACHE_DIR" not in os.environ:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache_folder("inductor"))


def build_classifier(config: RunConfig, *, device: str) -> Voter:
    """What votes in a run, its models loaded. It must not vote while the rows of a pass are left open.

    Raises:
        CheckpointError: a model that cannot be used, or models that do not fit each other.
    """
    rows_per_pass, execution = config.compute.rows_per_pass or 1, execution_of(config)
    if execution.compile or device.startswith("cuda"):
        keep_compiled()
    if isinstance(config.classifier, PlainConfig):
        network = load_image_classifier(config.model, device=device, execution=execution)
        return Baseline(network, rows_per_pass=rows_per_pass, device=device)
    denoiser, unconditional = load_models(config, device=device)
    if config.certificate.method == "lipschitz" and not denoiser.bounded:
        raise CheckpointError(
            f"the outputs of {config.model} are not clipped, and the lipschitz certificate needs outputs in [-1, 1]: "
            "take the model that it was distilled from, heads of `ndc distill --network small`, or another certificate"
        )
    if isinstance(config.classifier, DenoiseConfig):
        where, steps, paths = config.classifier.network, config.classifier.steps, config.classifier.paths
        network = load_image_classifier(where, device=device, execution=execution)
        try:
            return Baseline(network, unconditional, steps, paths, rows_per_pass, device)
        except ValueError as error:
            raise CheckpointError(f"{where} does not go with {config.model}: {error}") from error
    own = config.classifier
    if own.label_gradient and is_function(config.model):
        name = f"what {config.model} returns"
        check_rows("label_gradient", denoiser, name=name, device=device, precision=execution.precision)
    return DiffusionClassifier(
        denoiser,
        own.name,
        grid=own.grid,
        weight=own.weight,
        sift=own.sift,
        label_gradient=own.label_gradient,
        race=own.race,
        one_path=own.one_path,
        loss_cap=own.loss_cap,
        rows_per_pass=rows_per_pass,
        device=device,
        unconditional=unconditional,
    )


def load_models(config: RunConfig, *, device: str) -> tuple[DescribedDenoiser, Unconditional]:
    """The denoiser and the unconditional estimate of a run that has them: see `load_pair`."""
    return load_pair(
        config.model,
        config.unconditional,
        classifier=config.classifier.name,
        device=device,
        execution=execution_of(config),
    )


def load_pair(
    model: str, unconditional: str, *, classifier: str, device: str, execution: Execution | None = None
) -> tuple[DescribedDenoiser, Unconditional]:
    """A denoiser, and an unconditional estimate by its name or from a checkpoint. Only `denoise` needs no classes.

    Raises:
        CheckpointError: a model that cannot be used, or that was never trained without a label and must do without; or
            the two models are of different images.
    """
    denoiser = load_model(model, device=device, execution=execution)
    if denoiser.num_classes < 2 and classifier != "denoise":
        raise CheckpointError(f"{model} knows no classes: it can stand as unconditional, not as the model")
    if unconditional in UNCONDITIONALS:
        if not denoiser.num_classes and unconditional != "null_label":
            raise CheckpointError(f"{model} knows no classes, which {unconditional} needs: leave unconditional out")
        needs_it = classifier in NEED_NO_LABEL and unconditional == "null_label"
        if needs_it and not denoiser.knows_no_label:
            raise CheckpointError(
                f"{model} was never trained without a label, which {classifier} asks for; set "
                "unconditional to a checkpoint without classes, to 'label_mean' or to 'blended_label'"
                + ("" if classifier == "denoise" else ", or take epndc")
                + ("; if it was, set knows_no_label = True on what it returns" if is_function(model) else "")
            )
        return denoiser, UNCONDITIONALS[unconditional](denoiser)
    other = load_model(unconditional, device=device, execution=execution)
    if other.image_shape != denoiser.image_shape or not other.knows_no_label:
        raise CheckpointError(
            f"{unconditional} cannot stand for {model} without a label: it makes images of shape "
            f"{other.image_shape}, not {denoiser.image_shape}, or needs a label itself"
        )
    return denoiser, null_label(other)
