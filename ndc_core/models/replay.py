"""Calls with tensors of one shape, launched in one go.

A pass is hundreds of kernels: small ones wait for the host, which launches them one by one.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Function = Callable[..., Tensor]
Shapes = tuple[tuple[tuple[int, ...], torch.dtype], ...]
CALLS_BEFORE_CAPTURE = 2


class Launch(Protocol):
    """Calls a function of tensors; a result belongs to the caller, and no later call changes it."""

    def __call__(self, function: Function, *inputs: Tensor) -> Tensor: ...


def directly(function: Function, *inputs: Tensor) -> Tensor:
    return function(*inputs)


@dataclass(frozen=True)
class Recording:
    """What was captured: `replay` computes `output` from the contents of `inputs`, in place."""

    inputs: tuple[Tensor, ...]
    replay: Callable[[], None]
    output: Tensor


Capture = Callable[[Function, tuple[Tensor, ...]], Recording]


@dataclass
class _History:
    shapes: Shapes
    calls: int = 0
    recording: Recording | None = None


class Replays:
    """Captures a function once its inputs have had one shape for three calls in a row, and replays it from then on.

    New shapes replace the ones before, because a recording holds the memory of a whole pass. Calls that autograd tracks
    are made directly, and so are all calls of a function whose capture failed, which gives a warning. A function must
    depend on nothing but its tensors and on weights that stay in place.
    """

    def __init__(self, capture: Capture) -> None:
        self.capture = capture
        self.histories: dict[Function, _History] = {}  # a method of two objects is two functions
        self.failed: set[Function] = set()

    def __call__(self, function: Function, *inputs: Tensor) -> Tensor:
        if torch.is_grad_enabled() or function in self.failed:
            return function(*inputs)
        shapes = tuple((tuple(tensor.shape), tensor.dtype) for tensor in inputs)
        history = self.histories.get(function)
        if history is None or history.shapes != shapes:
            history = self.histories[function] = _History(shapes)
        if history.recording is None:
            history.calls += 1
            if history.calls <= CALLS_BEFORE_CAPTURE:
                return function(*inputs)
            history.recording = self._captured(function, inputs)
            if history.recording is None:
                return function(*inputs)
        for held, tensor in zip(history.recording.inputs, inputs, strict=True):
            held.copy_(tensor)
        history.recording.replay()
        return history.recording.output.clone()

    def _captured(self, function: Function, inputs: tuple[Tensor, ...]) -> Recording | None:
        try:
            return self.capture(function, inputs)
        except Exception as error:  # out of memory, or an operation that cannot be captured: only speed is lost
            self.failed.add(function)
            warnings.warn(f"passes are launched kernel by kernel: their capture failed ({error})", stacklevel=2)
            return None


def cuda_graph(function: Function, inputs: tuple[Tensor, ...]) -> Recording:
    """A CUDA graph of a call. Other threads may use the device meanwhile."""
    with torch.inference_mode(False), torch.no_grad():
        held = tuple(torch.empty_like(tensor).copy_(tensor) for tensor in inputs)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            function(*held)  # what libraries set up for a stream cannot be captured
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            output = function(*held)
    return Recording(held, graph.replay, output)
