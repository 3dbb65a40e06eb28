"""Work units: ranges of draws of one image, named by what they are."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from ndc_core.noise.draw_generators import Phase
from pipeline.data.datasets import ImageRecord
from pipeline.declaration.declaration import Declaration

UNIT_SECONDS = 180.0  # of one actor


@dataclass(frozen=True, slots=True)
class WorkUnit:
    """Draws draw_start to draw_stop (excluded) of one image, noise level and phase."""

    image_id: str
    label: int
    sigma_pixel: float
    phase: Phase
    draw_start: int
    draw_stop: int

    @property
    def draws(self) -> int:
        return self.draw_stop - self.draw_start

    @property
    def cell(self) -> tuple[float, str]:
        """What its draws are about: a noise level and an image."""
        return self.sigma_pixel, self.image_id

    def unit_id(self, fingerprint: str) -> str:
        """A key for this unit of a run with this declaration: the same in every process and after every retry."""
        name = [
            fingerprint,
            self.image_id,
            self.label,
            self.sigma_pixel,
            self.phase,
            self.draw_start,
            self.draw_stop,
        ]
        return hashlib.blake2b(json.dumps(name).encode(), digest_size=16).hexdigest()

    def __str__(self) -> str:
        return (
            f"image {self.image_id}, sigma_pixel {self.sigma_pixel:g}, "
            f"{self.phase} draws {self.draw_start} to {self.draw_stop - 1}"
        )


def draws_a_unit(votes_per_second: float, *, phase: int, run: int, of_a_pass: int) -> int:
    """How many draws take an actor about three minutes: few enough to lose with it, enough that there are few units.

    Not more than half of the largest phase of an image (`phase` votes), nor more than a hundredth of the run (`run`
    votes, the most there can be), so that a short run shows its progress and loses little when it is stopped. Not less
    than the draws whose rows fill a pass, if an image has as many: smaller units would wait for passes of padding.
    """
    wanted = min(phase // 2, run // 100, round(UNIT_SECONDS * votes_per_second))
    return min(phase, max(1, of_a_pass, wanted))


def draw_ranges(declaration: Declaration, sigma_pixel: float) -> Iterator[tuple[Phase, int, int]]:
    """The most draws that an image may need at a noise level, cut at every look and end and into pieces of per_unit."""
    per_unit, cuts = declaration.votes_per_unit, declaration.unit_ends
    ends: tuple[tuple[Phase, tuple[int, ...]], ...] = (
        ("selection", (declaration.selection_votes,)),
        ("estimation", declaration.procedure(sigma_pixel).looks),
    )
    for phase, looks in ends:
        for begin, end in pairwise(sorted({0, *looks, *(cut for cut in cuts if cut < looks[-1])})):
            for start in range(begin, end, per_unit):
                yield phase, start, min(end, start + per_unit)


def plan_units(declaration: Declaration, records: Sequence[ImageRecord]) -> Iterator[WorkUnit]:
    """Every unit that a run may need; a function of its declaration and its data only."""
    ranges = {sigma_pixel: list(draw_ranges(declaration, sigma_pixel)) for sigma_pixel in declaration.sigma_pixel}
    for record in records:
        for sigma_pixel, pieces in ranges.items():
            for piece in pieces:
                yield WorkUnit(record.image_id, record.label, sigma_pixel, *piece)
