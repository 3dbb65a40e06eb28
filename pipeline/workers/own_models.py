"""Networks that users' functions return: described, placed on a device, and tried before they vote.

`model = "module:function"` names a function without arguments. It returns a denoiser, or an image classifier where one
is asked for. The hash of the source and the weights takes the place of a checkpoint's digest.
"""

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ndc_core.analysis.contract import ContractError, check_classifier, check_denoiser, check_description
from ndc_core.models.denoiser import ClippedDenoiser, DescribedDenoiser, EDMDenoiser
from ndc_core.models.execution import DTYPES, Execution
from ndc_core.models.image_classifier import ImageClassifier, ImageNetwork
from pipeline.named_functions import called, named_function


def own_denoiser(where: str, *, device: str, execution: Execution) -> DescribedDenoiser:
    """The denoiser that a function returns, for inference; its outputs are clipped, unless it is of our classes and
    says otherwise.

    Raises:
        FunctionError: it cannot be imported or called here.
        ContractError: what it returns is not a denoiser that votes can be made with.
    """
    made, name = called(where), f"what {where} returns"
    check_description(made, name=name, least_classes=0)
    denoiser: DescribedDenoiser
    if isinstance(made, EDMDenoiser):
        denoiser = _executed(made, device=device, execution=execution)
    else:
        placed = _placed(made, name=name, device=device, execution=execution)
        denoiser = ClippedDenoiser(placed, knows_no_label=getattr(made, "knows_no_label", made.num_classes == 0))
    check_denoiser(denoiser, name=name, device=device, precision=execution.precision)
    return denoiser


def own_classifier(where: str, *, device: str, execution: Execution) -> ImageClassifier:
    """The image classifier that a function returns, for inference.

    Raises:
        FunctionError, ContractError: see `own_denoiser`.
    """
    made, name = called(where), f"what {where} returns"
    check_description(made, name=name, least_classes=2)
    if isinstance(made, ImageNetwork):
        classifier: ImageClassifier = _executed(made, device=device, execution=execution)
    else:
        classifier = _placed(made, name=name, device=device, execution=execution)
    check_classifier(classifier, name=name, device=device, precision=execution.precision)
    return classifier


def own_digest(where: str) -> str:
    """SHA-256 over the function's Python files, and the weights and settings of what it returns.

    Raises:
        FunctionError: it cannot be imported or called here.
        ContractError: it returns other weights each time.
    """
    weights, again = (_state_sha256(called(where)) for _ in range(2))
    if weights != again:
        raise ContractError(
            f"{where} returns other weights each time it is called, so that no actor would have the run's: load them "
            "from a file, or call torch.manual_seed before they are drawn"
        )
    return hashlib.sha256(f"{named_function(where).sha256}\n{weights}\n".encode()).hexdigest()


def _executed(made: Any, *, device: str, execution: Execution) -> Any:
    """For our own classes, only the network runs as the configuration says, and all around it in single precision."""
    made.network = execution.apply(made.network, device=device)
    made.network_dtype, made.launch = DTYPES[execution.precision], execution.launch(device=device)
    return made.to(device).eval()


def _placed(made: Any, *, name: str, device: str, execution: Execution) -> Any:
    """For other classes nobody knows what may be rounded, or recorded as a CUDA graph: they run as they are."""
    if DTYPES[execution.precision] != torch.float32:
        raise ContractError(
            f"{name} is a {type(made).__name__}, which runs in single precision: leave out compute.precision = "
            f"{execution.precision!r}, or return an EDMDenoiser or ImageNetwork of ndc_core: they say what is rounded"
        )
    if isinstance(made, nn.Module):
        return execution.apply(made, device=device)
    if device != "cpu" or execution != Execution(execution.precision):
        raise ContractError(
            f"{name} is a {type(made).__name__} and no torch.nn.Module: it stays on the CPU as it is; return a module, "
            "or set compute.device = 'cpu', without channels_last and compile"
        )
    return made


def _state_sha256(made: Any) -> str:
    digest = hashlib.sha256()
    for place, value in _state(made):
        if isinstance(value, Tensor):
            values = value.detach().cpu().contiguous()
            digest.update(f"{place} {values.dtype} {tuple(values.shape)}\n".encode())
            digest.update(values.flatten().view(torch.uint8).numpy().data)
        else:
            digest.update(f"{place} {value!r}\n".encode())
    return digest.hexdigest()


def _state(held: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """All tensors, arrays and plain values that an object or a module and those in it hold, by where they are held."""
    if isinstance(held, Tensor | np.ndarray):
        yield place, torch.as_tensor(held)
    elif isinstance(held, str | int | float | None):
        yield place, held
    elif isinstance(held, dict):
        for name, value in held.items():
            yield from _state(value, f"{place}.{name}")
    elif isinstance(held, list | tuple):
        yield from _state(dict(enumerate(held)), place)
    elif isinstance(held, nn.Module):
        weights = {**dict(held.named_parameters(recurse=False)), **dict(held.named_buffers(recurse=False))}
        yield from _state({**_public(held), **weights, **dict(held.named_children())}, place)
    elif not place:
        yield from _state(_public(held), place)


def _public(held: Any) -> dict[str, Any]:
    """The public attributes: what torch keeps in a module for itself differs from version to version."""
    return {name: value for name, value in getattr(held, "__dict__", {}).items() if not name.startswith("_")}
