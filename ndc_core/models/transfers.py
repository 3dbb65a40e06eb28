"""Copies between host and device without waiting: pinned memory and events on a GPU, nothing at all on a CPU.

A plain copy of ordinary memory waits until the device has done all earlier work. Here the copy is queued behind that
work, and only a reader of an answer on the host waits, for that answer alone.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor


@dataclass(frozen=True)
class OnItsWay:
    """A tensor that is being copied to the host."""

    tensor: Tensor
    copied: torch.cuda.Event | None = None

    def wait(self) -> Tensor:
        if self.copied is not None:
            self.copied.synchronize()
        return self.tensor


def to_device(array: Shaped[np.ndarray, "*shape"], device: torch.device) -> Shaped[Tensor, "*shape"]:
    """The same numbers on the device. The array may be changed or dropped afterwards, but not on a CPU."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def to_host(tensor: Tensor) -> OnItsWay:
    """The same numbers on the host, once they are there."""
    if tensor.device.type != "cuda":
        return OnItsWay(tensor.cpu())
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    copied = torch.cuda.Event(blocking=True)
    copied.record()
    return OnItsWay(host, copied)
