"""Takes in models of other programs: their weights and architecture become a checkpoint of ours."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ndc_core.architecture import infer_arguments
from ndc_core.checkpoints import NETWORKS, WEIGHTS_FILE, describe_denoiser, file_sha256, write_checkpoint
from ndc_core.networks.diffusers_unet import read_unet
from ndc_core.pickled_values import Instance, StoredTensor
from ndc_core.torch_files import read_pickle

SIGMA_DATA = 0.5
TRAINING_ONLY = ("dropout", "label_dropout")
# In the order in which they are looked for: an average is what one samples with, `net` are the raw weights.
HOLDERS = ("ema", "net", "model", "state_dict")
# The order of arguments that EDM2 gives without their names.
PLACED = dict.fromkeys(("Precond", "UNet"), ("img_resolution", "img_channels", "label_dim"))
KINDS = {"SongUNet": "edm-song", "DhariwalUNet": "edm-adm", "UNet": "edm2"}


class ConversionError(ValueError):
    """A file that cannot become a checkpoint: what is wrong with it."""


@dataclass(frozen=True)
class Model:
    """What was found in a file: a network of ours by name, its arguments and weights, and where they came from."""

    network: str
    arguments: dict[str, Any]
    weights: Mapping[str, Tensor]
    knows_no_label: bool
    notes: dict[str, Any]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        channels = self.arguments["img_channels" if "img_channels" in self.arguments else "in_channels"]
        side = self.arguments["img_resolution"]
        return channels, side, side


def convert(source: Path, out: Path) -> dict[str, Any]:
    """Writes the checkpoint folder `out` from a file or folder of another program; returns its description.

    Nothing in a pickle is executed. Weights are mapped, and copied once while they are written.

    Raises:
        ConversionError: it is none of the known kinds, or does not fit its network; nothing is written.
        UnsafePickleError: it is damaged, or asks for more than data; nothing is written.
    """
    if (out / WEIGHTS_FILE).exists():
        raise ConversionError(f"{out} holds a checkpoint already, which runs may depend on; choose another folder")
    if not source.exists():
        raise ConversionError(f"{source} does not exist")
    try:
        model = read_folder(source) if source.is_dir() else read_file(source)
        check_fit(model)
    except ConversionError as error:
        raise ConversionError(f"{source}: {error}") from error
    write_checkpoint(
        out,
        model.weights,
        network=model.network,
        arguments=model.arguments,
        image_shape=model.image_shape,
        num_classes=model.arguments.get("label_dim", 0),
        sigma_data=SIGMA_DATA,
        knows_no_label=model.knows_no_label,
        notes={**model.notes, "source": source.name},
    )
    return describe_denoiser(out)


def read_file(source: Path) -> Model:
    """The model of a pickle, a state dict or a training state."""
    if source.suffix == ".safetensors":
        try:
            found: Any = load_file(source)
        except SafetensorError as error:
            raise ConversionError(f"not a safetensors file ({error}): truncated, or of another kind") from error
    else:
        found = read_pickle(source)
    notes: dict[str, Any] = {"sha256": file_sha256(source)}
    if not isinstance(found, dict):
        raise ConversionError(f"it holds a {type(found).__name__}, not a model")
    if not _is_state_dict(found):
        holder = next((name for name in HOLDERS if isinstance(found.get(name), dict | Instance)), None)
        if holder is None:
            raise ConversionError(
                f"none of {', '.join(HOLDERS)} is in it; it has {', '.join(map(str, list(found)[:8]))}"
            )
        if holder == "net":
            notes["weights"] = "raw, as training left them: the file has no average (ema)"
        found = found[holder]
        notes["holder"] = holder
    if isinstance(found, Instance):
        return from_preconditioned(found, notes)
    return from_state_dict({str(name): _tensor(value) for name, value in found.items()}, notes)


def read_folder(source: Path) -> Model:
    """The model of a diffusers folder."""
    if not (source / "config.json").is_file():
        raise ConversionError("a folder without config.json; folders are read if they are a UNet2DModel of diffusers")
    try:
        arguments, weights, notes = read_unet(source)
    except (KeyError, json.JSONDecodeError, SafetensorError) as error:
        raise ConversionError(f"not a whole folder of diffusers ({error})") from error
    return Model("diffusers-unet2d", arguments, weights, arguments["label_dim"] == 0, notes)


def _is_state_dict(found: dict[Any, Any]) -> bool:
    return bool(found) and all(isinstance(value, StoredTensor | Tensor) for value in found.values())


def _tensor(value: Any) -> Tensor:
    if not isinstance(value, StoredTensor | Tensor):
        raise ConversionError(f"its state dict holds a {type(value).__name__} among the tensors")
    return value.tensor() if isinstance(value, StoredTensor) else value


def from_state_dict(weights: dict[str, Tensor], notes: dict[str, Any]) -> Model:
    """A model of which only weights are known: the architecture follows from names and shapes."""
    weights = {name.removeprefix("module.").removeprefix("model."): value for name, value in weights.items()}
    try:
        network, arguments = infer_arguments({name: tuple(value.shape) for name, value in weights.items()})
    except (LookupError, ValueError) as error:
        raise ConversionError(f"its names and shapes are not those of SongUNet or DhariwalUNet ({error})") from error
    notes = {**notes, "kind": "state dict", "arguments": "inferred from names and shapes"}
    return Model(network, arguments, weights, arguments["label_dim"] == 0, notes)


def from_preconditioned(found: Instance, notes: dict[str, Any]) -> Model:
    """A model of EDM's or EDM2's, with its constructors' arguments."""
    inner, prefix = {"EDMPrecond": ("model", "model."), "Precond": ("unet", "unet.")}.get(found.class_name, ("", ""))
    module = _modules(found).get(inner)
    if not isinstance(module, Instance) or module.class_name not in KINDS:
        raise ConversionError(
            f"it holds a {found.class_name} around {getattr(module, 'class_name', 'nothing known')}; there are: "
            "EDMPrecond around SongUNet or DhariwalUNet, and EDM2's Precond around UNet"
        )
    wrapper, given = (_arguments(one) for one in (found, module))
    if wrapper.get("img_channels", given.get("img_channels")) not in (1, 3):
        raise ConversionError(
            "a model of latents, not of pixels: a certificate speaks of pixels, and the encoder in front of the model "
            "can itself be attacked"
        )
    sigma_data = wrapper.get("sigma_data", SIGMA_DATA)
    if sigma_data != SIGMA_DATA:
        raise ConversionError(f"sigma_data is {sigma_data}; the grids' weights here are for {SIGMA_DATA}")
    arguments = {name: _plain(value) for name, value in given.items() if name not in TRAINING_ONLY}
    dropped = given.get("label_dropout", wrapper.get("label_dropout", 0)) or 0
    weights = {
        name.removeprefix(prefix): _tensor(value) for name, value in flatten(found).items() if name.startswith(prefix)
    }
    knows_no_label = not arguments.get("label_dim") or dropped > 0
    notes = {**notes, "kind": found.class_name, "class": module.class_name}
    return Model(KINDS[module.class_name], arguments, weights, knows_no_label, notes)


def _modules(module: Instance) -> dict[str, Any]:
    found = module.state.get("_modules", {})
    return found if isinstance(found, dict) else {}


def _arguments(module: Instance) -> dict[str, Any]:
    given, placed = module.state.get("_init_kwargs"), module.state.get("_init_args", ())
    names = PLACED.get(module.class_name, ())
    if not isinstance(given, dict) or not isinstance(placed, list | tuple) or len(placed) > len(names):
        raise ConversionError(f"its {module.class_name} does not say which arguments it was made with")
    return {**dict(zip(names, placed, strict=False)), **given}


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if not isinstance(value, str | int | float | None):
        raise ConversionError(f"an argument of its network is a {type(value).__name__}")
    return value


def flatten(module: Instance) -> dict[str, StoredTensor]:
    """Parameters and buffers of a module and all below it, under the names of a state dict.

    Raises:
        ConversionError: a module occurs twice, as it does in a tree that would take for ever to walk.
    """
    found: dict[str, StoredTensor] = {}
    seen: set[int] = set()
    ahead = [("", module)]
    while ahead:
        prefix, module = ahead.pop()
        if id(module) in seen:
            raise ConversionError(f"its module {prefix.rstrip('.')} occurs twice")
        seen.add(id(module))
        skipped = module.state.get("_non_persistent_buffers_set") or ()
        for kind in ("_parameters", "_buffers"):
            tensors = module.state.get(kind)
            for name, value in tensors.items() if isinstance(tensors, dict) else ():
                if isinstance(value, StoredTensor) and name not in skipped:
                    found[f"{prefix}{name}"] = value
        children = _modules(module).items()
        ahead += [(f"{prefix}{name}.", child) for name, child in children if isinstance(child, Instance)]
    return found


def check_fit(model: Model) -> None:
    """Refuses weights whose names and shapes are not exactly those of the network."""
    build: Callable[..., Any] = NETWORKS[model.network]
    try:
        with torch.device("meta"):
            expected = {name: tuple(tensor.shape) for name, tensor in build(**model.arguments).state_dict().items()}
    except (TypeError, ValueError, LookupError, RuntimeError) as error:
        raise ConversionError(f"its arguments do not build a {model.network} network: {error}") from error
    found = {name: tuple(tensor.shape) for name, tensor in model.weights.items()}
    odd = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if odd:
        name = odd[0]
        raise ConversionError(
            f"{len(odd)} tensors do not fit a {model.network} network: {name} is {found.get(name, 'missing')}, "
            f"should be {expected.get(name, 'absent')}"
        )
