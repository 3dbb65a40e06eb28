"""Whether a network of whoever it may be is what votes need, tried on a few rows before the first vote.

A checkpoint's network is known; one that a user's function returns is not. What is tried is what a proof rests on:
shape and range of outputs, that they are numbers, and that a row's is a function of the row alone (rules S1, S9).
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ndc_core.analysis.self_test import network_exactness
from ndc_core.models.denoiser import Denoiser, EveryClass, EveryLoss
from ndc_core.models.execution import Precision
from ndc_core.models.forward_passes import Kind
from ndc_core.models.image_classifier import ImageClassifier

# Noise levels of model space, of a row each: what votes use, and far beyond at both ends. Networks may be slow.
LEVELS = (0.01, 0.1, 1.0, 80.0)
ROWS = len(LEVELS)
# Where there is little noise, a clean image is near: outputs of another scale than [-1, 1] lie beyond any estimate.
ROWS_OF_LITTLE_NOISE, FARTHEST = 2, 4.0
# What rounding may do to a row, as a share of the largest: dropout or a batch's statistics do a hundred times as much.
TOLERANCE: dict[Precision, float] = {"float32": 1e-4, "tf32": 5e-3, "bfloat16": 5e-2, "float16": 5e-2}


class ContractError(ValueError):
    """A network that is not what votes need: what was tried, what came out, and the remedy."""


def check_denoiser(denoiser: Denoiser, *, name: str, device: str, precision: Precision) -> None:
    """Tries a denoiser on noisy plain images of all its kinds of labels.

    Raises:
        ContractError: it fails, its outputs are no images like its inputs, are not finite, not images in [-1, 1] where
            noise is little, beyond [-1, 1] though it says that it is `bounded`, or a row's output depends on the other
            rows, its place or chance.
    """
    check_description(denoiser, name=name, least_classes=0)
    sigma = torch.tensor(LEVELS)
    clean = torch.linspace(-1, 1, ROWS).view(-1, 1, 1, 1).expand(-1, *denoiser.image_shape)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    z = clean + sigma.view(-1, 1, 1, 1) * noise
    label = torch.zeros(ROWS, denoiser.num_classes)
    if denoiser.num_classes:
        label[torch.arange(1, ROWS), torch.arange(1, ROWS) % denoiser.num_classes] = 1  # the first row has none
    rows = tuple(part.to(device) for part in (z, sigma, label))
    outputs = _called(denoiser, rows, name=name, what="images, noise levels and labels")
    near = tuple(part[:ROWS_OF_LITTLE_NOISE] for part in rows)
    unclipped = _called(getattr(denoiser, "unclipped", denoiser), near, name=name, what="images of little noise")
    if (largest := float(unclipped.abs().max())) > FARTHEST:
        raise ContractError(
            f"{name} gives {largest:.3g} for an image in [-1, 1] with little noise: its images are on another scale; "
            "return images in [-1, 1], which are 2 x - 1 of pixels in [0, 1]"
        )
    if getattr(denoiser, "bounded", False) and (largest := float(outputs.abs().max())) > 1:
        raise ContractError(
            f"{name} says that it is bounded, and gives {largest:.3g}: the lipschitz certificate would be wrong; clip "
            "its outputs to [-1, 1], or set bounded = False"
        )
    for kind in _kinds_of(denoiser):
        check_rows(kind, denoiser, name=name, device=device, precision=precision)


def check_classifier(classifier: ImageClassifier, *, name: str, device: str, precision: Precision) -> None:
    """The same of an image classifier: it takes images of model space, and gives a score for each class.

    Raises:
        ContractError: see `check_denoiser`.
    """
    check_description(classifier, name=name, least_classes=2)
    z = torch.randn(ROWS, *classifier.image_shape, generator=torch.Generator().manual_seed(0)).to(device)
    _called(classifier, (z,), name=name, what="images", each=(classifier.num_classes,))
    check_rows("classify", classifier, name=name, device=device, precision=precision)


def check_description(network: Any, *, name: str, least_classes: int) -> None:
    """Raises ContractError where a network does not say which images and classes it knows."""
    shape, classes = getattr(network, "image_shape", None), getattr(network, "num_classes", None)
    whole = isinstance(shape, tuple) and len(shape) == 3 and all(isinstance(side, int) and side > 0 for side in shape)
    if not callable(network) or not whole or not isinstance(classes, int) or classes < least_classes:
        raise ContractError(
            f"{name} is a {type(network).__name__} with image_shape {shape!r} and num_classes {classes!r}; it must be "
            "callable, with image_shape = (channels, height, width) and num_classes"
            + (f" of at least {least_classes}" if least_classes else "")
        )


def check_rows(
    kind: Kind, network: Denoiser | ImageClassifier, *, name: str, device: str, precision: Precision
) -> None:
    """Tries one kind of pass for what makes votes independent (rule S1).

    Raises:
        ContractError: the pass fails, does not repeat, or gives a row something else at another place or among others.
    """
    what = "the gradient of the label" if kind == "label_gradient" else "its output"
    try:
        exactness = network_exactness(kind, network, rows=ROWS, device=device)
    except Exception as error:  # whatever the network makes of it
        raise ContractError(f"{name} fails where {what} is asked for: {_first_line(error)}") from error
    moved = {
        "when a pass is repeated": max(exactness.repeated or 0, exactness.gradient_repeated or 0),
        "with a row's place in the pass": max(exactness.moved or 0, exactness.gradient_moved or 0),
        "with the other rows of the pass": exactness.company or 0,
    }
    for when, difference in moved.items():
        if difference > TOLERANCE[precision]:
            raise ContractError(
                f"{name}: {what} moves {when}, by {difference:.1g} of the largest, so that votes would not be "
                "independent (rule S1); call .eval() on it, and draw nothing at random inside: dropout, and "
                "normalisation over a batch, are the usual causes"
            )


def _kinds_of(denoiser: Denoiser) -> Iterator[Kind]:
    yield "forward"
    if isinstance(denoiser, EveryClass):
        yield "every_class"
    if isinstance(denoiser, EveryLoss):
        yield "every_loss"


@torch.inference_mode()
def _called(
    network: Callable[..., Any], rows: tuple[Tensor, ...], *, name: str, what: str, each: tuple[int, ...] | None = None
) -> Tensor:
    """What a network gives for rows: for each an image as the first of its arguments has it, or of the shape `each`."""
    shape = (len(rows[0]), *(each or rows[0].shape[1:]))
    try:
        outputs = network(*rows)
    except Exception as error:  # whatever the network makes of it
        shapes = ", ".join(str(tuple(part.shape)) for part in rows)
        raise ContractError(f"{name} fails on {what} of shapes {shapes}: {_first_line(error)}") from error
    if not isinstance(outputs, Tensor) or tuple(outputs.shape) != shape:
        given = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ContractError(f"{name} gives {given} for {what} of {len(rows[0])} rows; it must give {shape}")
    if outputs.dtype != torch.float32 or outputs.device.type != rows[0].device.type:
        raise ContractError(
            f"{name} gives {outputs.dtype} on {outputs.device} for torch.float32 on {rows[0].device}; return single "
            "precision, on the device of the images"
        )
    if not outputs.isfinite().all():
        raise ContractError(
            f"{name} gives NaN or infinity for {what} (sigma_model {min(LEVELS):g} to {max(LEVELS):g}); such a vote "
            "would be an error: mend its weights, or what it makes of very little and very much noise"
        )
    return outputs


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
