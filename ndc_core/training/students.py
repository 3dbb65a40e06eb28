"""Networks with class heads before their distillation: they start as the teacher without a label, where they can."""

from typing import Any

import torch
from torch import nn

from ndc_core.models.class_heads import HeadsDenoiser
from ndc_core.models.denoiser import Denoiser, EDMDenoiser
from ndc_core.models.linear_heads import LinearHeadsDenoiser
from ndc_core.models.networks.linear_heads import LinearHeadsNetwork
from ndc_core.models.networks.small import SmallHeadsUNet, SmallUNet


def small_student(teacher: Denoiser, *, channels: int, seed: int) -> HeadsDenoiser:
    """The small network with heads for the classes of any teacher."""
    torch.manual_seed(seed)  # the network's initialisation has no generator argument
    classes, image_shape = teacher.num_classes, teacher.image_shape
    network = SmallHeadsUNet(image_channels=image_shape[0], num_classes=classes, channels=channels)
    if isinstance(teacher, EDMDenoiser):
        start_from(network, teacher.network)
    return HeadsDenoiser(network, image_shape=image_shape, num_classes=classes)


def start_from(network: SmallHeadsUNet, teacher: nn.Module) -> None:
    """Takes over the weights of a small network of the same width: every head starts as the teacher without a label."""
    if not isinstance(teacher, SmallUNet):
        return
    known, own = teacher.state_dict(), network.state_dict()
    del known["label.weight"]
    for name in ("conv_out.weight", "conv_out.bias"):
        known[name] = torch.cat([known[name]] * (len(own[name]) // len(known[name])))
    if all(known[name].shape == weight.shape for name, weight in own.items()):
        network.load_state_dict(known)


def heads_arguments(network: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments of heads on one of EDM's networks, with as many features as its last layers have channels."""
    width = arguments.get("model_channels", 192 if network != "edm-song" else 128)
    first = arguments["channel_mult"][0] if "channel_mult" in arguments else 1
    return {"trunk": network, "arguments": arguments, "features": width * first}


def linear_student(teacher: EDMDenoiser, arguments: dict[str, Any], *, seed: int) -> LinearHeadsDenoiser:
    """Heads on the teacher's own network. All start as the teacher without a label; with the label 1/K for every class,
    if the teacher does not know images without one."""
    torch.manual_seed(seed)
    network = LinearHeadsNetwork(**arguments)
    start_from_trunk(network, teacher)
    return LinearHeadsDenoiser(
        network, image_shape=teacher.image_shape, num_classes=teacher.num_classes, sigma_data=teacher.sigma_data
    )


@torch.no_grad()
def start_from_trunk(network: LinearHeadsNetwork, teacher: EDMDenoiser) -> None:
    """The trunk takes over all of the teacher's weights. Its first features are the teacher's output, and every head
    begins with them alone; the other features begin at random."""
    own = network.trunk.state_dict()
    for name, weight in teacher.network.state_dict().items():
        if own[name].shape == weight.shape:
            own[name].copy_(weight)
        else:  # the last convolution
            own[name][: len(weight)].copy_(weight)
    channel = torch.arange(network.image_channels)
    network.heads[:, channel, channel] = 1.0
    network.label.fill_(0.0 if teacher.knows_no_label else 1 / network.num_classes)
