"""What a certificate is, what it is made from, and the procedure that makes it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_FLOOR, Decimal
from functools import cached_property
from typing import Protocol

import numpy as np
from jaxtyping import Float, Int

from ndc_core.noise.grid import GridSpec

Counts = Sequence[int] | Int[np.ndarray, " classes"]


@dataclass(frozen=True)
class Certificate:
    """What was proved about one image by one classifier.

    With probability at least 1 - alpha over the draws: no change of the image of L2 norm (pixels in [0, 1])
    below `radius` changes the class, for the adversarial images that `scope` names. `predicted` is None if it abstains.
    The draws show with this confidence that the class's probability is at least `p_lower` (smoothing), or that the
    margin of its expected score is at least `margin_lower` (lipschitz).
    """

    method: str
    sigma_pixel: float
    alpha: float
    predicted: int | None
    radius: float
    p_lower: float | None
    votes_top: int
    votes: int
    scope: str
    margin_lower: float | None = None

    def __repr__(self) -> str:
        named = "abstains" if self.predicted is None else f"class {self.predicted} to radius {cut_text(self.radius)}"
        return (
            f"<{named}: {self.method}, sigma {self.sigma_pixel:g}, alpha {self.alpha:g}, "
            f"{self.votes_top:,} of {self.votes:,} votes>"
        )

    def holds(self, *, label: int, radius: float) -> bool:
        """Right and certified at the radius: an abstention is wrong at every radius, also at 0 (rule S6)."""
        return self.predicted == label and self.radius >= radius


def cut_text(radius: float) -> str:
    """Four digits, never rounded up, so that no radius that is shown exceeds the certified one (rule S7)."""
    return str(Decimal(radius).quantize(Decimal("0.0001"), rounding=ROUND_FLOOR))


@dataclass(frozen=True)
class LipschitzTerms:
    """What the lipschitz certificate needs in addition: what a score is made of, on images of `dimension` values.

    Sampling stops when the radius is within a share `precision` of that of the draws' mean margin.
    """

    grid: GridSpec
    weight: str = "elbo"
    loss_cap: float | None = None
    dimension: int = 1
    precision: float = 0.1


@dataclass(frozen=True)
class Terms:
    """What is declared about a certificate before the first draw.

    `votes` is the number of estimation draws, or their maximum if a method may stop early. `distance` bounds how far
    (total variation, per draw) the noise is from the law that the theorem assumes: the noise of the input, or of all
    steps for the lipschitz certificate, which has terms of its own in addition.
    """

    sigma_pixel: float
    alpha: float
    votes: int
    radii: tuple[float, ...] = ()
    distance: float = 0.0
    scope: str = "all images"
    lipschitz: LipschitzTerms | None = None

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise ValueError(f"alpha must lie between 0 and 1, not {self.alpha}")
        if not 0 <= self.sigma_pixel < math.inf:
            raise ValueError(f"sigma_pixel must not be negative, and it is {self.sigma_pixel}")


@dataclass(frozen=True)
class Tally:
    """What one image's draws gave at one noise level.

    `looks` holds the estimation votes of each class after each look so far, in whole counts as drawn (rule S4). The
    scores of each draw are kept only where a method needs them.
    """

    selection: Counts
    looks: Sequence[Counts]
    selection_scores: Float[np.ndarray, "draws classes"] | None = None
    estimation_scores: Float[np.ndarray, "draws classes"] | None = None

    def __post_init__(self) -> None:
        counts = [np.asarray(each) for each in (self.selection, *self.looks)]
        if not self.looks or len({each.shape for each in counts}) != 1 or not len(self.selection):
            raise ValueError("selection and estimation votes must be counts of the same classes")
        if min(int(each.min()) for each in counts) < 0 or not counts[0].any():
            raise ValueError("vote counts must not be negative, and there must be selection votes")

    @cached_property
    def top(self) -> int:
        """The class with the most selection votes; of equals, the first."""
        return int(np.argmax(self.selection))

    @cached_property
    def wins(self) -> list[tuple[int, int]]:
        """The estimation votes for the top class, and all of them, after each look so far."""
        return [(int(look[self.top]), int(np.sum(look))) for look in self.looks]


class Procedure(Protocol):
    """A certificate as a procedure: when it looks at an image's draws, when it stops, what it then proves."""

    @property
    def looks(self) -> tuple[int, ...]:
        """Numbers of estimation draws at which it may stop, the last being the most it takes."""

    def decided(self, tally: Tally) -> bool:
        """Whether to stop at the tally's last look; more draws would not serve what was declared."""

    def certificate(self, tally: Tally) -> Certificate:
        """What the draws prove, also if they are not decided yet."""

    @property
    def largest_radius(self) -> float:
        """No certificate of these terms exceeds it."""
