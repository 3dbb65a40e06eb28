"""One list of levels for several tau, and a race on it, chosen from measured losses.

Half of the images choose the levels of each way to vote, a quarter the way and its race, the last quarter judges.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import numpy as np
from jaxtyping import Float, Int
from scipy.special import log_softmax

from ndc_core.analysis.diagnosis import MeasuredLosses, credit, own_class
from ndc_core.analysis.offline_race import race
from ndc_core.classifiers.diffusion import DiffusionClassifier
from ndc_core.noise.grid import GridSpec, build_grid

Levels = tuple[float, ...]
MARGIN_DIGITS = 9  # beyond these, a gain is rounding


@dataclass(frozen=True)
class Choice:
    """A grid and its vote accuracy at each tau on the images that judge.

    The standard errors are over images: draws of one image are not independent evidence.
    """

    levels: Levels
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

    def terms(
        self, levels: Levels, images: np.ndarray, tau: int
    ) -> tuple[Float[np.ndarray, "images draws steps classes"], Float[np.ndarray, " steps"]]:
        """The losses at one tau of a grid, and their weights."""
        place = {level: index for index, level in enumerate(self.measured.levels[1:])}
        grid = build_grid(GridSpec(levels=levels), tau_model=self.taus_model[tau])
        of_tau = self.measured.losses[images, :, tau][:, :, [place[level] for level in grid.level.tolist()]]
        return of_tau, self.classifier.weights(grid)

    def losses(self, levels: Levels, images: np.ndarray) -> Float[np.ndarray, "images draws taus classes"]:
        """The weighted sums that the classifier's votes on this grid minimise."""
        terms = (self.terms(levels, images, tau) for tau in range(len(self.taus_model)))
        return np.stack([np.einsum("idlc,l->idc", *of_tau) for of_tau in terms], axis=2)

    def merit(self, levels: Levels, images: np.ndarray) -> tuple[float, float]:
        """Mean accuracy over tau, and for ties the mean log-softmax of the label's score."""
        losses, labels = self.losses(levels, images), self.measured.labels[images]
        log_likelihood = np.take_along_axis(log_softmax(-losses, axis=-1), own_class(losses, labels), axis=-1)
        return float(credit(losses, labels).mean()), round(float(log_likelihood.mean()), MARGIN_DIGITS)

    @cached_property
    def parts(self) -> tuple[Int[np.ndarray, " half"], Int[np.ndarray, " quarter"], Int[np.ndarray, " last"]]:
        """Images that choose levels, that choose between ways to vote, and that judge."""
        order = np.random.default_rng(self.seed).permutation(len(self.measured.labels))
        return order[::2], order[1::4], order[3::4]

    def greedy(self, most: int) -> list[Levels]:
        """The best pair above every tau, and then one more level at a time, up to `most` evaluations."""
        candidates, images = self.measured.levels, self.parts[0]
        beyond = [level for level in candidates if level > max(self.taus_model)]

        def best(options: Iterable[Levels]) -> Levels:
            return max(options, key=lambda levels: self.merit(levels, images))

        chosen = [best(combinations(beyond, 2))]
        while len(chosen) < min(most, len(candidates) - 1):
            left = sorted(set(candidates) - set(chosen[-1]))
            chosen.append(best(tuple(sorted((*chosen[-1], level))) for level in left))
        return chosen

    def proposal(self, grown: Sequence[Levels], budget: int) -> Levels:
        """The best within the budget; of equals, the shortest."""
        images = self.parts[0]
        return max(grown[:budget], key=lambda levels: self.merit(levels, images))

    def evenly_spaced(self, most: int) -> list[Levels]:
        """Grids evenly spaced in ln sigma over all measured levels, where every tau has a term: for comparison."""
        candidates = np.array(self.measured.levels)
        grids = [
            tuple(candidates[np.linspace(0, len(candidates) - 1, size).round().astype(int)].tolist())
            for size in range(2, min(most, len(candidates) - 1) + 2)
        ]
        return [levels for levels in grids if levels[-2] > max(self.taus_model)]

    def judged(self, levels: Levels) -> Choice:
        accuracy = self.accuracy_of_images(levels, self.parts[2])
        return Choice(levels, *mean_and_error(accuracy))

    def accuracy_of_images(self, levels: Levels, images: np.ndarray) -> Float[np.ndarray, "images taus"]:
        accuracy: np.ndarray = credit(self.losses(levels, images), self.measured.labels[images]).mean(axis=1)
        return accuracy

    def raced(self, levels: Levels, images: np.ndarray, gap: float | None) -> "Raced":
        """Votes on a grid, raced unless `gap` is None; an estimate without a label is not counted."""
        labels, all_at_once = self.measured.labels[images], self.classifier.all_at_once
        accuracy, evaluations = [], []
        for tau in range(len(self.taus_model)):
            losses, weights = self.terms(levels, images, tau)
            weighted = losses * weights[:, None]
            draws, steps, classes = weighted.shape[1:]
            if gap is None:
                accuracy.append(credit(weighted.sum(axis=2), labels).mean(axis=1))
                evaluations.append(np.full(len(images), steps * (1 if all_at_once else classes), dtype=float))
            else:
                votes = race(weighted.reshape(-1, steps, classes), gap=gap, all_at_once=all_at_once)
                accuracy.append((votes.winners.reshape(-1, draws) == labels[:, None]).mean(axis=1))
                evaluations.append(votes.evaluations.reshape(-1, draws).mean(axis=1))
        return Raced(gap, np.stack(accuracy, axis=1), np.stack(evaluations, axis=1))

    def gap(self, levels: Levels, gaps: Sequence[float]) -> float | None:
        """Of these gaps and None (no race), the one with the fewest evaluations among those at most a standard error
        behind the most accurate, on the images that choose between ways to vote."""
        ways = [self.raced(levels, self.parts[1], gap) for gap in (None, *gaps)]
        best = max(ways, key=lambda way: way.accuracy.mean()).accuracy.mean(axis=1)
        return min((way for way in ways if way.is_close_to(best)), key=lambda way: way.evaluations.mean()).gap


def mean_and_error(accuracy: Float[np.ndarray, "images taus"]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Over images, at each tau."""
    error = accuracy.std(axis=0, ddof=1) / np.sqrt(len(accuracy))
    return tuple(accuracy.mean(axis=0).tolist()), tuple(error.tolist())


@dataclass(frozen=True)
class Raced:
    """How often votes of each image are right at each tau, and their evaluations."""

    gap: float | None
    accuracy: Float[np.ndarray, "images taus"]
    evaluations: Float[np.ndarray, "images taus"]

    def is_close_to(self, best: Float[np.ndarray, " images"]) -> bool:
        behind = best - self.accuracy.mean(axis=1)
        return bool(behind.mean() <= behind.std(ddof=1) / np.sqrt(len(behind)))
