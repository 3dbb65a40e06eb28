"""What an attack may cost, before it starts: it takes as many images as its budget is enough for in any case."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate


class BudgetError(ValueError):
    """The budget is not enough for one image."""


@dataclass(frozen=True)
class AttackPlan:
    """The first `images` of all that are asked for. Evaluations of the attack are the most that it can take."""

    images: int
    images_of_all: int
    evaluations: int
    evaluations_of_all: int
    evaluations_of_run: int

    def __str__(self) -> str:
        which = "all" if self.images == self.images_of_all else f"the first {self.images:,} of"
        bound = f"at most {self.evaluations:,} evaluations, {self._times(self.evaluations):.2g} times"
        images = f"{which} {self.images_of_all:,} images"
        text = f"attacks {images}: {bound} the {self.evaluations_of_run:,} that the run took"
        if self.images < self.images_of_all:
            text += f"; --budget {_up(self._times(self.evaluations_of_all))} is enough for all"
        return text

    def _times(self, evaluations: int) -> float:
        return evaluations / self.evaluations_of_run


def plan_attack(most_of_images: Sequence[int], *, evaluations_of_run: int, budget: float) -> AttackPlan:
    """As many of the images, from the first on, as can be attacked for `budget` times the run's own evaluations.

    Raises:
        BudgetError: it is not enough for the first; says what is enough.
    """
    sums = list(accumulate(most_of_images))
    images = sum(total <= budget * evaluations_of_run for total in sums)
    if not images:
        raise BudgetError(
            f"an attack on one image takes up to {sums[0]:,} evaluations, and the budget is "
            f"{budget:g} times the {evaluations_of_run:,} that the run took; take a --budget of "
            f"{_up(sums[0] / evaluations_of_run)}, or fewer --restarts, --steps or --votes"
        )
    return AttackPlan(images, len(sums), sums[images - 1], sums[-1], evaluations_of_run)


def _up(times: float) -> str:
    return f"{math.ceil(100 * times) / 100:g}"
