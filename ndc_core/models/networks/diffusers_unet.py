"""diffusers' UNet2DModel, trained on a variance-preserving schedule, in the form that EDM's preconditioning expects.

Needs the extra `diffusers`; it is imported when such a network is built, and not before.
"""

import importlib
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

SIGMA_DATA = 0.5
PREDICTIONS = ("epsilon", "v_prediction", "sample")


class DiffusersError(ValueError):
    """A folder of diffusers that is not understood, or an installation without diffusers."""


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
    """The network F of Karras et al. 2022, Eq. 7, for which c_skip z + c_out F is the U-Net's estimate of z_0.

    The U-Net sees z / sqrt(1 + sigma^2) at the timestep whose noise level is sigma (between two timesteps by
    interpolation in ln sigma) and predicts noise, v or z_0.
    """

    def __init__(
        self,
        *,
        config: dict[str, Any],
        img_resolution: int | Sequence[int],
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
