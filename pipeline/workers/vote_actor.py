"""The actor that turns work units into evidence. An ordinary callable class: nothing here knows Ray."""

import socket
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
import torch

from ndc_core.classifiers.scoring import NOBODY
from ndc_core.noise.streams import Phase
from ndc_core.polls import Poll, Voter
from ndc_core.voting import VoteCounts, hold_polls
from pipeline.certificates.stopping import Cell
from pipeline.data.datasets import ImageRecord
from pipeline.declaration.config import Device, RunConfig
from pipeline.declaration.procedure import method_of
from pipeline.declaration.units import WorkUnit, draw_ranges
from pipeline.locations import LocationError, NoSpaceError, is_local
from pipeline.store.devices import device_record
from pipeline.store.event_log import log_of_actor
from pipeline.store.evidence import Evidence
from pipeline.store.run_store import RunStore
from pipeline.workers.memory import keep_freed_memory
from pipeline.workers.models import build_classifier, checkpoints_of, model_digests
from pipeline.workers.watchdog import LOADING, Journal

Columns = dict[str, np.ndarray]


@dataclass(frozen=True)
class Receipt:
    """What became of a unit; `error` is empty unless it failed, and no other's votes can be kept either if `fatal`."""

    unit_id: str
    unit: str
    image_id: str
    sigma_pixel: float
    draws: int
    evaluations: int
    seconds: float
    host: str
    error: str
    fatal: bool


RECEIPT_COLUMNS = tuple(field.name for field in fields(Receipt))


@dataclass(frozen=True)
class VoterSettings:
    """What an actor needs to know, small enough to send to each."""

    config: RunConfig
    run_folder: str
    law: dict[str, Any]
    fingerprint: str
    num_classes: int
    device: Device = "auto"


def unit_row(unit: WorkUnit, record: ImageRecord) -> dict[str, Any]:
    """A unit and its image's record as one row of a Ray dataset."""
    return {**asdict(unit), **asdict(record)}


def unit_of_row(row: dict[str, Any]) -> tuple[WorkUnit, ImageRecord]:
    unit, record = ({name: row[name] for name in kind.__dataclass_fields__} for kind in (WorkUnit, ImageRecord))
    return WorkUnit(**unit), ImageRecord(**record)


def rows_of(batch: Columns) -> Iterator[dict[str, Any]]:
    """The rows of a batch of columns, as plain Python values."""
    columns = {name: column.tolist() for name, column in batch.items()}
    for values in zip(*columns.values(), strict=True):
        yield dict(zip(columns, values, strict=True))


def pick_device(device: Device, *, share: float = 1.0) -> str:
    """ "auto" is CUDA where torch can use it. The process takes no more than its share of the GPU's memory.

    Raises:
        ValueError: CUDA is asked for, and torch cannot use it.
    """
    why = "" if device == "cpu" else why_no_cuda()
    if device == "cuda" and why:
        raise ValueError(
            f"compute.device is 'cuda', but {why}; install a build of torch for the GPU there, or set it to 'cpu'"
        )
    if device == "cpu" or why:
        return "cpu"
    if share < 1:
        torch.cuda.set_per_process_memory_fraction(share)
    return "cuda"


def why_no_cuda() -> str:
    """Why torch cannot use a GPU in this process; empty if it can."""
    where = f"torch {torch.__version__} on {socket.gethostname()}"
    if not torch.cuda.is_available():
        return f"{where} sees no CUDA device"
    try:
        torch.zeros(1, device="cuda").add_(1)
    except RuntimeError as error:
        return f"{where} cannot use its CUDA device: {str(error).splitlines()[0]}"
    return ""


def load_voter(settings: VoterSettings) -> Voter:
    """The run's classifier on this node's device, in a process that does nothing else.

    Raises:
        ValueError: the model on this node is not the run's, or the device is not there.
    """
    keep_freed_memory()
    compute = settings.config.compute
    torch.set_num_threads(compute.threads_per_actor)
    for name, digest in model_digests(settings.config).items():
        if digest != settings.law[name]:
            where = checkpoints_of(settings.config)[name]
            raise ValueError(f"the model at {where} is not the one this run was started with")
    return build_classifier(settings.config, device=pick_device(settings.device, share=compute.gpus_per_actor or 1))


def votes_of_unit(
    classifier: Voter,
    config: RunConfig,
    unit: WorkUnit,
    record: ImageRecord,
    image: np.ndarray,
    *,
    candidate: int | None,
) -> VoteCounts:
    """The votes of one unit, drawn by itself; of `candidate`, if they may stop when it is beaten."""
    waiting = [(None, Ballot([unit], record, (NOBODY if candidate is None else candidate,)).poll(config, image))]
    ((_, found),) = hold_polls(classifier, lambda: waiting.pop() if waiting else None)
    if isinstance(found, Exception):
        raise found
    return found[0]


@dataclass(eq=False)
class Following:
    """An image whose draws depend on its votes so far, at one noise level or at several on one path."""

    label: int
    record: ImageRecord
    cells: list[Cell]
    pieces: deque[tuple[Phase, int, int]]

    def next_ballots(self) -> "Iterator[Ballot]":
        """The next draws that its noise levels are known to need, for those that do: as far as the next look."""
        while self.pieces:
            phase, _, stop = piece = self.pieces[0]
            needing = self._needing(phase, stop)
            if needing is None:
                return
            self.pieces.popleft()
            if needing:
                units = [WorkUnit(cell.image_id, self.label, cell.sigma_pixel, *piece) for cell in needing]
                about = [cell.candidate if phase == "estimation" else None for cell in needing]
                candidates = tuple(NOBODY if candidate is None else candidate for candidate in about)
                yield Ballot(units, self.record, candidates, self)

    def _needing(self, phase: Phase, stop: int) -> list[Cell] | None:
        """The levels that need draws up to `stop`; None as long as votes that are out decide it for any level."""
        if phase == "selection":
            return self.cells
        if any(cell.candidate is None for cell in self.cells):
            return None
        standings = [cell.standing() for cell in self.cells]
        if any(standing.needed < stop and not standing.decided for standing in standings):
            return None
        return [cell for cell, standing in zip(self.cells, standings, strict=True) if stop <= standing.needed]

    def take(self, item: Evidence) -> None:
        next(cell for cell in self.cells if cell.sigma_pixel == item.unit.sigma_pixel).take(item)


@dataclass(eq=False)
class Ballot:
    """Units that are voted on together: the same draws of one image, at one noise level or at several on one path."""

    units: list[WorkUnit]
    record: ImageRecord
    candidates: tuple[int, ...]
    following: Following | None = None

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


class VoteActor:
    """Holds the model; for each unit adds noise, scores, counts and publishes, then gives a receipt.

    It works at all units of a batch at once, so that their rows share forward passes. A unit that fails is recorded and
    reported, and the others go on. What was published before is not computed again.

    Raises:
        ValueError: at construction, if the model on this node is not the run's.
    """

    def __init__(self, settings: VoterSettings, journal: Journal | None = None) -> None:
        self.settings = settings
        self.journal = journal or Journal()
        self.journal.arrive()
        self.classifier = load_voter(settings)
        self.device = device_record(self.classifier).text()
        self.journal.end(LOADING)
        self.store = RunStore(settings.run_folder)
        self.clock = time.perf_counter()

    def __call__(self, batch: Columns) -> Iterator[Columns]:
        for receipt in self.receipts(unit_of_row(row) for row in rows_of(batch)):
            yield {name: np.array([getattr(receipt, name)]) for name in RECEIPT_COLUMNS}

    def receipts(self, rows: Iterable[tuple[WorkUnit, ImageRecord]]) -> Iterator[Receipt]:
        """A receipt for each unit, and for those that turn out to be needed as others are done."""
        self.clock = time.perf_counter()
        waiting, done = deque(self.first_ballots(rows)), deque[Receipt]()

        def next_poll() -> tuple[tuple[Ballot, Ballot], Poll] | None:
            while waiting:
                ballot = waiting.popleft()
                try:
                    missing = self._without_evidence(ballot, done)
                    if missing.units:
                        for unit in missing.units:
                            self.journal.begin(str(unit))
                            self._log("begin", unit)
                        image = self.store.pictures.pixels(ballot.record)
                        return (ballot, missing), missing.poll(self.settings.config, image)
                    waiting.extend(self.next_ballots(ballot))
                except Exception as error:  # whatever it is, it is this ballot's: the others go on
                    done.extend(self._failed(ballot, error))
            return None

        for (ballot, missing), found in hold_polls(self.classifier, next_poll):
            try:
                if isinstance(found, Exception):
                    raise found
                done.extend(self._publish(missing, found))
                waiting.extend(self.next_ballots(ballot))
            except Exception as error:
                done.extend(self._failed(missing, error))
            while done:
                yield done.popleft()
        yield from done

    def first_ballots(self, rows: Iterable[tuple[WorkUnit, ImageRecord]]) -> Iterator[Ballot]:
        for unit, record in rows:
            units = [replace(unit, sigma_pixel=sigma) for sigma in levels_of(self.settings.config, unit)]
            yield Ballot(units, record, (NOBODY,) * len(units))

    def next_ballots(self, ballot: Ballot) -> Iterable[Ballot]:
        """What is to be voted on next, now that a ballot is done."""
        return ()

    def _without_evidence(self, ballot: Ballot, done: deque[Receipt]) -> Ballot:
        """The ballot of those units that have no evidence yet; receipts for the others."""
        missing, fingerprint = [], self.settings.fingerprint
        for unit, candidate in zip(ballot.units, ballot.candidates, strict=True):
            if self.store.has_evidence(unit.unit_id(fingerprint), fingerprint=fingerprint):
                done.append(self._receipt(unit))
            else:
                missing.append((unit, candidate))
        units, candidates = [unit for unit, _ in missing], tuple(candidate for _, candidate in missing)
        return Ballot(units, ballot.record, candidates, ballot.following)

    def _publish(self, ballot: Ballot, counts: Sequence[VoteCounts]) -> Iterator[Receipt]:
        """Makes the votes durable. The time since the last receipt is divided among the ballot's units."""
        now = time.perf_counter()
        seconds, self.clock = (now - self.clock) / len(counts), now
        for unit, counted in zip(ballot.units, counts, strict=True):
            votes = {int(c): int(counted.votes[c]) for c in counted.votes.nonzero()[0]}
            cost = counted.evaluations, seconds, time.time(), self.device
            self.store.publish(Evidence(unit, votes, *cost, counted.scores), fingerprint=self.settings.fingerprint)
            self.journal.end(str(unit))
            self._log("published", unit, evaluations=counted.evaluations, seconds=seconds)
            yield self._receipt(unit, evaluations=counted.evaluations, seconds=seconds)

    def _log(self, event: str, unit: WorkUnit, **fields: Any) -> None:
        named = {"unit_id": unit.unit_id(self.settings.fingerprint), **asdict(unit), **fields}
        log_of_actor(event, self.settings.run_folder, **named)

    def _receipt(
        self, unit: WorkUnit, *, evaluations: int = 0, seconds: float = 0.0, error: str = "", fatal: bool = False
    ) -> Receipt:
        return Receipt(
            unit.unit_id(self.settings.fingerprint),
            str(unit),
            unit.image_id,
            unit.sigma_pixel,
            unit.draws,
            evaluations,
            seconds,
            socket.gethostname(),
            error,
            fatal,
        )

    def _failed(self, ballot: Ballot, error: Exception) -> Iterator[Receipt]:
        message = f"{type(error).__name__}: {error}"
        away = isinstance(error, LocationError) and not is_local(self.store.folder)
        for unit in ballot.units:
            with suppress(LocationError):  # a store that is away cannot be told; the receipt says it
                self.store.record_failure(unit, message, fingerprint=self.settings.fingerprint)
            self.journal.end(str(unit))
            self._log("failed", unit, error=message)
            yield self._receipt(unit, error=message, fatal=away or isinstance(error, NoSpaceError))


class WaveActor(VoteActor):
    """Sent any unit of an image, computes what its certificates still need, one wave after the other.

    What is drawn next depends on the evidence before it and on nothing else, so an actor that takes over from another,
    or a run that is resumed, goes on as if nothing had happened.
    """

    def first_ballots(self, rows: Iterable[tuple[WorkUnit, ImageRecord]]) -> Iterator[Ballot]:
        law, classes = self.settings.law, self.settings.num_classes
        for unit, record in rows:
            levels = levels_of(self.settings.config, unit)
            cells = [
                Cell(unit.image_id, sigma, method_of(law, sigma), law["votes"]["selection"], classes)
                for sigma in levels
            ]
            yield from Following(unit.label, record, cells, deque(draw_ranges(law, levels[0]))).next_ballots()

    def next_ballots(self, ballot: Ballot) -> Iterable[Ballot]:
        following = ballot.following
        assert following is not None
        for unit in ballot.units:
            fingerprint = self.settings.fingerprint
            following.take(self.store.read_evidence(unit.unit_id(fingerprint), fingerprint=fingerprint))
        return following.next_ballots()


def levels_of(config: RunConfig, unit: WorkUnit) -> tuple[float, ...]:
    """The noise levels that are voted on together with a unit, rising."""
    return tuple(sorted(config.sigma_pixel)) if config.one_path else (unit.sigma_pixel,)
