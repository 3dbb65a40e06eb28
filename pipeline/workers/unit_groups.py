"""Units that are voted on together, and what an image still needs."""

from collections import deque
from dataclasses import dataclass

import numpy as np

from ndc_core.classifiers.scoring import NOBODY
from ndc_core.noise.streams import Phase
from ndc_core.voting import Poll
from pipeline.certificates.stopping import Cell
from pipeline.data.datasets import ImageRecord
from pipeline.declaration.config import RunConfig
from pipeline.declaration.units import WorkUnit
from pipeline.store.evidence import Evidence


@dataclass(eq=False)
class ImageSchedule:
    """An image whose draws depend on its votes so far, at one noise level or at several on one path."""

    label: int
    record: ImageRecord
    cells: list[Cell]
    pieces: deque[tuple[Phase, int, int]]

    def next_group(self) -> "UnitGroup | None":
        """The next draws that any of its noise levels still needs, for those that do."""
        while self.pieces:
            phase, _, stop = piece = self.pieces.popleft()
            needing = [cell for cell in self.cells if phase == "selection" or stop <= cell.state().needed]
            if needing:
                units = [WorkUnit(cell.image_id, self.label, cell.sigma_pixel, *piece) for cell in needing]
                about = [cell.candidate if phase == "estimation" else None for cell in needing]
                candidates = tuple(NOBODY if candidate is None else candidate for candidate in about)
                return UnitGroup(units, self.record, candidates, self)
        return None

    def take(self, item: Evidence) -> None:
        next(cell for cell in self.cells if cell.sigma_pixel == item.unit.sigma_pixel).take(item)


@dataclass(eq=False)
class UnitGroup:
    """Units that are voted on together: the same draws of one image, at one noise level or at several on one path."""

    units: list[WorkUnit]
    record: ImageRecord
    candidates: tuple[int, ...]
    schedule: ImageSchedule | None = None

    def poll(self, config: RunConfig, image: np.ndarray) -> Poll:
        first = self.units[0]
        return Poll(
            image=image,
            image_id=first.image_id,
            sigma_pixel=tuple(unit.sigma_pixel for unit in self.units),
            noise=config.noise,
            seed=config.seed,
            phase=first.phase,
            draws=range(first.draw_start, first.draw_stop),
            keep_scores=config.certificate.method == "lipschitz",
            candidates=self.candidates,
            of_the_run=config.sigma_pixel,
        )


def levels_of(config: RunConfig, unit: WorkUnit) -> tuple[float, ...]:
    """The noise levels that are voted on together with a unit, rising."""
    return tuple(sorted(config.sigma_pixel)) if config.one_path else (unit.sigma_pixel,)
