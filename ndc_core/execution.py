"""How a network is run: precision, memory layout, compilation. Each changes rounding, and with it a near-tie's vote."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
Precision = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class Execution:
    """The defaults are the reference: single precision, PyTorch's own layout, nothing compiled.

    All of it runs on a CPU too, where float16 is slow and compilation needs a C++ compiler.
    """

    precision: Precision = "float32"
    channels_last: bool = False
    compile: bool = False

    def apply(self, network: nn.Module, *, device: str) -> nn.Module:
        """The network for inference on a device; weights are converted once."""
        network = network.to(device=device, dtype=DTYPES[self.precision]).eval().requires_grad_(False)
        if self.channels_last:
            # torch's stub knows the argument for tensors only.
            network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return torch.compile(network) if self.compile else network  # type: ignore[return-value]
