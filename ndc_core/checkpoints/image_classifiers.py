"""Image classifiers on disk: a folder with `classifier.json` and the file that it names.

Weights of our own small network are safetensors. TorchScript and torch.export files are other people's programs, and
using one runs it; a folder is tied to its file by SHA-256, so only the program that was converted runs.
"""

import hashlib
import json
import shutil
import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ndc_core.checkpoints.denoisers import (
    DESCRIPTION_FILE,
    CheckpointError,
    file_sha256,
    parse_json,
    refuse_foreign,
    whole_or_nothing,
)
from ndc_core.models.execution import DTYPES, Execution
from ndc_core.models.image_classifier import ImageNetwork
from ndc_core.models.networks.small_classifier import SmallClassifier

CLASSIFIER_FORMAT = "ndc-classifier/1"
CLASSIFIER_DESCRIPTION = "classifier.json"
PICKLE_START, SAFETENSORS_HEAD_BYTES = b"\x80", 9
# How far rounding may move a row among other rows; a batch norm in training mode moves it a thousand times as far.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class ClassifierDescription:
    """All that decides an image classifier's scores, and `notes`. `mean` and `std` are of pixels in [0, 1]."""

    kind: str
    file: str
    image_shape: tuple[int, int, int]
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    sha256: str
    arguments: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    format: str = CLASSIFIER_FORMAT


class _Exported(nn.Module):
    """An exported graph, which stays in the mode that it was exported in."""

    def __init__(self, graph: nn.Module) -> None:
        super().__init__()
        self.graph = graph

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.graph(x)
        return scores

    def train(self, mode: bool = True) -> Self:
        return self


def _small(path: Path, description: ClassifierDescription, device: str) -> nn.Module:
    try:
        network = SmallClassifier(
            image_shape=description.image_shape, num_classes=description.num_classes, **description.arguments
        )
        network.load_state_dict(load_file(path), strict=True)
    except (SafetensorError, RuntimeError, TypeError) as error:
        raise CheckpointError(
            f"{path} does not fit the network that {CLASSIFIER_DESCRIPTION} describes: {error}"
        ) from error
    return network


def _torchscript(path: Path, description: ClassifierDescription, device: str) -> nn.Module:
    try:
        return nn.Sequential(torch.jit.load(path, map_location=device))  # accepts calls that a ScriptModule refuses
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path} is not a TorchScript file: {_first_line(error)}") from error


def _exported(path: Path, description: ClassifierDescription, device: str) -> nn.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's own serialisation
            program = torch.export.load(path)
    except Exception as error:  # torch's reader may raise anything on a damaged archive
        raise CheckpointError(f"{path} is not a file of torch.export: {_first_line(error)}") from error
    if device != "cpu":  # constants that its graph creates, such as indices, stay on the export's device
        try:
            from torch.export.passes import move_to_device_pass
        except ImportError as error:
            raise CheckpointError(
                f"{path} needs torch 2.6 or newer on a {device}, and this is {torch.__version__}"
            ) from error
        program = move_to_device_pass(program, device)
    return _Exported(program.module())


KINDS: dict[str, Callable[[Path, ClassifierDescription, str], nn.Module]] = {
    "small": _small,
    "torchscript": _torchscript,
    "torch.export": _exported,
}


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def take_in_classifier(
    source: Path,
    out: Path,
    *,
    image_shape: tuple[int, int, int],
    mean: Sequence[float],
    std: Sequence[float],
    notes: dict[str, Any],
) -> ClassifierDescription:
    """Makes a checkpoint of a TorchScript or torch.export file (.pt2), which runs on two small batches.

    Raises:
        CheckpointError: it is neither, takes other images, or gives scores that are not a function of each image alone;
            nothing is written.
    """
    refuse_to_replace(out)
    if not source.is_file():
        raise CheckpointError(f"{source} is not a file; give a TorchScript or a torch.export file (.pt2)")
    refuse_foreign(source)
    refuse_weights(source)
    kind = "torch.export" if source.suffix == ".pt2" else "torchscript"
    description = ClassifierDescription(
        kind,
        f"classifier{'.pt2' if kind == 'torch.export' else '.pt'}",
        image_shape,
        0,
        tuple(mean),
        tuple(std),
        file_sha256(source),
        notes={**notes, "source": source.name},
    )
    classes = check_scores(source, _built(source, description, Execution(), device="cpu"))
    return _write(out, description, classes, lambda path: shutil.copyfile(source, path))


def save_small_classifier(
    out: Path, classifier: ImageNetwork, *, arguments: dict[str, Any], notes: dict[str, Any]
) -> None:
    """Writes a classifier around our own small network."""
    mean, std = (tuple(values.flatten().tolist()) for values in (classifier.mean, classifier.std))
    description = ClassifierDescription(
        "small", "classifier.safetensors", classifier.image_shape, 0, mean, std, "", arguments, notes
    )
    _write(out, description, classifier.num_classes, lambda path: save_file(classifier.network.state_dict(), path))


def refuse_to_replace(out: Path) -> None:
    if (out / CLASSIFIER_DESCRIPTION).exists():
        raise CheckpointError(f"{out} holds an image classifier already; choose another folder")


def refuse_weights(source: Path) -> None:
    """Refuses weights alone, which do not say what to compute with them."""
    with source.open("rb") as stream:
        head = stream.read(SAFETENSORS_HEAD_BYTES)
    names = zipfile.ZipFile(source).namelist() if zipfile.is_zipfile(source) else []
    saved = any(name.endswith("/data.pkl") for name in names) and not any(
        name.endswith("/constants.pkl") for name in names
    )
    if saved or head[:1] == PICKLE_START or head[-1:] == b"{":
        raise CheckpointError(
            f"{source} holds weights or a pickled module, not a program that says what to compute with them: save it "
            "with torch.jit.script or torch.export and convert that file"
        )


def _write(
    out: Path, description: ClassifierDescription, num_classes: int, write: Callable[[Path], object]
) -> ClassifierDescription:
    """The description comes last, so half a folder is never used."""
    partial = out / f"{CLASSIFIER_DESCRIPTION}.partial"
    with whole_or_nothing(out, description.file, partial.name):
        write(out / description.file)
        described = ClassifierDescription(
            **{**asdict(description), "num_classes": num_classes, "sha256": file_sha256(out / description.file)}
        )
        partial.write_text(json.dumps(asdict(described), indent=2) + "\n")
        partial.replace(out / CLASSIFIER_DESCRIPTION)
    return described


@torch.inference_mode()
def check_scores(source: Path, classifier: ImageNetwork) -> int:
    """The number of classes, from trial batches of noise.

    Raises:
        CheckpointError: there are fewer than two classes, or scores depend on the rest of the batch or on chance.
    """
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(5, *classifier.image_shape, generator=generator)
    try:
        scores, others = classifier(z[:3]), classifier(z[[0, 3, 4, 1]])
    except Exception as error:  # its program may raise anything
        raise CheckpointError(
            f"{source} does not take batches of any number of images of shape {classifier.image_shape}: "
            f"{_first_line(error)}; say the shape with --image-shape, and export with a dynamic first dimension"
        ) from error
    if scores.ndim != 2 or scores.shape[1] < 2:
        raise CheckpointError(
            f"{source} gives outputs of shape {tuple(scores.shape)}, not a score for each of some classes"
        )
    if not torch.isfinite(scores).all():
        raise CheckpointError(f"{source} gives scores that are not finite for noise around grey")
    if not torch.allclose(scores[:2], others[[0, 3]], rtol=TOLERANCE, atol=TOLERANCE):
        raise CheckpointError(
            f"{source} scores an image differently in another batch: it was saved in training mode, or draws at "
            "random; save it after .eval()"
        )
    return int(scores.shape[1])


def describe_classifier(folder: Path) -> ClassifierDescription:
    """The description of an image classifier whose file exists.

    Raises:
        CheckpointError: there is none, or it is not of our format, or its file is missing or of another kind.
    """
    path = folder / CLASSIFIER_DESCRIPTION
    if not path.is_file():
        if folder.is_file():
            refuse_foreign(folder)
            raise CheckpointError(
                f"{folder} is a file, which is never loaded as it is: run `ndc convert --classifier {folder} "
                f"models/{folder.stem}` and use that folder"
            )
        denoiser = "; it is a denoiser's folder" if (folder / DESCRIPTION_FILE).is_file() else ""
        raise CheckpointError(
            f"{folder} is no image classifier{denoiser}: {path} is missing (make one with `ndc train --classifier` or "
            "`ndc convert --classifier`)"
        )
    description = parse_classifier(path.read_bytes(), where=str(path))
    if not (folder / description.file).is_file():
        raise CheckpointError(f"{folder} is no image classifier: {folder / description.file} is missing")
    refuse_foreign(folder / description.file)
    return description


def parse_classifier(content: bytes, *, where: str) -> ClassifierDescription:
    """The description that a file holds.

    Raises:
        CheckpointError: it is not of our format; says what it is instead.
    """
    values = parse_json(content, where=where)
    try:
        if values.get("format") != CLASSIFIER_FORMAT:
            raise ValueError(f"it does not say format {CLASSIFIER_FORMAT!r}")
        lists = {name: tuple(values.get(name, ())) for name in ("image_shape", "mean", "std")}
        description = ClassifierDescription(**{**values, **lists})
        if description.kind not in KINDS:
            raise ValueError(f"unknown kind {description.kind!r}; there are: {', '.join(KINDS)}")
        if Path(description.file).name != description.file:
            raise ValueError(f"its file {description.file!r} is not in its folder")
    except (ValueError, TypeError) as error:
        raise CheckpointError(
            f"{where} does not describe an image classifier of this version of ndc: {error}"
        ) from error
    return description


def load_classifier(folder: Path, *, device: str = "cpu", execution: Execution | None = None) -> ImageNetwork:
    """Loads an image classifier for inference.

    Raises:
        CheckpointError: missing, foreign, truncated or altered files.
    """
    description = describe_classifier(folder)
    path = folder / description.file
    if file_sha256(path) != description.sha256:
        raise CheckpointError(
            f"{path} is not the file that {CLASSIFIER_DESCRIPTION} was written for (SHA-256 differs): truncated or "
            "replaced; train, convert or copy the classifier again"
        )
    return _built(path, description, execution or Execution(), device=device)


def _built(path: Path, description: ClassifierDescription, execution: Execution, *, device: str) -> ImageNetwork:
    network = KINDS[description.kind](path, description, device)
    classifier = ImageNetwork(
        execution.apply(network, device=device),
        image_shape=description.image_shape,
        num_classes=description.num_classes,
        mean=description.mean,
        std=description.std,
        network_dtype=DTYPES[execution.precision],
        launch=execution.launch(device=device),
    )
    return classifier.to(device)


def classifier_digest(folder: Path) -> str:
    """SHA-256 over the file and everything that decides how it is used (not the notes)."""
    decisive = {key: value for key, value in asdict(describe_classifier(folder)).items() if key != "notes"}
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()
