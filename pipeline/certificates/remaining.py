"""How much work a run has left, judged by the images that are decided: one estimate for plan, progress and status.

A certificate that may stop early takes as many draws as its image needs. Decided images show the distribution of
that number; images under way count as cases that are known only to need more (Kaplan and Meier 1958). The distribution
does not show how much more the longest of these need than any other image: the range goes from nothing to the most
there can be, and the expected value lies in the middle.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from pipeline.certificates.stopping import Cells
from pipeline.progress import duration
from pipeline.store.evidence import EvidenceTable

RESAMPLES = 200
QUANTILES = (0.05, 0.95)
CELLS_THAT_TELL = 500  # per level, at most
GROUPS = 30  # of images with about as many draws
FEWEST_DECIDED = 5  # per level, before there is an estimate
Key = tuple[float, str]  # sigma_pixel and image


@dataclass(frozen=True)
class Left:
    """Evaluations or seconds that are left: the expected number, and bounds that hold nine times in ten.

    Not `known` where too few images are decided: all three are then the most there can be.
    """

    expected: float
    low: float
    high: float
    known: bool

    def times(self, factor: float) -> "Left":
        return Left(self.expected * factor, self.low * factor, self.high * factor, self.known)

    def text(self) -> str:
        """In words, where the numbers are seconds."""
        expected, low, high = (duration(seconds) for seconds in (self.expected, self.low, self.high))
        if not self.known:
            return f"at most {expected} left"
        return f"{expected} left" if low == high else f"{expected} left ({low} to {high})"


@dataclass
class _Cell:
    draws: int = 0
    evaluations: int = 0
    decided: bool = False


class RemainingWork:
    """Keeps account of images at noise levels; `to_decide` is their number at each level."""

    def __init__(self, to_decide: Mapping[float, int], *, most_draws: int, stops_early: bool) -> None:
        self.to_decide, self.most_draws, self.stops_early = dict(to_decide), most_draws, stops_early
        self.begun: dict[float, dict[str, _Cell]] = {sigma_pixel: {} for sigma_pixel in to_decide}
        self.decided = 0

    @classmethod
    def of_evidence(
        cls, cells: Cells, evidence: EvidenceTable, *, stops_early: bool, has: Callable[[str], bool] = lambda _: True
    ) -> "RemainingWork":
        """The work left on a run's images, or on those that a shard has."""
        to_decide = Counter(sigma_pixel for sigma_pixel, image_id in cells if has(image_id))
        most = cells.selection_votes + max(method.looks[-1] for method in cells.methods.values())
        work = cls({sigma: to_decide[sigma] for sigma in cells.methods}, most_draws=most, stops_early=stops_early)
        for key, draws, evaluations in evidence.totals():
            if has(key[1]):
                decided = stops_early and cells[key].state().decided
                work.add(key, draws=draws, evaluations=evaluations, decided=decided)
        return work

    @property
    def cells(self) -> int:
        return sum(self.to_decide.values())

    def add(self, key: Key, *, draws: int, evaluations: int, decided: bool) -> None:
        """Adds published draws of an image at a noise level. Without early stops, only all draws decide it."""
        sigma_pixel, image_id = key
        cell = self.begun[sigma_pixel].setdefault(image_id, _Cell())
        cell.draws += draws
        cell.evaluations += evaluations
        if (decided or cell.draws >= self.most_draws) and not cell.decided:
            cell.decided = True
            self.decided += 1

    def is_decided(self, image_ids: Iterable[str]) -> list[tuple[str, bool]]:
        """Whether each image is decided at each noise level."""
        nothing = _Cell()
        return [(image, level.get(image, nothing).decided) for image in image_ids for level in self.begun.values()]

    def evaluations_left(self) -> Left:
        rng = np.random.default_rng(0)
        evaluations, known = np.zeros((2, 1 + RESAMPLES)), True
        for sigma_pixel in self.to_decide:
            draws, level_known = self._draws_left(sigma_pixel, rng)
            evaluations += self._evaluations_of_a_draw(sigma_pixel) * draws
            known = known and level_known
        expected = float(evaluations[:, 0].mean())
        low, high = (float(np.quantile(row[1:], level)) for row, level in zip(evaluations, QUANTILES, strict=True))
        return Left(expected, min(low, expected), max(high, expected), known)

    def _evaluations_of_a_draw(self, sigma_pixel: float) -> float:
        """The mean at this level so far, or else at all levels; 1 before the first draw."""
        for cells in ([self.begun[sigma_pixel]], self.begun.values()):
            begun = [cell for level in cells for cell in level.values()]
            if draws := sum(cell.draws for cell in begun):
                return sum(cell.evaluations for cell in begun) / draws
        return 1.0

    def _draws_left(self, sigma_pixel: float, rng: np.random.Generator) -> tuple[Float[np.ndarray, "2 results"], bool]:
        """The fewest and the most draws left, first as expected, then resampled: the decided images may mislead, and
        the others differ. And whether they are known."""
        begun = list(self.begun[sigma_pixel].values())
        under_way = np.array([cell.draws for cell in begun if not cell.decided], dtype=int)
        waiting = self.to_decide[sigma_pixel] - len(begun)
        under_way = np.concatenate([under_way, np.zeros(waiting, dtype=int)])
        decided = len(begun) + waiting - len(under_way)
        most = np.full((2, 1 + RESAMPLES), float((self.most_draws - under_way).sum()))
        if not self.stops_early or not len(under_way):
            return most, True
        if decided < FEWEST_DECIDED:
            return most, False
        sample = [begun[place] for place in rng.permutation(len(begun))[:CELLS_THAT_TELL]]
        distribution = _DistributionOfDraws(sample, most=self.most_draws, rng=rng)
        steps = np.unique(np.quantile(under_way, np.linspace(0, 1, GROUPS), method="lower"))
        rounded = steps[np.searchsorted(steps, under_way, side="right") - 1]
        groups = zip(*np.unique(rounded, return_counts=True), strict=True)
        return np.sum([distribution.rest(int(draws), int(count), rng) for draws, count in groups], axis=0), True


class _DistributionOfDraws:
    """How many draws an image takes: the product-limit estimate, and RESAMPLES more with the images weighted at random
    (Rubin 1981), which show how far the first may be off."""

    def __init__(self, cells: list[_Cell], *, most: int, rng: np.random.Generator) -> None:
        cells = sorted(cells, key=lambda cell: (cell.draws, not cell.decided))
        weights = np.concatenate([np.ones((1, len(cells))), rng.exponential(size=(RESAMPLES, len(cells)))])
        at_risk = np.cumsum(weights[:, ::-1], axis=1)[:, ::-1]
        ends = np.array([cell.decided for cell in cells])
        survival = np.cumprod(np.where(ends, 1 - weights / at_risk, 1.0).clip(0), axis=1)
        before = np.concatenate([np.ones((1 + RESAMPLES, 1)), survival], axis=1)
        self.draws = np.array([cell.draws for cell in cells], dtype=float)
        self.mass, self.beyond, self.most = -np.diff(before, axis=1), survival[:, -1:], most

    def rest(self, draws: int, count: int, rng: np.random.Generator) -> Float[np.ndarray, "2 results"]:
        """The fewest and the most draws that `count` images still need together after `draws` draws each."""
        later = self.draws > draws
        reached = max(draws, self.draws[-1])
        noise = rng.standard_normal(len(self.mass))
        noise[0] = 0.0
        totals = []
        for longest in (reached, self.most):
            rest = np.append(self.draws[later], longest) - draws
            mass = np.concatenate([self.mass[:, later], self.beyond], axis=1)
            total = mass.sum(axis=1, keepdims=True)
            share = np.where(total > 0, mass / np.where(total > 0, total, 1), np.arange(len(rest)) == len(rest) - 1)
            mean = share @ rest
            spread = np.sqrt(count * np.maximum(share @ rest**2 - mean**2, 0))
            totals.append(np.clip(count * mean + spread * noise, 0.0, count * rest[-1]))
        return np.stack(totals)
