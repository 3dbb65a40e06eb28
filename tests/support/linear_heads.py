"""Heads that are linear in the features of a tiny network of EDM's, with weights that tell classes apart."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ndc_core.checkpoints.denoisers import save_denoiser
from ndc_core.models.linear_heads import LinearHeadsDenoiser
from ndc_core.models.networks.linear_heads import LinearHeadsNetwork

SIDE, CLASSES, FEATURES = 8, 5, 6
OF_EDM: dict[str, Any] = {"img_resolution": SIDE, "in_channels": 3, "out_channels": 3, "label_dim": CLASSES}
ARGUMENTS: dict[str, dict[str, Any]] = {
    "edm-song": {**OF_EDM, "model_channels": 8, "channel_mult": [1, 1], "num_blocks": 1, "attn_resolutions": []},
    "edm-adm": {**OF_EDM, "model_channels": 64, "channel_mult": [1, 1], "num_blocks": 1, "attn_resolutions": [4]},
    "edm2": {
        "img_resolution": SIDE,
        "img_channels": 3,
        "label_dim": CLASSES,
        "model_channels": 64,
        "channel_mult": [1, 1],
        "num_blocks": 1,
        "attn_resolutions": [4],
    },
}


def linear_heads(trunk: str = "edm-song", *, seed: int = 0, spread: float = 0.1) -> LinearHeadsDenoiser:
    torch.manual_seed(seed)
    network = LinearHeadsNetwork(trunk=trunk, arguments=ARGUMENTS[trunk], features=FEATURES)
    if hasattr(network.trunk, "out_gain"):
        torch.nn.init.ones_(network.trunk.out_gain)
    shared = torch.randn(1, *network.heads.shape[1:]) / FEATURES
    network.heads.data = shared + spread * torch.randn(network.heads.shape)
    network.requires_grad_(False)
    return LinearHeadsDenoiser(network, image_shape=(3, SIDE, SIDE), num_classes=CLASSES).eval()


def saved(folder: Path, trunk: str = "edm-song") -> Path:
    arguments = {"trunk": trunk, "arguments": ARGUMENTS[trunk], "features": FEATURES}
    save_denoiser(folder, linear_heads(trunk), network="linear-heads", arguments=arguments, notes={})
    return folder


class Explicit:
    """The same heads, each one's image made."""

    def __init__(self, denoiser: LinearHeadsDenoiser) -> None:
        self.image_shape, self.num_classes, self.denoiser = denoiser.image_shape, denoiser.num_classes, denoiser

    def __call__(self, z: Tensor, sigma_model: Tensor, label: Tensor) -> Tensor:
        outputs: Tensor = self.denoiser(z, sigma_model, label)
        return outputs

    def every_class(self, z: Tensor, sigma_model: Tensor) -> Tensor:
        return self.denoiser.every_class(z, sigma_model)
