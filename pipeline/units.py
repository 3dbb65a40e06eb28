"""Work units: ranges of draws of one image, named by what they are."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ndc_core.randomness import Phase
from pipeline.config import RunConfig
from pipeline.datasets import Example


@dataclass(frozen=True)
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

    def unit_id(self, law_fingerprint: str) -> str:
        """A key that only this unit of a run of this law has: the same in every process and after every retry."""
        name = [
            law_fingerprint,
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


def plan_units(config: RunConfig, examples: Sequence[Example]) -> Iterator[WorkUnit]:
    """Every unit of a run; a function of the configuration and the data only."""
    phases: tuple[tuple[Phase, int], ...] = (
        ("selection", config.votes.selection),
        ("estimation", config.votes.estimation),
    )
    for example in examples:
        for sigma_pixel in config.sigma_pixel:
            for phase, votes in phases:
                for start in range(0, votes, config.votes.per_unit):
                    stop = min(votes, start + config.votes.per_unit)
                    yield WorkUnit(example.image_id, example.label, sigma_pixel, phase, start, stop)
