"""The Lipschitz certificate of the diffusion classifier DC, without any smoothing (paper, Eq. 11).

DC's score is  score_y(z) = - E_e sum_t c_t min(||h(Q_t(z + sigma_t e), sigma_t, y) - z||^2, cap D),  where the square
is a sum over the D dimensions, h is clipped to [-1, 1] and Q_t rounds to a lattice (`lattice`); cap = 4 caps nothing.
docs/certificates.md derives the constant.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from ndc_core.certificates.certificate import Certificate, LipschitzTerms, Tally, Terms
from ndc_core.certificates.confidence_sequences import log_wealth_of_means, smallest_mean_lower
from ndc_core.certificates.sequential import look_schedule
from ndc_core.noise.grid import WEIGHTS, Grid, Levels, build_grid
from ndc_core.space import sigma_to_model

LARGEST_LOSS_PER_DIM = 4.0  # h and z lie in [-1, 1]
RELATIVE_MARGIN = 1e-9  # of sums of a few hundred float64 terms (rule S7)
SINGLE = 2.0**-24  # largest relative error of one operation in single precision


def effective_cap(loss_cap: float | None) -> float:
    return LARGEST_LOSS_PER_DIM if loss_cap is None else min(loss_cap, LARGEST_LOSS_PER_DIM)


def margin_constant_model(level: Levels, weight: Levels, *, dimension: int, loss_cap: float | None) -> float:
    """Lipschitz constant (L2, model space) of the difference of two classes' expected scores.

    Each step adds c_t D (2 cap / (sqrt(2 pi) sigma_t) + 4 min(1, sqrt(cap)) / sqrt(D)): the first term from the noise
    (a Gaussian average of a function of range 2 cap moves by at most that), the second from the target, where the two
    classes' targets cancel as far as the loss is not capped.
    """
    cap = effective_cap(loss_cap)
    through_noise = 2 * cap / (math.sqrt(2 * math.pi) * level)
    through_target = 4 * min(1.0, math.sqrt(cap)) / math.sqrt(dimension)
    return float((weight * dimension * (through_noise + through_target)).sum())


def margin_constant_pixel(level: Levels, weight: Levels, *, dimension: int, loss_cap: float | None) -> float:
    """The same for pixels in [0, 1]: z = 2x - 1 doubles every slope."""
    return sigma_to_model(margin_constant_model(level, weight, dimension=dimension, loss_cap=loss_cap))


def rounding_of_margin(weight: Levels, *, dimension: int, loss_cap: float | None) -> float:
    """Largest error of the difference of two classes' scores as single precision computes them.

    With r = h - z a pixel's residual, z is off by SINGLE at most, and the difference and the square by a relative
    SINGLE. So a loss of at most cap D is off by at most D SINGLE (4 cap + 2 sqrt(cap)), a little generously; sums are
    in double precision.
    """
    cap = effective_cap(loss_cap)
    return float(2 * weight.sum()) * dimension * SINGLE * (4 * cap + 2 * math.sqrt(cap))


@dataclass(frozen=True)
class Lipschitz:
    """A radius for the class with the highest expected score: (lower bound of its margin) / (Lipschitz constant).

    The selection draws name the class. The margin over each rival is an expectation known through draws: the bound is
    that of `confidence_sequences.smallest_mean_lower`, valid whenever sampling stops. It stops when the radius is
    within a share `precision` of that of the draws' mean margin, or when a rival is shown to be ahead.
    """

    terms: Terms

    @property
    def looks(self) -> tuple[int, ...]:
        return look_schedule(self.terms.votes)

    @property
    def own(self) -> LipschitzTerms:
        """Raises ValueError for terms that name no scores."""
        if self.terms.lipschitz is None:
            raise ValueError("a lipschitz certificate needs terms of its own: what the scores are made of")
        return self.terms.lipschitz

    def _grid(self) -> tuple[Grid, Levels]:
        grid = build_grid(self.own.grid, tau_model=0.0)
        return grid, WEIGHTS[self.own.weight](grid)

    @property
    def constant_pixel(self) -> float:
        grid, weight = self._grid()
        bound = margin_constant_pixel(grid.level, weight, dimension=self.own.dimension, loss_cap=self.own.loss_cap)
        return bound * (1 + RELATIVE_MARGIN)

    @property
    def lowest_margin(self) -> float:
        """No draw's margin is below it."""
        _, weight = self._grid()
        largest = float(weight.sum()) * self.own.dimension * effective_cap(self.own.loss_cap)
        return -largest * (1 + RELATIVE_MARGIN)

    @property
    def deviation(self) -> float:
        """How far the mean of the margins as drawn and computed may lie above that of the score.

        The noise's distance from its law costs the margin's range times that distance; single precision costs
        `rounding_of_margin`.
        """
        _, weight = self._grid()
        noise = 2 * -self.lowest_margin * self.terms.distance
        rounding = rounding_of_margin(weight, dimension=self.own.dimension, loss_cap=self.own.loss_cap)
        return (noise + rounding) * (1 + RELATIVE_MARGIN)

    def _margins(self, tally: Tally) -> tuple[int, Float[np.ndarray, "draws rivals"]]:
        selection, scores = tally.selection_scores, tally.estimation_scores
        assert selection is not None, "the lipschitz certificate is made from scores"
        assert scores is not None, "the lipschitz certificate is made from scores"
        top = int(selection.mean(axis=0).argmax())
        return top, scores[:, [top]] - np.delete(scores, top, axis=1)

    def decided(self, tally: Tally) -> bool:
        _, margins = self._margins(tally)
        goal = -math.log(self.terms.alpha)
        if (log_wealth_of_means(-margins, lowest=self.lowest_margin, mean=0.0) >= goal).any():
            return True
        estimate = float(margins.mean(axis=0).min())
        return estimate > 0 and self._margin_lower(margins) >= (1 - self.own.precision) * estimate

    def _margin_lower(self, margins: Float[np.ndarray, "draws rivals"]) -> float:
        lower = smallest_mean_lower(margins, lowest=self.lowest_margin, alpha=self.terms.alpha)
        return lower - RELATIVE_MARGIN * abs(lower) - self.deviation

    def certificate(self, tally: Tally) -> Certificate:
        top, margins = self._margins(tally)
        lower = self._margin_lower(margins)
        return Certificate(
            "lipschitz",
            self.terms.sigma_pixel,
            self.terms.alpha,
            predicted=top if lower > 0 else None,
            radius=max(0.0, lower / self.constant_pixel),
            p_lower=None,
            votes_top=int((margins > 0).all(axis=1).sum()),
            votes=len(margins),
            scope=self.terms.scope,
            margin_lower=lower,
        )

    @property
    def largest_radius(self) -> float:
        return -self.lowest_margin / self.constant_pixel
