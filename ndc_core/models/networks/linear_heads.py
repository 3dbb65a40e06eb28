"""Class heads on EDM's networks: one pass gives the features that the outputs of all classes are linear in."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ndc_core.models.networks.edm2 import EDM2UNet
from ndc_core.models.networks.edm_adm import DhariwalUNet
from ndc_core.models.networks.edm_song import SongUNet

TRUNKS: dict[str, type[nn.Module]] = {"edm-song": SongUNet, "edm-adm": DhariwalUNet, "edm2": EDM2UNet}


class LinearHeadsNetwork(nn.Module):
    """One of EDM's networks, the trunk, whose last convolution gives features instead of an image, and for each class,
    and last for no class, the matrix that turns them into an image.

    Called as F(x, c_noise), it gives the features phi. The output of head y is `heads[y]` times phi and a constant 1.
    `arguments` are those of the trunk as a denoiser of its own, with a label, which is always `label` here.

    Raises:
        ValueError: there is no such trunk, it has no classes, or there are no features.
    """

    def __init__(self, *, trunk: str, arguments: dict[str, Any], features: int) -> None:
        super().__init__()
        if trunk not in TRUNKS:
            raise ValueError(f"class heads do not fit a network {trunk!r}; there are: {', '.join(TRUNKS)}")
        if arguments.get("label_dim", 0) < 2 or features < 1:
            raise ValueError(
                f"heads of {arguments.get('label_dim', 0)} classes on {features} features cannot tell classes apart"
            )
        self.num_classes: int = arguments["label_dim"]
        self.image_channels: int = arguments["in_channels" if "in_channels" in arguments else "img_channels"]
        self.trunk = TRUNKS[trunk](**{**arguments, "out_channels": features})
        self.heads = nn.Parameter(torch.zeros(self.num_classes + 1, self.image_channels, features + 1))
        self.label: Tensor
        self.register_buffer("label", torch.zeros(self.num_classes))

    def forward(
        self, x: Float[Tensor, "rows c h w"], c_noise: Float[Tensor, " rows"]
    ) -> Float[Tensor, "rows features h w"]:
        features: Tensor = self.trunk(x, c_noise, self.label.expand(len(x), -1))
        return features
