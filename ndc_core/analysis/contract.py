"""Whether a network from any source is what votes need, tried on a few rows before the first vote.

A checkpoint's network is known; one that a user's function returns is not. The checks cover what a proof rests on:
shape and range of outputs, that they are finite, and that a row's output depends on the row alone (rules S1, S9).
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ndc_core.analysis.self_test import network_exactness
from ndc_core.models.denoiser import Denoiser, EveryClass, EveryLoss
from ndc_core.models.forward_passes import Kind
from ndc_core.models.image_classifier import ImageClassifier
from ndc_core.models.precision import Precision

# Noise levels in model space, one row each: what votes use, and far beyond at both ends. Few: networks may be slow.
LEVELS = (0.01, 0.1, 1.0, 80.0)
ROWS = len(LEVELS)
# With little noise the clean image is close: outputs that are this far out are on another scale than [-1, 1].
ROWS_OF_LITTLE_NOISE, FARTHEST = 2, 4.0
# How far rounding may move a row, as a share of the largest value: dropout or batch statistics do 100 times more.
TOLERANCE: dict[Precision, float] = {"float32": 1e-4, "tf32": 5e-3, "bfloat16": 5e-2, "float16": 5e-2}


class ContractError(ValueError):
    """A network that is not what votes need: says what was tried, what came out, and the remedy."""


def check_denoiser(denoiser: Denoiser, *, name: str, device: str, precision: Precision) -> None:
    """Tries a denoiser on noisy plain images, with and without a label.

    Raises:
        ContractError: it fails; its outputs do not have the shape of its inputs, are not finite, are on another scale
            than [-1, 1] at little noise, or leave [-1, 1] although it is `bounded`; or a row's output depends on the
            other rows, its place or chance.
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
    """The same for an image classifier: it takes images of model space, and gives a score for each class.

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
    """Tries whether one kind of pass keeps votes independent (rule S1).

    Raises:
        ContractError: the pass fails, does not repeat, or gives a row another result elsewhere or among other rows.
    """
    what = "the gradient of the label" if kind == "label_gradient" else "its output"
    try:
        exactness = network_exactness(kind, network, rows=ROWS, device=device)
    except Exception as error:  # a user's network may raise anything
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
    """A network's outputs for rows: one for each row, of the shape of the first argument's images or `each`."""
    shape = (len(rows[0]), *(each or rows[0].shape[1:]))
    try:
        outputs = network(*rows)
    except Exception as error:  # a user's network may raise anything
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
