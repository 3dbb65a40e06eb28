"""Denoisers on disk: a folder with `denoiser.safetensors` (weights) and `denoiser.json` (how to build them)."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ndc_core.models.class_heads import HeadsDenoiser
from ndc_core.models.denoiser import EDMDenoiser
from ndc_core.models.execution import DTYPES, Execution
from ndc_core.models.linear_heads import LinearHeadsDenoiser
from ndc_core.models.networks.diffusers_unet import DiffusersUNet
from ndc_core.models.networks.edm2 import EDM2UNet
from ndc_core.models.networks.edm_adm import DhariwalUNet
from ndc_core.models.networks.edm_song import SongUNet
from ndc_core.models.networks.linear_heads import LinearHeadsNetwork
from ndc_core.models.networks.small import SmallHeadsUNet, SmallUNet
from ndc_core.untrusted_files.file_kinds import foreign_kind, text_kind

FORMAT = "ndc-denoiser/1"
WEIGHTS_FILE, DESCRIPTION_FILE = "denoiser.safetensors", "denoiser.json"

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "small": SmallUNet,
    "small-heads": SmallHeadsUNet,
    "edm-song": SongUNet,
    "edm-adm": DhariwalUNet,
    "edm2": EDM2UNet,
    "diffusers-unet2d": DiffusersUNet,
    "linear-heads": LinearHeadsNetwork,
}
# The class around a network, where it is not EDMDenoiser itself.
DENOISERS: dict[str, type[EDMDenoiser]] = {"small-heads": HeadsDenoiser, "linear-heads": LinearHeadsDenoiser}


class CheckpointError(ValueError):
    """A folder that is not one of our checkpoints, or a damaged one."""


def save_denoiser(
    folder: Path, denoiser: EDMDenoiser, *, network: str, arguments: dict[str, Any], notes: dict[str, Any]
) -> None:
    """Writes a denoiser as a checkpoint: `arguments` build its network, `notes` (training) are kept for readers."""
    write_checkpoint(
        folder,
        denoiser.network.state_dict(),
        network=network,
        arguments=arguments,
        image_shape=denoiser.image_shape,
        num_classes=denoiser.num_classes,
        sigma_data=denoiser.sigma_data,
        knows_no_label=denoiser.knows_no_label,
        notes=notes,
    )


def write_checkpoint(
    folder: Path,
    weights: Mapping[str, Tensor],
    *,
    network: str,
    arguments: dict[str, Any],
    image_shape: tuple[int, int, int],
    num_classes: int,
    sigma_data: float,
    knows_no_label: bool,
    notes: dict[str, Any],
) -> None:
    """Writes weights with all that is needed to use them; the weights' file comes last, so half is never used."""
    partial = folder / f"{WEIGHTS_FILE}.partial"
    with whole_or_nothing(folder, partial.name, DESCRIPTION_FILE):
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, partial)
        description = {
            "format": FORMAT,
            "network": network,
            "arguments": arguments,
            "image_shape": list(image_shape),
            "num_classes": num_classes,
            "sigma_data": sigma_data,
            "knows_no_label": knows_no_label,
            "weights_sha256": file_sha256(partial),
            "notes": notes,
        }
        (folder / DESCRIPTION_FILE).write_text(json.dumps(description, indent=2) + "\n")
        partial.replace(folder / WEIGHTS_FILE)


@contextmanager
def whole_or_nothing(folder: Path, *names: str) -> Iterator[None]:
    """A folder to write these files into; any error removes them again, and the folder if it is new."""
    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for name in names:
            (folder / name).unlink(missing_ok=True)
        if new:
            folder.rmdir()
        raise


def file_sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def refuse_foreign(path: Path) -> None:
    """Refuses what a failed clone or download leaves in the place of a checkpoint's file.

    Raises:
        CheckpointError: it is a git-lfs pointer, a web page, empty, or the like.
    """
    if kind := foreign_kind(path):
        raise CheckpointError(f"{path} is {kind}")


def describe_denoiser(folder: Path) -> dict[str, Any]:
    """The description of a checkpoint whose weights exist.

    Raises:
        CheckpointError: there is none, or it is not of our format, or its weights are missing or of another kind.
    """
    source = Path(folder)
    path, weights = source / DESCRIPTION_FILE, source / WEIGHTS_FILE
    if not path.is_file():
        _refuse_raw(source)
        raise CheckpointError(
            f"{folder} is no checkpoint: {path} is missing (make one with `ndc train` or `ndc convert`)"
        )
    description = parse_description(path.read_bytes(), where=str(path))
    if not weights.is_file():
        raise CheckpointError(f"{folder} is no checkpoint: {weights} is missing")
    refuse_foreign(weights)
    return description


def _refuse_raw(source: Path) -> None:
    """Says what to do with a model that was not converted."""
    if source.is_file():
        refuse_foreign(source)
        if (source.parent / DESCRIPTION_FILE).is_file():
            raise CheckpointError(f"{source} is a file of a checkpoint: name its folder, {source.parent}")
    if source.is_file() or (source / "config.json").is_file():
        raise CheckpointError(
            f"{source} is a model of another program, which is never loaded as it is (a pickle runs code): "
            f"run `ndc convert {source} models/{source.stem}` and use that folder"
        )


def parse_description(content: bytes, *, where: str) -> dict[str, Any]:
    """The description that a file holds.

    Raises:
        CheckpointError: it is not of our format; says what it is instead.
    """
    description = parse_json(content, where=where)
    if description.get("format") != FORMAT:
        raise CheckpointError(f"{where} does not say format {FORMAT!r}: not a checkpoint of this version of ndc")
    return description


def parse_json(content: bytes, *, where: str) -> dict[str, Any]:
    """Raises CheckpointError for text that is not JSON; JSON that is not an object counts as empty."""
    try:
        values = json.loads(content)
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
        kind = None if content.lstrip().startswith(b"{") else text_kind(content)
        raise CheckpointError(
            f"{where} is {kind or f'not JSON ({error}): damaged, or not a checkpoint of ndc'}"
        ) from error
    return values if isinstance(values, dict) else {}


def load_denoiser(folder: str | Path, *, device: str = "cpu", execution: Execution | None = None) -> EDMDenoiser:
    """Loads a checkpoint for inference. Nothing in it is executed.

    Raises:
        CheckpointError: missing, foreign, truncated or altered files, or weights that do not fit the network.
    """
    folder = Path(folder)
    description = describe_denoiser(folder)
    network = _build(folder, description)
    weights = _weights(folder, description, network)
    try:
        network.load_state_dict(weights, strict=True)
    except ValueError as error:
        raise CheckpointError(f"{folder / WEIGHTS_FILE} does not fit the network: {error}") from error
    execution = execution or Execution()
    denoiser = DENOISERS.get(description["network"], EDMDenoiser)
    return denoiser(
        execution.apply(network, device=device),
        image_shape=tuple(description["image_shape"]),
        num_classes=description["num_classes"],
        sigma_data=description["sigma_data"],
        # Checkpoints from before this key were all trained by `ndc train`, with label dropout.
        knows_no_label=description.get("knows_no_label", True),
        network_dtype=DTYPES[execution.precision],
        launch=execution.launch(device=device),
    ).eval()


def _build(folder: Path, description: dict[str, Any]) -> nn.Module:
    name = description.get("network")
    if name not in NETWORKS:
        raise CheckpointError(f"{folder}: unknown network {name!r}; there are: {', '.join(NETWORKS)}")
    try:
        return NETWORKS[name](**description["arguments"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / DESCRIPTION_FILE} does not describe a {name} network: {error}") from error


def _weights(folder: Path, description: dict[str, Any], network: nn.Module) -> dict[str, torch.Tensor]:
    path = folder / WEIGHTS_FILE
    if file_sha256(path) != description.get("weights_sha256"):
        raise CheckpointError(
            f"{path} is not the file that {DESCRIPTION_FILE} was written for (SHA-256 differs): "
            "truncated or replaced; train or copy the checkpoint again"
        )
    try:
        weights = load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a safetensors file: {error}") from error
    expected = {name: tensor.shape for name, tensor in network.state_dict().items()}
    shapes = {name: tensor.shape for name, tensor in weights.items()}
    if shapes != expected:
        odd = sorted(set(expected.items()) ^ set(shapes.items()))
        raise CheckpointError(f"{path} does not fit the network: {odd[0][0]} is missing, unexpected or misshapen")
    return weights


def denoiser_digest(folder: str | Path) -> str:
    """SHA-256 over the weights and everything that decides how they are used (not the notes)."""
    description = describe_denoiser(Path(folder))
    decisive = {key: value for key, value in description.items() if key != "notes"}
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()
