"""Converts models of other programs: their weights and architecture become one of our checkpoints."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ndc_core.checkpoints.denoisers import (
    DESCRIPTION_FILE,
    NETWORKS,
    WEIGHTS_FILE,
    describe_denoiser,
    file_sha256,
    write_checkpoint,
)
from ndc_core.conversion.diffusers_folders import CONFIG_FILE, read_unet
from ndc_core.conversion.edm_architecture import infer_arguments
from ndc_core.conversion.foreign_models import ConversionError, Model
from ndc_core.conversion.pickled_modules import SIGMA_DATA, from_preconditioned
from ndc_core.conversion.trial import MOST_NOISE_LEFT, TrialError, try_out
from ndc_core.conversion.weight_sets import take_network
from ndc_core.models.denoiser import EDMDenoiser
from ndc_core.untrusted_files.file_kinds import foreign_kind
from ndc_core.untrusted_files.pickle_values import Instance
from ndc_core.untrusted_files.torch_files import read_pickle

# A weight that all of EDM's networks have: the prefix of its name is the prefix of all names.
ANCHOR = "map_layer0.weight"


def convert(
    source: Path, out: Path, *, named: str | None = None, say: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """Writes the checkpoint folder `out` from a file or folder of another program; returns its description, which names
    the source `named` if that is given, otherwise by its file name. `say` announces each step that may take long.

    Nothing in a pickle is executed. Weights are mapped, and copied once while they are written. The network runs once
    before that.

    Raises:
        ConversionError: it is none of the known kinds, or does not fit its network, or the network does not run;
            nothing is written.
        DiffusersError: a folder of diffusers that is not understood; nothing is written.
        UnsafePickleError: it is damaged, or asks for more than data; nothing is written.
    """
    refuse_to_replace(out)
    if not source.exists():
        raise ConversionError(f"{source} does not exist")
    try:
        say(f"reading {source}")
        model = read_folder(source) if source.is_dir() else read_file(source)
        check_fit(model)
        say("running the network once")
        remarks = [*model.notes.get("remarks", ()), *_tried(model)]
    except ConversionError as error:
        raise ConversionError(f"{source}: {error}") from error
    say(f"writing {out}")
    write_checkpoint(
        out,
        model.weights,
        network=model.network,
        arguments=model.arguments,
        image_shape=model.image_shape,
        num_classes=model.arguments.get("label_dim", 0),
        sigma_data=SIGMA_DATA,
        knows_no_label=model.knows_no_label,
        notes={**model.notes, "source": named or source.name, "remarks": remarks},
    )
    return describe_denoiser(out)


def refuse_to_replace(out: Path) -> None:
    if (out / WEIGHTS_FILE).exists():
        raise ConversionError(f"{out} holds a checkpoint already, which runs may depend on; choose another folder")
    if out.exists() and not out.is_dir():
        raise ConversionError(f"{out} is a file; choose another name for the folder of the checkpoint")


def read_file(source: Path) -> Model:
    """The model of a pickle, a state dict or a training state."""
    content = _safetensors(source) if source.suffix == ".safetensors" else read_pickle(source)
    network, left = take_network(content, anchor=ANCHOR)
    notes: dict[str, Any] = {"sha256": file_sha256(source), "taken": network.place, "left": left, "remarks": []}
    if network.averaged:
        notes["remarks"].append(f"took {network.place}, the average" + (f"; left {', '.join(left)}" if left else ""))
    elif network.place:
        notes["remarks"].append(f"took {network.place}: no average (ema) stands beside it in the file")
    if isinstance(network.content, Instance):
        return from_preconditioned(network.content, notes)
    return from_state_dict(network.tensors(), notes)


def _safetensors(source: Path) -> dict[str, Tensor]:
    if kind := foreign_kind(source):
        raise ConversionError(f"not a safetensors file: it is {kind}")
    try:
        return load_file(source)
    except SafetensorError as error:
        raise ConversionError(
            f"not a safetensors file ({error}): truncated, or of another kind, as torch.save writes under .pt"
        ) from error


def read_folder(source: Path) -> Model:
    """The model of a diffusers folder."""
    if (source / DESCRIPTION_FILE).is_file():
        raise ConversionError("it is a checkpoint of ndc already")
    if not (source / CONFIG_FILE).is_file():
        inner = next((path.parent for path in sorted(source.glob(f"unet*/{CONFIG_FILE}"))), None)
        raise ConversionError(
            f"a folder without {CONFIG_FILE}; folders are read if they are a UNet2DModel of diffusers"
            + (f", as {inner} may be" if inner else "")
        )
    arguments, weights, notes = read_unet(source)
    return Model("diffusers-unet2d", arguments, weights, arguments["label_dim"] == 0, notes)


def from_state_dict(weights: dict[str, Tensor], notes: dict[str, Any]) -> Model:
    """A model from its weights alone: the architecture follows from names and shapes."""
    try:
        network, arguments = infer_arguments({name: tuple(value.shape) for name, value in weights.items()})
    except (LookupError, ValueError) as error:
        raise ConversionError(f"its names and shapes are not those of SongUNet or DhariwalUNet ({error})") from error
    notes = {**notes, "kind": "state dict", "arguments": "inferred from names and shapes"}
    notes["remarks"] = [
        *notes["remarks"],
        f"a state dict does not say how its network was preconditioned: EDM's way is assumed, sigma_data {SIGMA_DATA}",
    ]
    return Model(network, arguments, weights, arguments["label_dim"] == 0, notes)


def check_fit(model: Model) -> None:
    """Refuses weights whose names and shapes are not exactly those of the network."""
    with torch.device("meta"):
        network = _built(model)
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in model.weights.items()}
    odd = sorted(name for name in expected.keys() | shapes.keys() if expected.get(name) != shapes.get(name))
    if odd:
        name = odd[0]
        raise ConversionError(
            f"{len(odd)} tensors do not fit a {model.network} network: {name} is {shapes.get(name, 'missing')}, "
            f"should be {expected.get(name, 'absent')}"
        )


def _built(model: Model) -> nn.Module:
    try:
        return NETWORKS[model.network](**model.arguments)
    except (ArithmeticError, AssertionError, AttributeError, TypeError, ValueError, LookupError, RuntimeError) as error:
        raise ConversionError(f"its arguments do not build a {model.network} network: {error}") from error


def _filled(network: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """The network with these weights, which stay mapped where they already have the network's precision."""
    dtypes = {name: tensor.dtype for name, tensor in network.state_dict().items()}
    network.load_state_dict({name: value.to(dtypes[name]) for name, value in weights.items()}, assign=True)
    return network


def _tried(model: Model) -> list[str]:
    """Runs the network once; gives a remark if it removes less noise than trained networks do."""
    with torch.device("meta"):
        network = _filled(_built(model), model.weights)
    if any(buffer.is_meta for buffer in network.buffers()):  # buffers that are computed when the network is built
        network = _filled(_built(model), model.weights)
    denoiser = EDMDenoiser(
        network, image_shape=model.image_shape, num_classes=model.arguments.get("label_dim", 0), sigma_data=SIGMA_DATA
    )
    try:
        left = try_out(denoiser.eval())
    except TrialError as error:
        raise ConversionError(str(error)) from error
    if left <= MOST_NOISE_LEFT:
        return []
    return [
        f"it takes little noise away from plain images: {left:.0%} is left, where a network trained on CIFAR-10 leaves "
        "4 %. Unless its images are never plain, it is not trained, or its weights, schedule or outputs are not what "
        "its files say: see with `ndc diagnose` whether it tells your images apart"
    ]
