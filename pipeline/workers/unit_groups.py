"""Units that are voted on together, and what an image still needs."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ndc_core.classifiers.voter import NO_CLASS
from ndc_core.noise.draw_generators import Phase
from ndc_core.vote_requests import VoteRequest
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

    def next_groups(self) -> "Iterator[UnitGroup]":
        """The next draws for the noise levels that are known to need some: as far as the next look."""
        while self.pieces:
            phase, _, stop = piece = self.pieces[0]
            needing = self._needing(phase, stop)
            if needing is None:
                return
            self.pieces.popleft()
            if needing:
                units = [WorkUnit(cell.image_id, self.label, cell.sigma_pixel, *piece) for cell in needing]
                about = [cell.candidate if phase == "estimation" else None for cell in needing]
                candidates = tuple(NO_CLASS if candidate is None else candidate for candidate in about)
                yield UnitGroup(units, self.record, candidates, self)

    def _needing(self, phase: Phase, stop: int) -> list[Cell] | None:
        """The levels that need draws up to `stop`; None while votes still to come decide it for any level."""
        if phase == "selection":
            return self.cells
        if any(cell.candidate is None for cell in self.cells):
            return None
        states = [cell.state() for cell in self.cells]
        if any(state.needed < stop and not state.decided for state in states):
            return None
        return [cell for cell, state in zip(self.cells, states, strict=True) if stop <= state.needed]

    def take(self, item: Evidence) -> None:
        next(cell for cell in self.cells if cell.sigma_pixel == item.unit.sigma_pixel).take(item)


@dataclass(eq=False)
class UnitGroup:
    """Units that are voted on together: the same draws of one image, at one noise level or at several on one path."""

    units: list[WorkUnit]
    record: ImageRecord
    candidates: tuple[int, ...]
    schedule: ImageSchedule | None = None

    def decided_levels(self) -> set[float]:
        """The noise levels at which its image's draws so far decide, where a schedule follows them."""
        cells = self.schedule.cells if self.schedule else []
        return {cell.sigma_pixel for cell in cells if cell.state().decided}

    def request(self, config: RunConfig, image: np.ndarray) -> VoteRequest:
        first = self.units[0]
        return VoteRequest(
            image=image,
            image_id=first.image_id,
            sigma_pixel=tuple(unit.sigma_pixel for unit in self.units),
            noise=config.noise,
            seed=config.seed,
            phase=first.phase,
            draws=range(first.draw_start, first.draw_stop),
            keep_scores=config.certificate.method == "lipschitz",
            candidates=self.candidates,
            all_sigmas=config.sigma_pixel,
        )


def levels_of(config: RunConfig, unit: WorkUnit) -> tuple[float, ...]:
    """The noise levels that are voted on together with a unit, rising."""
    return tuple(sorted(config.sigma_pixel)) if config.one_path else (unit.sigma_pixel,)
