"""Folders that diffusers writes: the configuration, weights and schedule of a UNet2DModel, if all are understood."""

import inspect
import json
import re
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ndc_core.conversion.diffusers_schedules import SCHEDULER_FILE, read_schedule
from ndc_core.conversion.foreign_models import ConversionError
from ndc_core.conversion.weight_sets import take_network
from ndc_core.models.networks.diffusers_unet import DiffusersError, diffusers
from ndc_core.untrusted_files.file_kinds import foreign_kind, text_kind
from ndc_core.untrusted_files.torch_files import read_pickle

CONFIG_FILE = "config.json"
WEIGHTS = "diffusion_pytorch_model"
SUFFIXES = (".safetensors", ".bin")
SHARDS = ".index.json"
# A weight that every UNet2DModel has.
ANCHOR = "conv_in.weight"
# Names of attention layers in diffusers before version 0.18.
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
OLD_NAME = re.compile(r"(.*\battentions\.\d+\.)(query|key|value|proj_attn)\.(weight|bias)")


def read_unet(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Any]]:
    """Arguments, weights and notes of a folder with a UNet2DModel, and its scheduler beside it or in a subfolder.

    Raises:
        DiffusersError: it is another model, a model of latents, or something in it is not understood.
    """
    parameters = inspect.signature(diffusers("UNet2DModel").__init__).parameters
    config = read_json(folder / CONFIG_FILE)
    if config.get("_class_name") != "UNet2DModel":
        raise DiffusersError(f"{folder} holds a {config.get('_class_name')}, not a UNet2DModel")
    channels = config.get("in_channels", 3)
    if channels not in (1, 3) or config.get("out_channels", 3) != channels:
        raise DiffusersError(f"{folder} holds a model of latents, or one that predicts more than an image")
    try:
        if unknown := [key for key, value in config.items() if key[:1] != "_" and key not in parameters and value]:
            raise ValueError(
                f"the installed diffusers does not know {', '.join(unknown)}, without which it would build another "
                "network: install the version that saved it"
            )
        _refuse_what_is_not_understood(config)
        size = _sides(config.get("sample_size"))
    except ValueError as error:
        raise DiffusersError(f"{folder / CONFIG_FILE}: {error}") from error
    schedule = _schedule_of(folder)
    log_sigmas, prediction_type, named = read_schedule(read_json(schedule), schedule)
    weights, notes = _weights(folder)
    arguments = {
        "config": {key: value for key, value in config.items() if not key.startswith("_")},
        "img_resolution": size,
        "in_channels": channels,
        "label_dim": config.get("num_class_embeds") or 0,
        "prediction_type": prediction_type,
        "timesteps": len(log_sigmas),
    }
    notes = {**notes, "kind": "UNet2DModel", "scheduler": named}
    notes["remarks"] = [
        f"its schedule is that of {schedule} ({named}, {len(log_sigmas):,} steps), it predicts {prediction_type}",
        *notes["remarks"],
    ]
    return arguments, {**weights, "log_sigmas": log_sigmas}, notes


def read_json(path: Path) -> dict[str, Any]:
    """Raises DiffusersError for content that is not a JSON object."""
    content = path.read_bytes()
    try:
        values = json.loads(content)
    except ValueError as error:
        kind = None if content.lstrip().startswith(b"{") else text_kind(content)
        raise DiffusersError(f"{path} is {kind or f'not JSON ({error}): damaged'}") from error
    if not isinstance(values, dict):
        raise DiffusersError(f"{path} holds a {type(values).__name__}, not a configuration")
    return values


def _refuse_what_is_not_understood(config: dict[str, Any]) -> None:
    if config.get("class_embed_type") is not None:
        raise ValueError(
            f"class_embed_type is {config['class_embed_type']!r}: the network takes numbers for a class, and the "
            "file does not say how many classes there are; only a table of num_class_embeds rows is understood"
        )
    embedding = config.get("time_embedding_type", "positional")
    if embedding != "positional":
        raise ValueError(
            f"time_embedding_type is {embedding!r}: the network does not take timesteps between which noise levels can "
            "be interpolated; only 'positional' is understood"
        )
    if config.get("center_input_sample"):
        raise ValueError("center_input_sample is set: the network's images are not in [-1, 1], as they must be here")


def _sides(size: Any) -> int | list[int]:
    sides = size if isinstance(size, list | tuple) else [size, size]
    if len(sides) != 2 or not all(type(side) is int and side > 0 for side in sides):
        raise ValueError(
            f"sample_size is {json.dumps(size)}, which does not say the size of its images: write there the one that "
            "it was trained on, as 32 or [32, 48] (height, width)"
        )
    return sides[0] if sides[0] == sides[1] else list(sides)


def _schedule_of(folder: Path) -> Path:
    places = [folder / SCHEDULER_FILE, folder / "scheduler" / SCHEDULER_FILE]
    places.append(folder.absolute().parent / "scheduler" / SCHEDULER_FILE)
    schedule = next((path for path in places if path.is_file()), None)
    if schedule is None:
        raise DiffusersError(
            f"{folder} has no {SCHEDULER_FILE}, which says what a timestep means: put the scheduler that it was "
            f"trained with there, as scheduler/{SCHEDULER_FILE}"
        )
    return schedule


def _weights(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights under the names of our network, and notes on where they came from."""
    path = _weights_file(folder)
    try:
        network, left = take_network(_content(path), anchor=ANCHOR)
        tensors = network.tensors()
    except (ConversionError, SafetensorError) as error:
        raise DiffusersError(f"{path}: {error}") from error
    weights = {f"unet.{_new_name(name)}": tensor for name, tensor in tensors.items()}
    remarks = [f"took {path.name}"] if path.name != f"{WEIGHTS}.safetensors" else []
    if left:
        remarks.append(f"took {network.place or 'its own weights'}; left {', '.join(left)}")
    average = folder.absolute().parent / f"{folder.absolute().name}_ema"
    if average.is_dir():
        remarks.append(f"these are the raw weights: {average} beside it has their average, which one samples with")
    return weights, {"taken": path.name, "left": left, "remarks": remarks}


def _content(path: Path) -> Any:
    if kind := foreign_kind(path):
        raise ConversionError(f"it is {kind}")
    return load_file(path) if path.suffix == ".safetensors" else read_pickle(path)


def _weights_file(folder: Path) -> Path:
    """The file of weights: safetensors before a pickle; a variant, such as half precision, if it is the only one."""
    for suffix in SUFFIXES:
        if (folder / f"{WEIGHTS}{suffix}").is_file():
            return folder / f"{WEIGHTS}{suffix}"
    if any(folder.glob(f"{WEIGHTS}*{SHARDS}")):
        raise DiffusersError(f"{folder} has its weights in several files: save it with a larger max_shard_size")
    variants = {suffix: sorted(folder.glob(f"{WEIGHTS}.*{suffix}")) for suffix in SUFFIXES}
    for suffix, paths in variants.items():
        if len(paths) == 1:
            return paths[0]
        if paths:
            names = ", ".join(path.name for path in paths)
            raise DiffusersError(
                f"{folder} has the variants {names}: rename the one that you mean to {WEIGHTS}{suffix}"
            )
    raise DiffusersError(f"{folder / WEIGHTS}.safetensors is missing; save the model with safe_serialization")


def _new_name(name: str) -> str:
    if old := OLD_NAME.fullmatch(name):
        return f"{old[1]}{OLD_ATTENTION[old[2]]}.{old[3]}"
    return name
