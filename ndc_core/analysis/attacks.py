"""Projected gradient ascent against the classifiers that are certified here.

The gradient goes through the whole score: the noise of the input and of every step is drawn anew at each step of the
ascent (expectation over transformation, Athalye et al. 2018), and the U-Net is differentiated, not approximated.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ndc_core.classifiers.voter import Voter
from ndc_core.models.forward_passes import answer_differentiably
from ndc_core.noise.smoothing import LEVELS
from ndc_core.space import bytes_to_pixels, pixels_to_model, sigma_to_model

Pixels = Float[Tensor, "restarts c h w"]
Objective = Callable[[Pixels], Float[Tensor, " restarts"]]  # what the attack raises; pixels in [0, 1]

# The first steps go far, the last ones settle: the step falls linearly from this share of the radius.
FIRST_STEP = 0.5
DIFFERENTIATED = 4  # rows of a vote's pass for a row of one that is differentiated


def ascend(
    objective: Objective,
    image: UInt8[np.ndarray, "c h w"],
    *,
    radius_pixel: float,
    steps: int,
    restarts: int,
    generator: torch.Generator,
) -> Float[np.ndarray, "restarts c h w"]:
    """Images in [0, 1] closer than radius_pixel to the image (L2) for which the objective is high, one a restart.

    The first restart begins at the image, the others at random places in the ball.
    """
    clean = torch.from_numpy(bytes_to_pixels(image))
    reach = radius_pixel * (1 - 1e-6)
    delta = torch.randn(restarts, *clean.shape, generator=generator, dtype=torch.float64)
    delta = delta / norms(delta) * reach * torch.rand(restarts, 1, 1, 1, generator=generator, dtype=torch.float64)
    delta[0] = 0
    for step in range(steps):
        x = (clean + delta).clamp(0, 1).requires_grad_()
        (gradient,) = torch.autograd.grad(objective(x).sum(), x)
        stride = FIRST_STEP * reach * (1 - step / steps)
        delta = x.detach() - clean + stride * gradient / norms(gradient).clamp_min(1e-30)
        delta = delta * (reach / norms(delta).clamp_min(1e-30)).clamp_max(1)
    # The box holds the clean image, so the projection onto it never leads away from the ball.
    adversarial: np.ndarray = (clean + delta).clamp(0, 1).numpy()
    return adversarial


def norms(delta: Float[Tensor, "restarts c h w"]) -> Float[Tensor, "restarts 1 1 1"]:
    return delta.flatten(1).norm(dim=1).view(-1, 1, 1, 1)


def round_within(
    adversarial: Float[np.ndarray, "c h w"], image: UInt8[np.ndarray, "c h w"], *, radius_pixel: float
) -> UInt8[np.ndarray, "c h w"]:
    """An 8-bit image near the adversarial one and still closer than radius_pixel to the image, exactly.

    Rounds every pixel to its nearest level; where that leads out of the ball, those that went up most go back.
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
    """How far the class of interest is from winning, through the classifier's scores at fresh noise.

    The class of interest is the first of `classes`. For smoothed classifiers: the mean over draws of its cross-entropy
    among them, with the scores in units of their typical margin. Otherwise (lipschitz): the margin of the mean scores.
    """

    classifier: Voter
    classes: tuple[int, ...]
    sigma_pixel: float
    draws: int
    smoothed: bool
    generator: torch.Generator

    def __call__(self, x: Pixels) -> Float[Tensor, " restarts"]:
        shape = (len(x) * self.draws, *x.shape[1:])
        noise = torch.randn(shape, generator=self.generator, dtype=x.dtype)
        noisy = x.repeat_interleave(self.draws, dim=0) + self.sigma_pixel * noise
        scores = self.scores(pixels_to_model(noisy))
        if x.requires_grad and not scores.requires_grad:
            raise ValueError(
                "the model's outputs have no gradient, which an attack climbs: do not run it under torch.no_grad or "
                "inference_mode, and do not detach its outputs"
            )
        scores = scores.view(len(x), self.draws, len(self.classes))
        if not self.smoothed:
            mean = scores.mean(dim=1)
            return mean[:, 1:].amax(dim=1) - mean[:, 0]
        margin = scores[..., 0] - scores[..., 1:].amax(dim=-1)
        unit = margin.detach().abs().mean().clamp_min(1e-30)
        return -(scores / unit).log_softmax(dim=-1)[..., 0].mean(dim=1)

    def scores(self, z: Float[Tensor, "draws c h w"]) -> Float[Tensor, "draws classes"]:
        """The scores of `classes`, differentiable in z: on the full grid without sift, or the mean over a baseline's
        paths."""
        classifier, device = self.classifier, torch.device(self.classifier.device)
        z = z.to(device, torch.float32)
        tau_model = sigma_to_model(self.sigma_pixel)
        noise = torch.randn(len(z), classifier.noise_steps[0], *z.shape[1:], generator=self.generator).to(device)
        asking = classifier.class_scores(z, noise, tau_model=tau_model, classes=self.classes)
        return answer_differentiably(asking, rows_at_once=_rows_at_once(classifier)).double().cpu()


def _rows_at_once(classifier: Voter) -> int:
    """There is memory for a vote's passes, and one that is differentiated keeps all layers' outputs at once."""
    return max(1, classifier.rows_per_pass // DIFFERENTIATED)
