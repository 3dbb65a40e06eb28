"""Networks before their training: the constructor's arguments for given images and classes, and the first weights."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ndc_core.checkpoints.denoisers import NETWORKS

SMALL = ("small", "small-heads")
OPTIONS = ("channel_mult", "num_blocks", "attn_resolutions")  # of the others; left out, the network's own defaults
CHANNELS_STEP = {"small": 8, "small-heads": 8, "edm-song": 8, "edm-adm": 64, "edm2": 64}  # norms' groups, heads
TRAINABLE = tuple(CHANNELS_STEP)
LAST_LAYERS = ("conv1", "proj", "aux_conv", "out_conv")  # of the residual blocks and of the network
SMALL_SCALE = 1e-5


def network_of(
    network: str,
    *,
    image_shape: tuple[int, int, int],
    num_classes: int,
    channels: int,
    options: Mapping[str, Any],
) -> nn.Module:
    """A network with its first weights, from torch's own random numbers.

    Raises:
        ValueError: there is no such network, or it is not one for these images.
    """
    arguments = arguments_of(
        network, image_shape=image_shape, num_classes=num_classes, channels=channels, options=options
    )
    try:
        built = NETWORKS[network](**arguments)
    except ValueError as error:
        raise ValueError(f"{arguments} make no network {network}: {error}") from error
    if network in ("edm-song", "edm-adm"):
        initialise(built)
    return built


def arguments_of(
    network: str,
    *,
    image_shape: tuple[int, int, int],
    num_classes: int,
    channels: int,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """What the network's constructor takes, and a checkpoint keeps.

    Raises:
        ValueError: as `network_of`.
    """
    refuse_unknown(network)
    if channels < 1 or channels % CHANNELS_STEP[network]:
        raise ValueError(f"{network} takes a multiple of {CHANNELS_STEP[network]} channels, not {channels}")
    if unknown := [name for name in options if network in SMALL or name not in OPTIONS]:
        raise ValueError(f"the network {network} has no {' or '.join(unknown)}")
    count, height, width = image_shape
    if network in SMALL:
        refuse_indivisible(network, image_shape, halvings=1)
        return {"image_channels": count, "num_classes": num_classes, "channels": channels}
    if height != width:
        raise ValueError(f"{network} takes square images, not {height} x {width}; declare a resize")
    sized = {"img_resolution": height, "label_dim": num_classes, "model_channels": channels, **options}
    levels = len(options.get("channel_mult", (1, 2, 3, 4)))
    refuse_indivisible(network, image_shape, halvings=levels - 1)
    if network == "edm2":
        return {"img_channels": count, **sized}
    return {"in_channels": count, "out_channels": count, **sized}


def refuse_unknown(network: str) -> None:
    """Raises ValueError for an unknown network, or one that can only be converted."""
    if network not in TRAINABLE:
        raise ValueError(f"network {network!r} is not trained here; there are: {', '.join(TRAINABLE)}")


def refuse_indivisible(network: str, image_shape: tuple[int, int, int], *, halvings: int) -> None:
    """Raises ValueError for sides that cannot be halved that often."""
    _, height, width = image_shape
    factor = 2**halvings
    if height % factor or width % factor:
        raise ValueError(
            f"{network} halves images {halvings} times, and {height} x {width} cannot be: sides must be multiples of "
            f"{factor}; take fewer levels (--channel-mult) or resize the images"
        )


@torch.no_grad()
def initialise(network: nn.Module) -> None:
    """EDM's first weights for DDPM++ (Karras et al. 2022, appendix F): Xavier's, zero biases, and almost nothing out
    of each residual branch and of the last layer."""
    for name, weight in network.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(weight)
        elif weight.ndim >= 2:
            nn.init.xavier_uniform_(weight)
            if name.split(".")[-2].endswith(LAST_LAYERS):
                weight.mul_(SMALL_SCALE)
