"""One list of levels for several tau, chosen from measured losses: greedily, on half of the images."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from jaxtyping import Float, Int
from scipy.special import log_softmax

from ndc_core.analysis.diagnosis import MeasuredLosses, credit, own_class
from ndc_core.classifiers.diffusion import DiffusionClassifier
from ndc_core.noise.grid import GridSpec, build_grid

Levels = tuple[float, ...]
MARGIN_DIGITS = 9  # beyond these, a gain is rounding


@dataclass(frozen=True)
class Choice:
    """A grid and its vote accuracy at each tau: on the images that it was chosen on, and on the others.

    The standard errors are of the latter, over images: draws of one image are not independent evidence.
    """

    levels: Levels
    accuracy_chosen_on: tuple[float, ...]
    accuracy: tuple[float, ...]
    standard_error: tuple[float, ...]

    @property
    def evaluations(self) -> int:
        """Levels evaluated: the first is only the lower end of the second's interval."""
        return len(self.levels) - 1


@dataclass(frozen=True)
class GridSearch:
    """Votes of grids that are made of the measured levels."""

    classifier: DiffusionClassifier
    measured: MeasuredLosses
    taus_model: tuple[float, ...]
    seed: int

    def losses(self, levels: Levels, images: np.ndarray) -> Float[np.ndarray, "images draws taus classes"]:
        """The weighted sums that the classifier's votes on this grid minimise."""
        place = {level: index for index, level in enumerate(self.measured.levels[1:])}
        sums = []
        for tau, tau_model in enumerate(self.taus_model):
            grid = build_grid(GridSpec(levels=levels), tau_model=tau_model)
            of_tau = self.measured.losses[images, :, tau][:, :, [place[level] for level in grid.level.tolist()]]
            sums.append(np.einsum("idlc,l->idc", of_tau, self.classifier.weights(grid)))
        return np.stack(sums, axis=2)

    def merit(self, levels: Levels, images: np.ndarray) -> tuple[float, float]:
        """Mean accuracy over tau, and for ties the mean log-softmax of the label's score."""
        losses, labels = self.losses(levels, images), self.measured.labels[images]
        log_likelihood = np.take_along_axis(log_softmax(-losses, axis=-1), own_class(losses, labels), axis=-1)
        return float(credit(losses, labels).mean()), round(float(log_likelihood.mean()), MARGIN_DIGITS)

    def halves(self) -> tuple[Int[np.ndarray, " some"], Int[np.ndarray, " others"]]:
        """Images to choose on, and images to judge on."""
        order = np.random.default_rng(self.seed).permutation(len(self.measured.labels))
        return order[::2], order[1::2]

    def greedy(self, most: int) -> list[Levels]:
        """The best pair above every tau, and then one more level at a time, up to `most` evaluations."""
        candidates, images = self.measured.levels, self.halves()[0]
        beyond = [level for level in candidates if level > max(self.taus_model)]

        def best(options: Iterable[Levels]) -> Levels:
            return max(options, key=lambda levels: self.merit(levels, images))

        chosen = [best(combinations(beyond, 2))]
        while len(chosen) < min(most, len(candidates) - 1):
            left = sorted(set(candidates) - set(chosen[-1]))
            chosen.append(best(tuple(sorted((*chosen[-1], level))) for level in left))
        return chosen

    def proposal(self, grown: Sequence[Levels], budget: int) -> Levels:
        """The best of those within the budget, the shortest of equals."""
        images = self.halves()[0]
        return max(grown[:budget], key=lambda levels: self.merit(levels, images))

    def evenly_spaced(self, most: int) -> list[Levels]:
        """Grids evenly spaced in ln sigma over all measured levels, where every tau has a term: to compare with."""
        candidates = np.array(self.measured.levels)
        grids = [
            tuple(candidates[np.linspace(0, len(candidates) - 1, size).round().astype(int)].tolist())
            for size in range(2, min(most, len(candidates) - 1) + 2)
        ]
        return [levels for levels in grids if levels[-2] > max(self.taus_model)]

    def judged(self, levels: Levels) -> Choice:
        chosen_on, others = (self.accuracy_of_images(levels, images) for images in self.halves())
        error = others.std(axis=0, ddof=1) / np.sqrt(len(others))
        return Choice(
            levels, tuple(chosen_on.mean(axis=0).tolist()), tuple(others.mean(axis=0).tolist()), tuple(error.tolist())
        )

    def accuracy_of_images(self, levels: Levels, images: np.ndarray) -> Float[np.ndarray, "images taus"]:
        accuracy: np.ndarray = credit(self.losses(levels, images), self.measured.labels[images]).mean(axis=1)
        return accuracy
