"""The device, threads and memory of a process that runs networks."""

import math
import socket

import torch

from ndc_core.cores import usable_cores
from pipeline.declaration.config import Device
from pipeline.workers.memory import keep_freed_memory

PIXELS_WORTH_THREADS = 256


def set_up_process(*, threads: int) -> None:
    """What a process does before it runs networks, and nothing else: it keeps freed memory, and takes its threads."""
    keep_freed_memory()
    torch.set_num_threads(threads)


def pick_device(device: Device, *, share: float = 1.0) -> str:
    """ "auto" is CUDA where torch can use it. The process takes no more than its share of the GPU's memory.

    Raises:
        ValueError: CUDA is asked for, and torch cannot use it.
    """
    why = "" if device == "cpu" else why_no_cuda()
    if device == "cuda" and why:
        raise ValueError(
            f"compute.device is 'cuda', but {why}; install a build of torch for the GPU there, or set it to 'cpu'"
        )
    if device == "cpu" or why:
        return "cpu"
    if share < 1:
        torch.cuda.set_per_process_memory_fraction(share)
    return "cuda"


def why_no_cuda() -> str:
    """Why torch cannot use a GPU in this process; empty if it can."""
    where = f"torch {torch.__version__} on {socket.gethostname()}"
    if not torch.cuda.is_available():
        return f"{where} sees no CUDA device"
    try:
        torch.zeros(1, device="cuda").add_(1)
    except RuntimeError as error:
        return f"{where} cannot use its CUDA device: {str(error).splitlines()[0]}"
    return ""


def threads_for(image_shape: tuple[int, ...]) -> int:
    """Threads meet at every operation, and tiny images make many short ones: if another process has a core, all threads
    wait for it (on two busy cores, 12 s of distilling digits made 65 steps with two threads, and 442 with one)."""
    return usable_cores() if math.prod(image_shape[1:]) >= PIXELS_WORTH_THREADS else 1
