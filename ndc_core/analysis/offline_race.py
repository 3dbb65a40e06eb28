"""Racing on losses that are all known: what it would have evaluated, and which class it would have voted for."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from ndc_core.classifiers.racing import leaders, strided, survivors, turns_to_leave


@dataclass(frozen=True)
class OfflineRace:
    """For each vote its class, and how often the network was evaluated for it."""

    winners: Int[np.ndarray, " votes"]
    evaluations: Int[np.ndarray, " votes"]


def race(losses: Float[np.ndarray, "votes steps classes"], *, gap: float, all_at_once: bool) -> OfflineRace:
    """The race of `scoring` on weighted losses, whose steps are in the order of the grid.

    A step is one evaluation `all_at_once`, or one for each class that is still alive.
    """
    votes, steps, classes = losses.shape
    order, done = strided(steps), 0
    alive = np.ones((votes, classes), dtype=bool)
    winners, evaluations = np.full(votes, -1), np.zeros(votes, dtype=int)
    for turns in range(min(turns_to_leave(gap), steps), steps + 1):
        voting = (winners < 0).nonzero()[0]
        evaluations[voting] += (turns - done) * (1 if all_at_once else alive[voting].sum(axis=1))
        so_far = losses[voting][:, order[:turns]]
        alive[voting] = survivors(so_far, alive[voting], gap=gap)
        decided = (alive[voting].sum(axis=1) == 1) | (turns == steps)
        winners[voting[decided]] = leaders(so_far, alive[voting])[0][decided]
        done = turns
    return OfflineRace(winners, evaluations)
