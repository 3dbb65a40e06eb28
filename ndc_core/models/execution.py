"""How a network is run: precision, memory layout, compilation. Each changes rounding, and with it a near-tie's vote."""

import warnings
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

from ndc_core.models.networks.fused_ops import has_kernels
from ndc_core.models.precision import Precision
from ndc_core.models.replay import Launch, Replays, cuda_graph, directly

DTYPES = {"float32": torch.float32, "tf32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
Trained = TypeVar("Trained", bound=nn.Module)


@dataclass(frozen=True)
class Execution:
    """The defaults are the reference: single precision, PyTorch's own layout, nothing compiled.

    On CUDA passes are launched as graphs (see `replay`), and EDM's networks in channels_last run through kernels of
    their own (see `fused_unet`); neither is done to compiled networks. All else runs on a CPU too, where float16 is
    slow, tf32 is float32, and compilation needs a C++ compiler.
    """

    precision: Precision = "float32"
    channels_last: bool = False
    compile: bool = False

    def apply(self, network: nn.Module, *, device: str) -> nn.Module:
        """The network for inference on a device; weights are converted once.

        Part of the precision is a setting of the process: do not use networks of two precisions in one process.
        """
        set_arithmetic(self.precision)
        network = network.to(device=device, dtype=DTYPES[self.precision]).eval().requires_grad_(False)
        if self.channels_last:
            # torch's stub knows the argument for tensors only.
            network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self.channels_last and not self.compile and device.startswith("cuda"):
            _fuse(getattr(network, "trunk", network))
        return torch.compile(network) if self.compile else network  # type: ignore[return-value]

    def launch(self, *, device: str) -> Launch:
        """How passes of the network are launched."""
        return Replays(cuda_graph) if device.startswith("cuda") and not self.compile else directly


def _fuse(network: Any) -> None:
    """Makes a network run through `fused_unet`, if it can."""
    if not hasattr(network, "fused"):
        return
    network.fused = has_kernels()
    if not network.fused:
        warnings.warn("Triton is not installed here: without its kernels channels_last is slow on a GPU", stacklevel=2)


def placed_for_training(network: Trained, *, device: str, channels_last: bool) -> Trained:
    """The network where it is trained; on CUDA with the fastest arithmetic, which is a setting of the process."""
    if device == "cpu":
        return network
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = False, True
    network = network.to(device)
    if channels_last:
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


def set_arithmetic(precision: Precision) -> None:
    """Makes CUDA multiply as the precision says, by algorithms that are chosen by shapes alone and can be repeated.

    PyTorch's own default lets convolutions round float32 to TF32. All versions from 2.4 on have these switches, and
    torch.compile reads them too; later versions also have others, which must not be mixed with these.
    """
    tf32 = precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = False  # otherwise the algorithm depends on what was fastest that time
    torch.backends.cudnn.deterministic = True
