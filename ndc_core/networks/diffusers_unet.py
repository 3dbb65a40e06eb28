"""diffusers' UNet2DModel, trained on a variance-preserving schedule, in the form that EDM's preconditioning expects.

Needs the extra `diffusers`; it is imported when such a network is built, and not before.
"""

import importlib
import json
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn

SIGMA_DATA = 0.5
PREDICTIONS = ("epsilon", "v_prediction", "sample")
WEIGHTS = "diffusion_pytorch_model.safetensors"


class DiffusersError(ValueError):
    """A folder of diffusers that is no pixel-space UNet2DModel, or an installation without diffusers."""


def diffusers(name: str) -> Any:
    try:
        return getattr(importlib.import_module("diffusers"), name)
    except ImportError as error:
        raise DiffusersError("models of diffusers need it installed: pip install 'ndc[diffusers]'") from error


class LabelTable(nn.Module):
    """diffusers' table of class embeddings, mixed by a row of class weights."""

    def __init__(self, classes: int, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(classes, channels))

    def forward(self, label: Float[Tensor, "rows classes"]) -> Float[Tensor, "rows channels"]:
        return label @ self.weight


class DiffusersUNet(nn.Module):
    """The network F of Karras et al. 2022, Eq. 7, for which c_skip z + c_out F is what the U-Net says of z_0.

    The U-Net sees z / sqrt(1 + sigma^2) at the timestep whose noise level is sigma (between two timesteps by
    interpolation in ln sigma) and predicts noise, v or z_0.
    """

    def __init__(
        self,
        *,
        config: dict[str, Any],
        img_resolution: int,
        in_channels: int,
        label_dim: int,
        prediction_type: str,
        timesteps: int,
    ) -> None:
        super().__init__()
        if prediction_type not in PREDICTIONS:
            raise ValueError(f"prediction_type {prediction_type!r} is unknown; there are: {', '.join(PREDICTIONS)}")
        self.prediction_type, self.label_dim = prediction_type, label_dim
        self.unet = diffusers("UNet2DModel").from_config(config)
        if label_dim:
            self.unet.class_embedding = LabelTable(*self.unet.class_embedding.weight.shape)
        self.log_sigmas: Tensor
        self.register_buffer("log_sigmas", torch.zeros(timesteps))

    def timestep(self, log_sigma: Float[Tensor, " rows"]) -> Float[Tensor, " rows"]:
        known = self.log_sigmas.float()
        above = torch.searchsorted(known, log_sigma).clamp(1, len(known) - 1)
        share = (log_sigma - known[above - 1]) / (known[above] - known[above - 1])
        return above - 1 + share.clamp(0, 1)

    def forward(
        self,
        x: Float[Tensor, "rows c h w"],
        c_noise: Float[Tensor, " rows"],
        label: Float[Tensor, "rows classes"],
    ) -> Float[Tensor, "rows c h w"]:
        log_sigma = 4 * c_noise.float()
        sigma = log_sigma.exp().view(-1, 1, 1, 1)
        variance = sigma**2 + SIGMA_DATA**2
        z = x.float() * variance.sqrt()
        signal = (1 + sigma**2).rsqrt()
        seen = signal * z
        classes = label.to(x.dtype) if self.label_dim else None
        predicted = self.unet(seen.to(x.dtype), self.timestep(log_sigma), class_labels=classes).sample.float()
        clean = {
            "epsilon": lambda: z - sigma * predicted,
            "v_prediction": lambda: signal * seen - sigma * signal * predicted,
            "sample": lambda: predicted,
        }[self.prediction_type]()
        c_skip, c_out = SIGMA_DATA**2 / variance, sigma * SIGMA_DATA / variance.sqrt()
        return ((clean - c_skip * z) / c_out).to(x.dtype)


def read_unet(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Any]]:
    """Arguments, weights and notes of a folder with a UNet2DModel, and its scheduler beside it or in a subfolder.

    Raises:
        DiffusersError: it is another model, or one of latents; no scheduler says what its timesteps mean.
    """
    config = json.loads((folder / "config.json").read_bytes())
    if config.get("_class_name") != "UNet2DModel":
        raise DiffusersError(f"{folder} holds a {config.get('_class_name')}, not a UNet2DModel")
    channels = config.get("in_channels", 3)
    if channels not in (1, 3) or config.get("out_channels", 3) != channels:
        raise DiffusersError(f"{folder} holds a model of latents, or one that predicts more than an image")
    schedules = [
        place / "scheduler_config.json" for place in (folder, folder / "scheduler", folder.parent / "scheduler")
    ]
    schedule = next((path for path in schedules if path.is_file()), None)
    if schedule is None:
        raise DiffusersError(f"{folder} has no scheduler_config.json, which says what a timestep means; put it there")
    settings = json.loads(schedule.read_bytes())
    kept = diffusers("DDPMScheduler").from_config(settings).alphas_cumprod.double()
    if not (folder / WEIGHTS).is_file():
        raise DiffusersError(f"{folder / WEIGHTS} is missing; save the model with safe_serialization")
    weights = {f"unet.{name}": tensor for name, tensor in load_file(folder / WEIGHTS).items()}
    weights["log_sigmas"] = (((1 - kept) / kept).log() / 2).float()
    arguments = {
        "config": {key: value for key, value in config.items() if not key.startswith("_")},
        "img_resolution": config["sample_size"],
        "in_channels": channels,
        "label_dim": config.get("num_class_embeds") or 0,
        "prediction_type": settings.get("prediction_type", "epsilon"),
        "timesteps": len(kept),
    }
    return arguments, weights, {"kind": "UNet2DModel", "scheduler": settings.get("_class_name")}
