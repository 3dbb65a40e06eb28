"""What the vote loop needs from a classifier, and what it gets back."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from ndc_core.models.denoiser import Denoiser
from ndc_core.models.forward_passes import Kind, Task
from ndc_core.models.image_classifier import ImageClassifier
from ndc_core.noise.grid import GridSpec
from ndc_core.noise.step_streams import StepStreams

StepValues = Float[np.ndarray, "draws steps c h w"] | StepStreams  # given, or drawn where a vote reaches a step
Candidates = Int[np.ndarray, "taus draws"]  # the class that a vote is about, or NO_CLASS
NO_CLASS = -1


@dataclass(frozen=True)
class IndependentDraws:
    """Draws at one noise level, in model space, with standard normal noise of their own for each step.

    `refine` is for the classifier's own steps, `sift` for the sift's.
    """

    z: Float[np.ndarray, "draws c h w"]
    tau_model: float
    refine: StepValues
    sift: StepValues
    candidates: Candidates | None = None


@dataclass(frozen=True)
class PathDraws:
    """Draws at several noise levels of one path, in model space: z at each, and noisy images at all levels beyond.

    Or draws of DC: z is the image itself, and `later` is all that the denoiser sees.
    """

    z: tuple[Float[np.ndarray, "draws c h w"], ...]
    later: Float[np.ndarray, "draws steps c h w"]
    taus_model: tuple[float, ...]
    candidates: Candidates | None = None


@dataclass(frozen=True)
class Prediction:
    """The class of each draw, its scores (minus infinity for a class that left), and its share of the evaluations."""

    winners: Int[np.ndarray, " draws"]
    scores: Float[np.ndarray, "draws classes"]
    cost: Int[np.ndarray, " draws"]

    @property
    def evaluations(self) -> int:
        return int(self.cost.sum())

    def rows(self, draws: slice) -> "Prediction":
        """Some of the draws."""
        return Prediction(self.winners[draws], self.scores[draws], self.cost[draws])


class Voter(Protocol):
    """A classifier of noisy images. A draw's vote is a function of its own noise (rule S2)."""

    @property
    def image_shape(self) -> tuple[int, int, int]: ...

    @property
    def num_classes(self) -> int: ...

    @property
    def device(self) -> str: ...

    @property
    def rows_per_pass(self) -> int: ...

    @property
    def main_network(self) -> Denoiser | ImageClassifier:
        """The network of most passes."""

    @property
    def passes(self) -> list[tuple[Kind, Denoiser | ImageClassifier]]:
        """The kinds of passes that votes are made of, each with its network; no pair twice."""

    @property
    def noise_steps(self) -> tuple[int, int]:
        """How many arrays of noise a vote needs besides its input's: for its steps, and for a sift."""

    @property
    def grid(self) -> GridSpec | None:
        """The levels of its steps, for a classifier that can take `PathDraws`."""

    @property
    def one_path(self) -> bool:
        """Whether it takes `PathDraws` of smoothed images."""

    @property
    def takes_clean_images(self) -> bool:
        """Whether it takes `PathDraws` of an image without noise."""

    @property
    def votes_cost_alike(self) -> bool:
        """Whether every vote costs the most that one may."""

    @property
    def most_evaluations_per_vote(self) -> int: ...

    def evaluations_of_scores(self, classes: int) -> int:
        """For `class_scores` of one draw, at most."""

    @property
    def asks_for_gradients(self) -> bool:
        """Whether some of its passes are differentiated."""

    def votes(self, draws: IndependentDraws | PathDraws) -> Task[list[Prediction]]:
        """The class of each draw, at each noise level."""

    def class_scores(
        self,
        z: Float[Tensor, "draws c h w"],
        noise: Float[Tensor, "draws steps c h w"],
        *,
        tau_model: float,
        classes: tuple[int, ...],
    ) -> Task[Float[Tensor, "draws some_classes"]]:
        """The scores of some classes without sift or race, differentiable in z: what an attack follows."""
