"""The actor that turns work units into evidence. An ordinary callable class: nothing here knows Ray."""

import socket
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from ndc_core.classifiers.voter import NO_CLASS, Voter
from ndc_core.models.forward_passes import in_turn
from ndc_core.vote_requests import VoteRequest
from ndc_core.voting import VoteCounts, stream_votes
from pipeline.certificates.stopping import Cell
from pipeline.data.datasets import ImageRecord
from pipeline.declaration.config import Device, RunConfig
from pipeline.declaration.declaration import Declaration
from pipeline.declaration.units import WorkUnit, draw_ranges
from pipeline.locations import LocationError, NoSpaceError, is_local
from pipeline.store.devices import device_record
from pipeline.store.event_log import log_from_actor
from pipeline.store.evidence import Evidence
from pipeline.store.run_store import RunStore
from pipeline.workers.compute import pick_device, set_up_process
from pipeline.workers.models import build_classifier, checkpoints_of, model_digests
from pipeline.workers.rows import RECEIPT_COLUMNS, Columns, Receipt, rows_of, unit_of_row
from pipeline.workers.unit_groups import ImageSchedule, UnitGroup, levels_of
from pipeline.workers.watchdog import LOADING, Heartbeat


@dataclass(frozen=True)
class VoterSettings:
    """What an actor needs to know, small enough to send to each."""

    config: RunConfig
    run_folder: str
    declaration: Declaration
    fingerprint: str
    num_classes: int
    device: Device = "auto"


def load_voter(settings: VoterSettings) -> Voter:
    """The run's classifier on this node's device, in a process that does nothing else.

    Raises:
        ValueError: the model on this node is not the run's, or the device is not there.
    """
    compute = settings.config.compute
    set_up_process(threads=compute.threads_per_actor)
    for name, digest in model_digests(settings.config).items():
        if digest != settings.declaration.digest(name):
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
    group = UnitGroup([unit], record, (NO_CLASS if candidate is None else candidate,))
    ((_, counts),) = stream_votes(classifier, in_turn([(None, group.request(config, image))]))
    if isinstance(counts, Exception):
        raise counts
    return counts[0]


class VoteActor:
    """Holds the model; for each unit adds noise, scores, counts and publishes, then gives a receipt.

    It works at all units of a batch at once, so that their rows share forward passes. A unit that fails is recorded and
    reported, and the others go on. What was published before is not computed again.

    Raises:
        ValueError: at construction, if the model on this node is not the run's.
    """

    def __init__(self, settings: VoterSettings, heartbeat: Heartbeat | None = None) -> None:
        self.settings = settings
        self.heartbeat = heartbeat or Heartbeat()
        self.heartbeat.arrive()
        self.classifier = load_voter(settings)
        self.device = device_record(self.classifier).text()
        self.heartbeat.end(LOADING)
        self.store = RunStore(settings.run_folder)
        self.clock = time.perf_counter()

    def __call__(self, batch: Columns) -> Iterator[Columns]:
        for receipt in self.receipts(unit_of_row(row) for row in rows_of(batch)):
            yield {name: np.array([getattr(receipt, name)]) for name in RECEIPT_COLUMNS}

    def receipts(self, rows: Iterable[tuple[WorkUnit, ImageRecord]]) -> Iterator[Receipt]:
        """A receipt for each unit, and for those that turn out to be needed as others are done."""
        self.clock = time.perf_counter()
        waiting, done = deque(self.first_groups(rows)), deque[Receipt]()

        def next_request() -> tuple[tuple[UnitGroup, UnitGroup], VoteRequest] | None:
            while waiting:
                group = waiting.popleft()
                try:
                    missing = self._without_evidence(group, done)
                    if missing.units:
                        for unit in missing.units:
                            self.heartbeat.begin(str(unit))
                            self._log("begin", unit)
                        image = self.store.pictures.pixels(group.record)
                        return (group, missing), missing.request(self.settings.config, image)
                    waiting.extend(self.next_groups(group))
                except Exception as error:  # whatever it is, it is this group's: the others go on
                    done.extend(self._failed(group, error))
            return None

        for (group, missing), counts in stream_votes(self.classifier, next_request):
            try:
                if isinstance(counts, Exception):
                    raise counts
                done.extend(self._publish(missing, counts))
                waiting.extend(self.next_groups(group))
                _mark_decided(done, missing)
            except Exception as error:
                done.extend(self._failed(missing, error))
            while done:
                yield done.popleft()
        yield from done

    def first_groups(self, rows: Iterable[tuple[WorkUnit, ImageRecord]]) -> Iterator[UnitGroup]:
        for unit, record in rows:
            units = [replace(unit, sigma_pixel=sigma) for sigma in levels_of(self.settings.config, unit)]
            yield UnitGroup(units, record, (NO_CLASS,) * len(units))

    def next_groups(self, group: UnitGroup) -> Iterable[UnitGroup]:
        """What is to be voted on next, now that a group is done."""
        return ()

    def _without_evidence(self, group: UnitGroup, done: deque[Receipt]) -> UnitGroup:
        """The group of those units that have no evidence yet; receipts for the others."""
        missing, fingerprint = [], self.settings.fingerprint
        for unit, candidate in zip(group.units, group.candidates, strict=True):
            if self.store.has_evidence(unit.unit_id(fingerprint), fingerprint=fingerprint):
                done.append(self._receipt(unit))
            else:
                missing.append((unit, candidate))
        units, candidates = [unit for unit, _ in missing], tuple(candidate for _, candidate in missing)
        return UnitGroup(units, group.record, candidates, group.schedule)

    def _publish(self, group: UnitGroup, counts: Sequence[VoteCounts]) -> Iterator[Receipt]:
        """Makes the votes durable. The time since the last receipt is divided among the group's units."""
        now = time.perf_counter()
        seconds, self.clock = (now - self.clock) / len(counts), now
        for unit, counted in zip(group.units, counts, strict=True):
            votes = {int(c): int(counted.votes[c]) for c in counted.votes.nonzero()[0]}
            cost = counted.evaluations, seconds, time.time(), self.device
            self.store.publish(Evidence(unit, votes, *cost, counted.scores), fingerprint=self.settings.fingerprint)
            self.heartbeat.end(str(unit))
            self._log("published", unit, evaluations=counted.evaluations, seconds=seconds)
            yield self._receipt(unit, evaluations=counted.evaluations, seconds=seconds)

    def _log(self, event: str, unit: WorkUnit, **fields: Any) -> None:
        named = {"unit_id": unit.unit_id(self.settings.fingerprint), **asdict(unit), **fields}
        log_from_actor(event, self.settings.run_folder, **named)

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

    def _failed(self, group: UnitGroup, error: Exception) -> Iterator[Receipt]:
        message = f"{type(error).__name__}: {error}"
        away = isinstance(error, LocationError) and not is_local(self.store.folder)
        for unit in group.units:
            with suppress(LocationError):  # a store that is away cannot be told; the receipt says it
                self.store.record_failure(unit, message, fingerprint=self.settings.fingerprint)
            self.heartbeat.end(str(unit))
            self._log("failed", unit, error=message)
            yield self._receipt(unit, error=message, fatal=away or isinstance(error, NoSpaceError))


def _mark_decided(receipts: deque[Receipt], group: UnitGroup) -> None:
    """The last receipts, which are the group's, of images that need no more draws."""
    decided = group.decided_levels()
    for place in range(-len(group.units), 0):
        receipts[place] = replace(receipts[place], decided=receipts[place].sigma_pixel in decided)


class SequentialVoteActor(VoteActor):
    """Sent any unit of an image, computes what its certificates still need, one wave after the other.

    What is drawn next depends on the evidence before it and on nothing else, so an actor that takes over from another,
    or a run that is resumed, goes on as if nothing had happened.
    """

    def first_groups(self, rows: Iterable[tuple[WorkUnit, ImageRecord]]) -> Iterator[UnitGroup]:
        declaration, classes = self.settings.declaration, self.settings.num_classes
        for unit, record in rows:
            levels = levels_of(self.settings.config, unit)
            cells = [
                Cell(unit.image_id, sigma, declaration.procedure(sigma), declaration.selection_votes, classes)
                for sigma in levels
            ]
            yield from ImageSchedule(
                unit.label, record, cells, deque(draw_ranges(declaration, levels[0]))
            ).next_groups()

    def next_groups(self, group: UnitGroup) -> Iterable[UnitGroup]:
        schedule = group.schedule
        assert schedule is not None
        for unit in group.units:
            fingerprint = self.settings.fingerprint
            schedule.take(self.store.read_evidence(unit.unit_id(fingerprint), fingerprint=fingerprint))
        return schedule.next_groups()
