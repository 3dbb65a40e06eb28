"""Where each image stands in its certificate's procedure: what is drawn, what comes next, whether it is decided.

All of it is read from evidence, so a run that was interrupted makes the same decisions again, and a wave depends
only on the decisions before it (rule S3).
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from jaxtyping import Int

from ndc_core.certificates.certificate import Procedure, Tally
from ndc_core.noise.draw_generators import Phase
from pipeline.declaration.declaration import Declaration
from pipeline.store.evidence import Evidence, EvidenceTable

Votes = Int[np.ndarray, " classes"]


class IncompleteRunError(ValueError):
    """Votes are missing: nothing is certified from fewer than were declared (rule S4)."""


class Named(Protocol):
    @property
    def image_id(self) -> str: ...


@dataclass(frozen=True)
class SamplingState:
    """`needed` estimation draws are asked for so far; `tally` is that of the last complete look, if there is one."""

    decided: bool
    needed: int
    tally: Tally | None


@dataclass
class Cell:
    """One image at one noise level: its procedure, and the evidence about it."""

    image_id: str
    sigma_pixel: float
    method: Procedure
    selection_votes: int
    num_classes: int
    evidence: dict[Phase, dict[int, Evidence]] = field(default_factory=lambda: {"selection": {}, "estimation": {}})
    looks_left_open: int = 0  # how many looks are known to have decided nothing: evidence is only added
    last_state: SamplingState | None = None  # that of all the evidence, if it has been asked for

    def __str__(self) -> str:
        return f"image {self.image_id}, sigma_pixel {self.sigma_pixel:g}"

    def take(self, item: Evidence) -> None:
        self.evidence[item.unit.phase][item.unit.draw_start] = item
        self.last_state = None

    def units(self, phase: Phase) -> list[Evidence]:
        """The phase's evidence from draw 0 up to the first gap, in the order of the draws."""
        items, reached = [], 0
        while item := self.evidence[phase].get(reached):
            items.append(item)
            reached = item.unit.draw_stop
        return items

    def drawn(self, phase: Phase) -> int:
        units = self.units(phase)
        return units[-1].unit.draw_stop if units else 0

    @property
    def candidate(self) -> int | None:
        """The class that the estimation votes are about, once all selection votes are there."""
        if self.drawn("selection") < self.selection_votes:
            return None
        return Tally(self._counts(self.units("selection")), [[0] * self.num_classes]).top

    def state(self) -> SamplingState:
        """Follows the procedure as far as the evidence goes: it stops at the first look that decides."""
        self.last_state = self.last_state or self._follow()
        return self.last_state

    def _follow(self) -> SamplingState:
        selection, estimation = self.units("selection"), self.units("estimation")
        ends, tally = self.method.looks, None
        if not selection or selection[-1].unit.draw_stop < self.selection_votes:
            return SamplingState(False, ends[0], None)
        drawn = estimation[-1].unit.draw_stop if estimation else 0
        chosen, looks, scores = self._counts(selection), self._looks(estimation), _scores(estimation)
        for reached, end in enumerate(ends, start=1):
            if drawn < end:
                return SamplingState(False, end, tally)
            tally = Tally(chosen, looks[:reached], _scores(selection), None if scores is None else scores[:end])
            if end == ends[-1] or (reached > self.looks_left_open and self.method.decided(tally)):
                return SamplingState(True, end, tally)
            self.looks_left_open = max(self.looks_left_open, reached)
        raise AssertionError("a procedure ends at its last look")

    def _looks(self, estimation: Sequence[Evidence]) -> list[Votes]:
        """Votes of each class up to each look that the evidence reaches."""
        looks, total, ends = [], defaultdict[int, int](int), set(self.method.looks)
        for item in estimation:
            for class_id, votes in item.votes.items():
                total[class_id] += votes
            if item.unit.draw_stop in ends:
                looks.append(self._array(total))
        return looks

    def _counts(self, items: Iterable[Evidence]) -> Votes:
        total = defaultdict[int, int](int)
        for item in items:
            for class_id, votes in item.votes.items():
                total[class_id] += votes
        return self._array(total)

    def _array(self, total: Mapping[int, int]) -> Votes:
        counts = np.zeros(self.num_classes, np.int64)
        for class_id, votes in total.items():
            counts[class_id] = votes
        return counts

    def finished(self, *, resume_with: str) -> Tally:
        """The tally that the procedure ended with.

        Raises:
            IncompleteRunError: votes are missing or there are more than the procedure takes; says how to go on.
        """
        state = self.state()
        needed_votes: tuple[tuple[Phase, int], ...] = (
            ("selection", self.selection_votes),
            ("estimation", state.needed),
        )
        for phase, needed in needed_votes:
            items = sorted(self.evidence[phase].values(), key=lambda item: item.unit.draw_start)
            reached = 0
            for item in items:
                if item.unit.draw_start < reached:
                    raise IncompleteRunError(f"{self}: {phase} draw {item.unit.draw_start} was counted twice")
                reached = item.unit.draw_stop
            present = sum(item.unit.draws for item in items)
            if present > needed:
                raise IncompleteRunError(
                    f"{self}: {present:,} {phase} votes where the declared procedure stops at {needed:,}; "
                    "this evidence was not made by `ndc certify`"
                )
            if not present == reached == needed:  # as nothing overlaps, a gap would make them differ
                raise IncompleteRunError(
                    f"{self}: {present:,} of {needed:,} {phase} votes present; run `{resume_with}` to finish"
                )
        assert state.decided
        assert state.tally is not None
        return state.tally


def _scores(items: Sequence[Evidence]) -> np.ndarray | None:
    scores = [item.scores for item in items if item.scores is not None]
    return np.concatenate(scores) if scores and len(scores) == len(items) else None


Key = tuple[float, str]


class Grouped(Protocol):
    """Evidence by noise level and image."""

    def cells(self) -> Iterable[Key]: ...

    def of_cell(self, cell: Key) -> Sequence[Evidence]: ...


class ByCell:
    """A few items of evidence, grouped."""

    def __init__(self, items: Iterable[Evidence]) -> None:
        self.items: defaultdict[Key, list[Evidence]] = defaultdict(list)
        for item in items:
            self.items[item.unit.cell].append(item)

    def cells(self) -> Iterable[Key]:
        return self.items

    def of_cell(self, cell: Key) -> list[Evidence]:
        return self.items.get(cell, [])


class Cells(Mapping[Key, Cell]):
    """Every image at every noise level, in the order of a report. A cell is put together when it is asked for, so that
    only one cell's evidence is in memory at a time."""

    def __init__(
        self, declaration: Declaration, images: Sequence[Named], evidence: Grouped, *, num_classes: int
    ) -> None:
        self.methods = {sigma_pixel: declaration.procedure(sigma_pixel) for sigma_pixel in declaration.sigma_pixel}
        self.keys_in_order = {(sigma, image.image_id): None for sigma in self.methods for image in images}
        self.selection_votes, self.num_classes, self.evidence = declaration.selection_votes, num_classes, evidence

    def __len__(self) -> int:
        return len(self.keys_in_order)

    def __iter__(self) -> Iterator[Key]:
        return iter(self.keys_in_order)

    def __getitem__(self, key: Key) -> Cell:
        sigma_pixel, image_id = key
        if key not in self.keys_in_order:
            raise KeyError(key)
        cell = Cell(image_id, sigma_pixel, self.methods[sigma_pixel], self.selection_votes, self.num_classes)
        for item in self.evidence.of_cell(key):
            if item.unit.draw_start in cell.evidence[item.unit.phase]:
                raise IncompleteRunError(f"{cell}: {item.unit.phase} draw {item.unit.draw_start} was counted twice")
            cell.take(item)
        return cell


def cells_of(
    declaration: Declaration, images: Sequence[Named], evidence: EvidenceTable | Iterable[Evidence], *, num_classes: int
) -> Cells:
    """Every image at every noise level, with its evidence.

    Raises:
        IncompleteRunError: an item of evidence is of an image that the run does not have, or, when a cell is asked
            for, two of its items begin at the same draw.
    """
    grouped: Grouped = evidence if isinstance(evidence, EvidenceTable) else ByCell(evidence)
    cells = Cells(declaration, images, grouped, num_classes=num_classes)
    for key in grouped.cells():
        if key not in cells.keys_in_order:
            raise IncompleteRunError(f"{grouped.of_cell(key)[0].unit}: the run has no such image or noise level")
    return cells
