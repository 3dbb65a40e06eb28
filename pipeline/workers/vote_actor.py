"""The actor that turns work units into evidence. An ordinary callable class: nothing here knows Ray."""

import math
import socket
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
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
from pipeline.store.event_log import log_from_actor
from pipeline.store.evidence import Evidence
from pipeline.store.run_store import RunStore
from pipeline.workers.compute import pick_device, set_up_process
from pipeline.workers.device_record import device_record
from pipeline.workers.models import build_classifier, checkpoints_of, model_digests
from pipeline.workers.rows import RECEIPT_COLUMNS, Columns, Receipt, rows_of, unit_of_row
from pipeline.workers.store_work import store_work
from pipeline.workers.unit_groups import ImageSchedule, UnitGroup, levels_of
from pipeline.workers.usage import UsageMeter
from pipeline.workers.watchdog import LOADING, Heartbeat

NO_IMAGE = np.zeros((0, 0, 0), np.uint8)


@dataclass(frozen=True)
class VoterSettings:
    """What an actor needs to know, small enough to send to each."""

    config: RunConfig
    run_folder: str
    declaration: Declaration
    fingerprint: str
    num_classes: int
    device: Device = "auto"
    begin_until: float = math.inf  # no image is begun after this moment, in seconds since 1970


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
    """The votes of one unit, drawn by itself; about `candidate`, if they may stop when it is beaten."""
    group = UnitGroup([unit], record, (NO_CLASS if candidate is None else candidate,))
    ((_, counts),) = stream_votes(classifier, in_turn([(None, group.request(config, image))]))
    if isinstance(counts, Exception):
        raise counts
    return counts[0]


@dataclass(frozen=True)
class Known:
    """What the store has of a group, and what is still to be voted on."""

    evidence: list[Evidence]
    missing: UnitGroup
    image: np.ndarray


@dataclass(frozen=True)
class Publication:
    """A group whose votes are on their way to the store; the noise levels at which they decide their image."""

    group: UnitGroup
    items: list[Evidence]
    decided: set[float]
    future: Future[None]


@dataclass
class Queues:
    """The work that an actor has. Groups of images that have begun go before those of others: passes are full from the
    first to the last, and images are finished one after the other."""

    fresh: deque[UnitGroup]
    begun: deque[UnitGroup] = field(default_factory=deque)
    looked_up: deque[tuple[UnitGroup, Future[Known]]] = field(default_factory=deque)
    done: deque[Receipt] = field(default_factory=deque)


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
        self.meter = UsageMeter(self.classifier.device)
        self.heartbeat.end(LOADING)
        self.store = RunStore(settings.run_folder)
        self.store_work, self.look_ahead = store_work(self.classifier.device)
        self.clock = time.perf_counter()

    def __call__(self, batch: Columns) -> Iterator[Columns]:
        for receipt in self.receipts(unit_of_row(row) for row in rows_of(batch)):
            yield {name: np.array([getattr(receipt, name)]) for name in RECEIPT_COLUMNS}

    def receipts(self, rows: Iterable[tuple[WorkUnit, ImageRecord]]) -> Iterator[Receipt]:
        """A receipt for each unit, and for those that turn out to be needed as others are done."""
        self.clock = time.perf_counter()
        queues = Queues(deque(self.first_groups(rows)))
        done, publications = queues.done, deque[Publication]()
        for (group, known), counts in stream_votes(self.classifier, partial(self._next_request, queues)):
            try:
                if isinstance(counts, Exception):
                    raise counts
                items = self._counted(known.missing, counts)
                queues.begun.extend(self.next_groups(group, [*known.evidence, *items]))
                decided = known.missing.decided_levels()
                publications.append(
                    Publication(known.missing, items, decided, self.store_work.submit(self._publish, items))
                )
            except Exception as error:
                done.extend(self._failed(known.missing, error))
            while publications and publications[0].future.done():
                done.extend(self._published(publications.popleft()))
            while done:
                yield done.popleft()
        for publication in publications:
            done.extend(self._published(publication))
        yield from done

    def _next_request(self, queues: Queues) -> tuple[tuple[UnitGroup, Known], VoteRequest] | None:
        while True:
            while len(queues.looked_up) < self.look_ahead and (waiting := self._waiting(queues)):
                group = waiting.popleft()
                queues.looked_up.append((group, self.store_work.submit(self._look_up, group)))
            if not queues.looked_up:
                return None
            group, future = queues.looked_up.popleft()
            try:
                known = future.result()
                queues.done.extend(self._receipt(item.unit) for item in known.evidence)
                if known.missing.units:
                    self._begin(known.missing)
                    return (group, known), known.missing.request(self.settings.config, known.image)
                queues.begun.extend(self.next_groups(group, known.evidence))
            except Exception as error:  # whatever it is, it is this group's: the others go on
                queues.done.extend(self._failed(group, error))

    def _waiting(self, queues: Queues) -> deque[UnitGroup]:
        if queues.begun or time.time() >= self.settings.begin_until:
            return queues.begun
        return queues.fresh

    def first_groups(self, rows: Iterable[tuple[WorkUnit, ImageRecord]]) -> Iterator[UnitGroup]:
        for unit, record in rows:
            units = [replace(unit, sigma_pixel=sigma) for sigma in levels_of(self.settings.config, unit)]
            yield UnitGroup(units, record, (NO_CLASS,) * len(units))

    def next_groups(self, group: UnitGroup, evidence: Sequence[Evidence]) -> Iterable[UnitGroup]:
        """What is to be voted on next, now that there is a group's evidence."""
        return ()

    def _look_up(self, group: UnitGroup) -> Known:
        """What the store has of a group, and the image for the rest of it."""
        fingerprint, evidence, missing = self.settings.fingerprint, list[Evidence](), []
        for unit, candidate in zip(group.units, group.candidates, strict=True):
            unit_id = unit.unit_id(fingerprint)
            if self.store.has_evidence(unit_id, fingerprint=fingerprint):
                evidence.append(self.store.read_evidence(unit_id, fingerprint=fingerprint))
            else:
                missing.append((unit, candidate))
        units, candidates = [unit for unit, _ in missing], tuple(candidate for _, candidate in missing)
        rest = UnitGroup(units, group.record, candidates, group.schedule)
        return Known(evidence, rest, self.store.pictures.pixels(group.record) if missing else NO_IMAGE)

    def _begin(self, group: UnitGroup) -> None:
        for unit in group.units:
            self.heartbeat.begin(str(unit))
            self._log("begin", unit)

    def _counted(self, group: UnitGroup, counts: Sequence[VoteCounts]) -> list[Evidence]:
        """The time since the last group was counted is divided among the group's units."""
        now = time.perf_counter()
        seconds, self.clock = (now - self.clock) / len(counts), now
        items = []
        for unit, counted in zip(group.units, counts, strict=True):
            votes = {int(c): int(counted.votes[c]) for c in counted.votes.nonzero()[0]}
            cost = counted.evaluations, seconds, time.time(), self.device
            items.append(Evidence(unit, votes, *cost, counted.scores))
        return items

    def _publish(self, items: Sequence[Evidence]) -> None:
        """Makes votes durable."""
        for item in items:
            self.store.publish(item, fingerprint=self.settings.fingerprint)

    def _published(self, publication: Publication) -> Iterator[Receipt]:
        """Receipts for a group, once it is durable or cannot be made so."""
        try:
            publication.future.result()
        except Exception as error:
            yield from self._failed(publication.group, error)
            return
        for item in publication.items:
            self.heartbeat.end(str(item.unit))
            self._log("published", item.unit, evaluations=item.evaluations, seconds=item.seconds)
            receipt = self._receipt(item.unit, evaluations=item.evaluations, seconds=item.seconds)
            yield replace(receipt, decided=item.unit.sigma_pixel in publication.decided)

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
            usage=self.meter.text(),
        )

    def _failed(self, group: UnitGroup, error: Exception) -> Iterator[Receipt]:
        message = f"{type(error).__name__}: {error}"
        unreachable = isinstance(error, LocationError) and not is_local(self.store.folder)
        for unit in group.units:
            with suppress(LocationError):  # an unreachable store cannot record it; the receipt reports it
                self.store.record_failure(unit, message, fingerprint=self.settings.fingerprint)
            self.heartbeat.end(str(unit))
            self._log("failed", unit, error=message)
            yield self._receipt(unit, error=message, fatal=unreachable or isinstance(error, NoSpaceError))


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

    def next_groups(self, group: UnitGroup, evidence: Sequence[Evidence]) -> Iterable[UnitGroup]:
        schedule = group.schedule
        assert schedule is not None
        for item in evidence:
            schedule.take(item)
        return schedule.next_groups()
