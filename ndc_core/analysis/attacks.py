"""Attacks on the classifiers that are certified here: objectives for an ascent, and 8-bit images of its results.

The gradient goes through the whole score: the noise of the input and of every step is drawn anew at each step of the
ascent (expectation over transformation, Athalye et al. 2018), and the U-Net is differentiated, not approximated.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ndc_core.analysis.ascent import Pixels
from ndc_core.classifiers.voter import Voter
from ndc_core.models.forward_passes import answer_differentiably
from ndc_core.models.image_classifier import ImageClassifier
from ndc_core.noise.smoothing import LEVELS
from ndc_core.space import pixels_to_model, sigma_to_model

Loss = Literal["cross-entropy", "votes", "margin"]

DIFFERENTIATED = 4  # a row of a differentiated pass needs the memory of this many rows of a vote's


def round_within(
    adversarial: Float[np.ndarray, "c h w"], image: UInt8[np.ndarray, "c h w"], *, radius_pixel: float
) -> UInt8[np.ndarray, "c h w"]:
    """An 8-bit image near the adversarial one and still closer than radius_pixel to the image, exactly.

    Rounds every pixel to its nearest level; where that leaves the ball, the pixels that grew most are truncated.
    """
    change = (adversarial * LEVELS - image).ravel()
    rounded, towards = np.rint(change), np.trunc(change)
    order = np.argsort(np.abs(change) - np.abs(rounded), kind="stable")
    saved = np.concatenate([[0.0], np.cumsum((rounded**2 - towards**2)[order])])
    limit = (LEVELS * radius_pixel) ** 2
    enough = np.flatnonzero((rounded**2).sum() - saved < limit)
    back = order[: enough[0]] if len(enough) else order
    rounded[back] = towards[back]
    return (image + rounded.reshape(image.shape)).astype(np.uint8)


@dataclass(frozen=True)
class ScoreObjective:
    """How far the class of interest is from winning, by the classifier's scores at fresh noise.

    The class of interest is the first of `classes`. For smoothed classifiers this is a mean over draws, with the scores
    in units of their typical margin: that of the step, or `unit` where steps are compared. It is the cross-entropy of
    the class, or its lost votes, smoothly counted: one of `losses` for each restart in turn. Otherwise (lipschitz) it
    is the margin of the mean scores.
    """

    classifier: Voter
    classes: tuple[int, ...]
    sigma_pixel: float
    draws: int
    smoothed: bool
    generator: torch.Generator
    losses: tuple[Loss, ...] = ("cross-entropy",)
    unit: float | None = None

    def __call__(self, x: Pixels) -> Float[Tensor, " restarts"]:
        scores = self.noisy_scores(x)
        if not self.smoothed:
            mean = scores.mean(dim=1)
            return mean[:, 1:].amax(dim=1) - mean[:, 0]
        scores = scores / (self.unit or typical_margin(scores.detach()))
        return alternate(self.losses, scores).mean(dim=1)

    def unit_at(self, x: Pixels) -> float:
        """The typical margin of fresh draws."""
        with torch.no_grad():
            return typical_margin(self.noisy_scores(x))

    def noisy_scores(self, x: Pixels) -> Float[Tensor, "restarts draws some_classes"]:
        shape = (len(x) * self.draws, *x.shape[1:])
        noise = torch.randn(shape, generator=self.generator, dtype=x.dtype)
        noisy = x.repeat_interleave(self.draws, dim=0) + self.sigma_pixel * noise
        scores = self.scores(pixels_to_model(noisy))
        if x.requires_grad and not scores.requires_grad:
            raise ValueError(
                "the model's outputs have no gradient, which an attack climbs: do not run it under torch.no_grad or "
                "inference_mode, and do not detach its outputs"
            )
        return scores.view(len(x), self.draws, len(self.classes))

    def scores(self, z: Float[Tensor, "draws c h w"]) -> Float[Tensor, "draws classes"]:
        """The scores of `classes`, differentiable in z: on the full grid without sift, or the mean over a baseline's
        paths."""
        classifier, device = self.classifier, torch.device(self.classifier.device)
        z = z.to(device, torch.float32)
        tau_model = sigma_to_model(self.sigma_pixel)
        noise = torch.randn(len(z), classifier.noise_steps[0], *z.shape[1:], generator=self.generator).to(device)
        asking = classifier.class_scores(z, noise, tau_model=tau_model, classes=self.classes)
        return answer_differentiably(asking, rows_at_once=_rows_at_once(classifier)).double().cpu()


@dataclass(frozen=True)
class TransferObjective:
    """How far an image classifier without noise is from naming the class of interest; see `ScoreObjective`."""

    network: ImageClassifier
    class_id: int
    device: str
    losses: tuple[Loss, ...] = ("cross-entropy", "margin")

    def __call__(self, x: Pixels) -> Float[Tensor, " restarts"]:
        scores = self.network(pixels_to_model(x).to(self.device, torch.float32)).double().cpu()
        others = [c for c in range(self.network.num_classes) if c != self.class_id]
        return alternate(self.losses, scores[:, None, [self.class_id, *others]])[:, 0]


def alternate(
    losses: tuple[Loss, ...], scores: Float[Tensor, "restarts draws some_classes"]
) -> Float[Tensor, "restarts draws"]:
    """What the first class lacks, by one loss for each restart in turn."""
    behind = scores[..., 1:].amax(dim=-1) - scores[..., 0]
    by_name = {"cross-entropy": -scores.log_softmax(dim=-1)[..., 0], "votes": behind.sigmoid(), "margin": behind}
    return torch.stack([by_name[losses[row % len(losses)]][row] for row in range(len(scores))])


def typical_margin(scores: Float[Tensor, "restarts draws some_classes"]) -> float:
    margin = scores[..., 0] - scores[..., 1:].amax(dim=-1)
    return max(float(margin.abs().mean()), 1e-30)


def _rows_at_once(classifier: Voter) -> int:
    """Memory suffices for a vote's passes, but a differentiated pass keeps the outputs of all layers at once."""
    return max(1, classifier.rows_per_pass // DIFFERENTIATED)
