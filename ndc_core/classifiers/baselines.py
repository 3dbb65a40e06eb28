"""What diffusion classifiers are compared with: smoothed classifiers of images, plain or behind a denoiser.

They vote as diffusion classifiers do: on the same noisy images, in passes of the same fixed shape, and every row that
goes through a network is an evaluation.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ndc_core.classifiers.baseline_settings import refuse_steps
from ndc_core.classifiers.losses import Images, NonFiniteScoreError
from ndc_core.classifiers.unconditional import Unconditional, estimates
from ndc_core.classifiers.voter import IndependentDraws, PathDraws, Prediction
from ndc_core.models.denoiser import Denoiser
from ndc_core.models.forward_passes import Ask, Inputs, Kind, Task
from ndc_core.models.image_classifier import ImageClassifier
from ndc_core.models.transfers import to_device
from ndc_core.noise.step_streams import StepStreams


@dataclass(frozen=True)
class Baseline:
    """A classifier of images that votes on noisy images, as they are or with the noise removed first.

    Without an estimator this is randomized smoothing of a plain classifier (Cohen et al. 2019; SmoothAdv, Consistency
    and MACER differ in how the classifier was trained). With one, the clean image that it expects is classified
    (Carlini et al. 2023). With several `steps` noise is removed step by step as the diffusion model samples, `paths`
    times with different randomness, and the majority of the classes counts (Xiao et al. 2023, DensePure).

    Raises:
        ValueError: numbers below 1, several paths of one step (they would all be the same), or networks for different
            image shapes.
    """

    network: ImageClassifier
    estimator: Unconditional | None = None
    steps: int = 1
    paths: int = 1
    rows_per_pass: int = 256
    device: str = "cpu"
    grid: ClassVar[None] = None
    one_path: ClassVar[bool] = False
    takes_clean_images: ClassVar[bool] = False
    votes_cost_alike: ClassVar[bool] = True
    asks_for_gradients: ClassVar[bool] = False

    def __post_init__(self) -> None:
        refuse_steps(self.steps, self.paths)
        other = self.estimator and self.estimator.denoiser.image_shape
        if other and other != self.network.image_shape:
            raise ValueError(
                f"the denoiser makes images of shape {other}, the classifier takes {self.network.image_shape}"
            )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.network.image_shape

    @property
    def num_classes(self) -> int:
        return self.network.num_classes

    @property
    def main_network(self) -> Denoiser | ImageClassifier:
        """The network of most passes."""
        return self.estimator.denoiser if self.estimator else self.network

    @property
    def passes(self) -> list[tuple[Kind, Denoiser | ImageClassifier]]:
        """The kinds of passes that votes are made of, each with its network."""
        classifying: list[tuple[Kind, Denoiser | ImageClassifier]] = [("classify", self.network)]
        return [*classifying, ("forward", self.estimator.denoiser)] if self.estimator else classifying

    @property
    def noise_steps(self) -> tuple[int, int]:
        """How many arrays of noise a vote needs besides its input's, for its steps and for a sift."""
        return self.paths * (self.steps - 1), 0

    @property
    def most_evaluations_per_vote(self) -> int:
        """The first step is the same for all paths."""
        if self.estimator is None:
            return 1
        return self.estimator.evaluations * (1 + self.paths * (self.steps - 1)) + self.paths

    def evaluations_of_scores(self, classes: int) -> int:
        """The passes of one vote give the scores of all classes."""
        return self.most_evaluations_per_vote

    def votes(self, draws: IndependentDraws | PathDraws) -> Task[list[Prediction]]:
        """The class of each noisy image, and how many of its paths gave each class."""
        assert isinstance(draws, IndependentDraws)
        device = torch.device(self.device)
        z, noise = to_device(draws.z.astype(np.float32, copy=False), device), draws.refine
        on_device = noise.all(device) if isinstance(noise, StepStreams) else to_device(noise, device)
        scores = (yield from self.scores(z, tau_model=draws.tau_model, noise=on_device)).numpy()
        if not np.isfinite(scores).all():
            row, _, class_id = np.argwhere(~np.isfinite(scores))[0]
            raise NonFiniteScoreError(f"class {class_id} of the image classifier", row=int(row))
        said = scores.argmax(axis=2)
        counts = (said[:, :, None] == np.arange(self.num_classes)).sum(axis=1)
        cost = np.full(len(scores), self.most_evaluations_per_vote)
        return [Prediction(counts.argmax(axis=1), counts.astype(np.float64), cost)]

    def scores(
        self, images: Images, *, tau_model: float, noise: Float[Tensor, "draws more c h w"]
    ) -> Task[Float[Tensor, "draws paths classes"]]:
        """The image classifier's scores for each path of each noisy image."""
        draws = len(images)
        if self.estimator:
            images = yield from self._denoised(self.estimator, images, tau_model, noise)
        return (yield self._ask(images)).unflatten(0, (draws, len(images) // draws))

    def class_scores(
        self,
        z: Images,
        noise: Float[Tensor, "draws more c h w"],
        *,
        tau_model: float,
        classes: tuple[int, ...],
    ) -> Task[Float[Tensor, "draws some_classes"]]:
        """The image classifier's scores of some classes, as a mean over the paths; differentiable."""
        scores = yield from self.scores(z, tau_model=tau_model, noise=noise)
        return scores.mean(dim=1)[:, list(classes)]

    def _denoised(
        self, estimator: Unconditional, images: Images, tau_model: float, noise: Float[Tensor, "draws more c h w"]
    ) -> Task[Images]:
        """The posterior's own steps to lower noise levels, down to 0:
        z_s | z_t, h ~ N((s/t)^2 z_t + (1 - (s/t)^2) h, s^2 (1 - (s/t)^2)), with h the clean image expected at t."""
        levels = np.linspace(tau_model, 0, self.steps + 1)
        for step, (level, lower) in enumerate(pairwise(levels)):
            clean = yield from estimates(estimator, images, level, rows_per_pass=self.rows_per_pass)
            kept = (lower / level) ** 2
            images = kept * images + (1 - kept) * clean
            if lower:
                if step == 0:
                    images = images.repeat_interleave(self.paths, dim=0)
                fresh = noise[:, step * self.paths : (step + 1) * self.paths].flatten(0, 1).to(images)
                images = images + lower * (1 - kept) ** 0.5 * fresh
        return images

    def _ask(self, images: Images) -> Ask:
        unread = torch.zeros(1, device=images.device)

        def inputs(rows: slice) -> Inputs:
            count = rows.stop - rows.start
            return images[rows], unread.expand(count), unread.expand(count, 1)

        return Ask("classify", self.network, len(images), inputs, lambda answers, rows: answers, on_host=True)
