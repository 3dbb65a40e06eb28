"""Whether a device repeats a row's results bit for bit: in the same pass, at another place, among other rows.

That depends on precision, shapes and library versions: a kernel may split its sums differently at some places of a
pass, or add in the order in which threads arrive. Differences are at the level of rounding, but they can change the
vote of a near-tie (docs/soundness.md, "What a device decides").
"""

import time
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ndc_core.analysis.exactness import Exactness
from ndc_core.classifiers.voter import Voter
from ndc_core.models.denoiser import Denoiser
from ndc_core.models.forward_passes import Ask, Inputs, Kind, Task, answer
from ndc_core.models.image_classifier import ImageClassifier

PATIENCE_SECONDS = 10.0  # per thread, on a CPU, where networks may be slow


def self_test(classifier: Voter, *, patience_seconds: float = float("inf"), seed: int = 0) -> Exactness:
    """Tries every kind of pass that a classifier's votes need, with `rows_per_pass` rows of noise.

    That takes four passes of each kind, three if it is the label's gradient. No further pass begins once
    `patience_seconds` of processor time are spent; time of other processes does not count. NaN and infinity are not
    refused here: votes refuse them.
    """
    ends = time.process_time() + patience_seconds
    largest = Exactness()
    for kind, network in classifier.passes:
        trial = _Trial(kind, network, rows=classifier.rows_per_pass, device=torch.device(classifier.device), seed=seed)
        largest = largest.merged(trial.exactness(lambda: time.process_time() < ends))
    return largest


def network_exactness(
    kind: Kind, network: Denoiser | ImageClassifier, *, rows: int, device: str, seed: int = 0
) -> Exactness:
    """The same for one kind of pass of a network that is in no classifier yet. Raises what the network raises."""
    return _Trial(kind, network, rows=rows, device=torch.device(device), seed=seed).exactness(lambda: True)


class _Trial:
    """Passes of one kind over the same noise, in any order of its rows."""

    def __init__(
        self, kind: Kind, network: Denoiser | ImageClassifier, *, rows: int, device: torch.device, seed: int
    ) -> None:
        self.kind, self.network, self.rows, self.device = kind, network, rows, device
        generator = torch.Generator().manual_seed(seed)
        self.order = torch.randperm(rows, generator=generator)
        self.sigma_model = (torch.rand(rows, generator=generator) * 4 - 2.5).exp().to(device)
        noise = torch.randn(rows, *network.image_shape, generator=generator).to(device)
        self.z = noise * (1 + self.sigma_model**2).sqrt()[:, None, None, None]
        classes = torch.randint(network.num_classes, (rows,), generator=generator) if network.num_classes else None
        labels = torch.zeros(rows, 0) if classes is None else torch.eye(network.num_classes)[classes]
        self.label = self.z[:, None] if kind == "every_loss" else labels.to(device)

    def exactness(self, goes_on: Callable[[], bool]) -> Exactness:
        here = torch.arange(self.rows)
        first = self._pass(here)

        def again(order: Int[Tensor, " rows"]) -> Float[Tensor, "rows values"] | None:
            return self._pass(order) if goes_on() else None

        repeated = _difference(first, again(here))
        moved = _difference(first[self.order], again(self.order))
        if self.kind == "label_gradient":
            return Exactness(gradient_repeated=repeated, gradient_moved=moved)
        # The second half of the pass becomes a copy of the first half, which stays where it is.
        kept = (self.rows + 1) // 2
        alone = again(here % kept)
        company = _difference(first[:kept], None if alone is None else alone[:kept])
        return Exactness(repeated, moved, company)

    def _pass(self, order: Int[Tensor, " rows"]) -> Float[Tensor, "rows values"]:
        """What votes would read of one pass with its rows in this order, through the code that evaluates for votes."""
        at = order.to(self.device)
        z, sigma_model, label = self.z[at], self.sigma_model[at], self.label[at]

        def inputs(rows: slice) -> Inputs:
            return z[rows], sigma_model[rows], label[rows]

        def read(outputs: Tensor, rows: slice) -> Tensor:
            if self.kind in ("classify", "every_loss"):
                return outputs.flatten(1).double()
            target = z[rows] if outputs.ndim == z.ndim else z[rows][:, None]
            losses = (outputs - target).square().flatten(-3).sum(-1, dtype=torch.float64)
            return losses if losses.ndim == 2 or self.kind == "label_gradient" else losses[:, None]

        def task() -> Task[Tensor]:
            return (yield Ask(self.kind, self.network, self.rows, inputs, read))

        return answer(task(), rows_per_pass=self.rows, device=self.device).double().cpu()


def _difference(first: Float[Tensor, "rows values"], second: Float[Tensor, "rows values"] | None) -> float | None:
    """The largest difference as a share of the largest value; infinite where only one is a number."""
    if second is None:
        return None
    equal = (first == second) | (first.isnan() & second.isnan())
    if equal.all():
        return 0.0
    gaps = (first - second)[~equal].abs().nan_to_num(nan=float("inf"))
    scale = first[first.isfinite()].abs().max() if first.isfinite().any() else torch.tensor(1.0)
    return float(gaps.max() / scale.clamp(min=torch.finfo(torch.float32).tiny))
