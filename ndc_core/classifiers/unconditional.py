"""The clean image expected without a label, from any kind of model: the target of APNDC."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ndc_core.models.denoiser import Denoiser
from ndc_core.models.forward_passes import Ask, Inputs, Task
from ndc_core.models.transfers import to_device


@dataclass(frozen=True)
class Unconditional:
    """h(z, sigma) as the mean of a denoiser's outputs over rows of class weights: one evaluation for each row.

    It is a function of z alone, so any choice of denoiser and labels keeps votes sound (rule S2); a poor one costs
    accuracy.
    """

    denoiser: Denoiser
    labels: Float[Tensor, "labels classes"]

    @property
    def evaluations(self) -> int:
        return len(self.labels)


def estimates(
    estimator: Unconditional, z: Float[Tensor, "draws c h w"], sigma_model: float, *, rows_per_pass: int
) -> Task[Float[Tensor, "draws c h w"]]:
    """Asks for the clean image behind each z, whose noise is sigma_model."""
    labels = to_device(estimator.labels.numpy(), z.device)
    at_once = max(1, rows_per_pass // len(labels))  # draws: memory does not grow with the labels
    means = []
    for first in range(0, len(z), at_once):
        some = z[first : first + at_once]
        row = torch.arange(len(some) * len(labels), device=z.device)
        draw, label = row // len(labels), row % len(labels)

        def inputs(rows: slice, some: Tensor = some, draw: Tensor = draw, label: Tensor = label) -> Inputs:
            level = torch.full((rows.stop - rows.start,), sigma_model, device=z.device)
            return some[draw[rows]], level, labels[label[rows]]

        each = yield Ask("forward", estimator.denoiser, len(row), inputs, lambda estimate, rows: estimate)
        means.append(each.unflatten(0, (len(some), len(labels))).mean(dim=1))
    return torch.cat(means)


def null_label(denoiser: Denoiser) -> Unconditional:
    """The all-zero label, for models that were trained with label dropout, or without labels."""
    return Unconditional(denoiser, torch.zeros(1, denoiser.num_classes))


def label_mean(denoiser: Denoiser) -> Unconditional:
    """sum_y p(y | z) h(z, sigma, y) with p(y | z) = 1 / K: exact only where noise hides the class; K evaluations.

    The paper leaves p(y | z) open for models without an unconditional branch.
    """
    return Unconditional(denoiser, torch.eye(denoiser.num_classes))


def blended_label(denoiser: Denoiser) -> Unconditional:
    """h at the label 1/K for every class: one evaluation, for networks that take a continuous label."""
    classes = denoiser.num_classes
    return Unconditional(denoiser, torch.full((1, classes), 1 / classes))


UNCONDITIONALS: dict[str, Callable[[Denoiser], Unconditional]] = {
    "null_label": null_label,
    "label_mean": label_mean,
    "blended_label": blended_label,
}
