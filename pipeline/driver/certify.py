"""A run from configuration to report."""

import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from typing import Any

from upath import UPath

from pipeline.certificates.remaining import RemainingWork
from pipeline.certificates.reuse import reuse_votes
from pipeline.certificates.stopping import cells_of
from pipeline.declaration.declaration import Declaration
from pipeline.declaration.shards import WHOLE, Shard
from pipeline.declaration.units import WorkUnit
from pipeline.driver.declare import declare_or_grow
from pipeline.driver.prepare import PreparedRun, in_folder
from pipeline.driver.tracked_votes import TrackedVotes
from pipeline.driver.vote_progress import VoteProgress
from pipeline.locations import LocationError, absolute
from pipeline.progress import moment
from pipeline.report.mlflow_values import model_tags, partial_scalars
from pipeline.report.report import Report, reduce_and_report, summary_so_far
from pipeline.side_channel import Listener, Listeners, Say, SideChannel, in_time, safely
from pipeline.store.event_log import EventLog
from pipeline.store.evidence import EvidenceTable
from pipeline.store.lease import REPORT, Lease, LeaseError, held, name_of
from pipeline.store.run_store import RunStore
from pipeline.workers.pools import NoGpuError, Pool, as_begun, kinds_of
from pipeline.workers.ray_cluster import connect_ray, stop_on_signals
from pipeline.workers.ray_pool import Metrics, map_over_actors
from pipeline.workers.rows import Receipt, unit_row
from pipeline.workers.vote_actor import SequentialVoteActor, VoteActor, VoterSettings

IMAGES_TOGETHER = 8
PASSES_OF_A_GPU = 6  # launched, or waiting for their turn
FILLS_OF_A_CALL = 4
UNITS_BETWEEN_COMPACTIONS = 20_000


class UnitsFailedError(RuntimeError):
    """Some units have no evidence: the run is incomplete and can be resumed."""


class NothingKeptError(UnitsFailedError):
    """The run's folder takes no evidence, so other units would fail too."""


def certify_run(
    run: PreparedRun,
    *,
    say: Say,
    shard: Shard = WHOLE,
    force: bool = False,
    retry_failed: bool = False,
    donors: Sequence[UPath] = (),
    budget_seconds: float = math.inf,
) -> tuple[Report | None, Any]:
    """Brings a run to its end from wherever it stands; returns its report and its MLflow tracker, if it has one.

    Given a `shard`, it computes only the shard's images of a declared run; there is a report if the others' images are
    done, too. `force` takes the run from a driver that is at work on it; `retry_failed` computes failed units only.
    Votes that `donors` (folders of other runs) have drawn are taken over. No image is begun after `budget_seconds`: the
    report is then a partial one, of the first images of the run's order. If a terminal, log, metric or MLflow fails,
    the run says so once and goes on.

    Raises:
        UnitsFailedError: naming the units that failed; the others are done.
        ValueError: there is no place for actors, or the folder is in use or cannot be written.
    """
    stop_on_signals()
    store, say = RunStore(run.folder), safely(say)
    if not store.is_declared():
        connect_ray(run.config.compute, say=say)  # if there is no place for actors, no folder is left behind
    with (
        held(run.folder, force=force, say=say, name=name_of(shard)) as lease,
        EventLog(run.folder, say=say) as log,
    ):
        run = declare_or_grow(run) if shard.is_whole else in_folder(run)
        if math.isfinite(budget_seconds) and run.config.order != "random":
            raise ValueError(
                f"{run.folder} takes its images in the order of the data, and the first ones are not a sample: a run "
                "with a budget begins in a folder of its own; name one with --run"
            )
        tracker, mlflow = None, SideChannel("MLflow", say)
        with mlflow:
            tracker = tracker_of(run) if shard.number == 1 else None  # one driver reports on all of them
        try:
            session = Session(run, store, lease, log, say, shard, donors, tracker, time.time() + budget_seconds)
            if math.isfinite(budget_seconds):
                say(f"no image is begun after {moment(session.begin_until)}; those that are begun by then are finished")
            session.vote(only_failed=retry_failed)
            if session.is_used:
                say(f"the budget is used; the same command takes more images, `ndc certify {run.folder}` all of them")
                with mlflow:
                    if tracker:
                        tracker.stopped(failed=False)
                return reduce_to(run, partial=True), None
            if shard.is_whole:
                return report_on(run, tracker, mlflow, say), tracker
            return report_of_all(run, shard, tracker, mlflow, say)
        except BaseException as error:
            if tracker:
                with mlflow:
                    in_time(partial(tracker.stopped, failed=isinstance(error, Exception)))
            raise


def report_on(run: PreparedRun, tracker: Any, mlflow: SideChannel, say: Say) -> Report:
    """The report of a complete run, which goes to MLflow as well."""
    report = reduce_to(run)
    for line in report.provenance.devices:
        say(line)
    if tracker:
        names = ("report.html", "curve.svg", "curve.png", "table.md", "certificates.parquet", "run.toml")
        with mlflow:
            tracker.finish(report, [run.folder / name for name in names])
    return report


def reduce_to(run: PreparedRun, *, partial: bool = False) -> Report:
    """The run's report, in its folder; a partial one in the folder `partial` there."""
    folder = run.folder / "partial" if partial else run.folder
    radii = run.config.certificate.radii
    return reduce_and_report(RunStore(run.folder), alpha=None, radii=radii, folder=folder, partial=partial)


def report_of_all(
    run: PreparedRun, shard: Shard, tracker: Any, mlflow: SideChannel, say: Say
) -> tuple[Report | None, Any]:
    """The report, by the last of several drivers; None where others have images left, or one of them makes it."""
    run = in_folder(run)
    evidence = RunStore(run.folder).all_evidence(fingerprint=run.fingerprint)
    missing = {unit.image_id for unit in run.missing(evidence).values()}
    if missing:
        say(f"shard {shard} is complete; {len(missing):,} images of other shards are not: `ndc status {run.folder}`")
        return None, None
    try:
        with held(run.folder, force=False, say=say, name=REPORT):
            with mlflow:
                tracker = tracker or tracker_of(run)
            return report_on(run, tracker, mlflow, say), tracker
    except LeaseError as error:
        say(f"the run is complete, and its report is being made: {error}")
        return None, None


def how_to_go_on(folder: UPath, shard: Shard = WHOLE) -> str:
    """What to say of a run that was stopped. Before its folder is declared there is nothing to go on with."""
    try:
        declared = RunStore(folder).is_declared()
    except ValueError:  # the store cannot be reached, and may hold what was published
        declared = True
    if declared:
        return f"; what was published is kept. Run `ndc certify {folder}{shard.option}` to go on."
    return f" before any vote was drawn: {folder} holds nothing yet."


def tracker_of(run: PreparedRun) -> Any:
    """The run's MLflow tracker; None where it asks for none."""
    if run.config.tracking == "none":
        return None
    from pipeline.report.mlflow_tracker import Tracker

    tags = model_tags(run.model, run.num_classes, run.source.class_names or ())
    return Tracker(run.config, folder=run.folder, declaration=run.declaration, tags=tags)


@dataclass(frozen=True)
class Session:
    """What one driver does for a run, or a shard of it."""

    run: PreparedRun
    store: RunStore
    lease: Lease
    log: EventLog
    tell: Say
    shard: Shard = WHOLE
    donors: Sequence[UPath] = ()
    tracker: Any = None
    begin_until: float = math.inf
    to_finish: frozenset[str] | None = None  # the images that count, where no others are begun

    def say(self, line: str) -> None:
        self.tell(line)
        self.log.add("note", message=line)

    def vote(self, *, only_failed: bool) -> None:
        """Computes the missing evidence.

        Raises:
            UnitsFailedError: naming the units that failed.
            LeaseError: another driver has taken the run over.
        """
        evidence, unusable = self.store.sort_out_evidence(
            fingerprint=self.run.fingerprint,
            planned=self.run.units.keys(),
            of_whole_run=self.shard.is_whole,
            compact=self.shard.number == 1,
        )
        for path, problem in unusable:
            self.say(f"set aside {path}: {problem}; what it held is computed again")
        for donor in self.donors:
            if self._missing(evidence):
                evidence = self._reuse_votes(evidence, donor)
        votes_done, missing = self._votes_of(evidence.unit_ids), self._missing(evidence)
        if only_failed:
            missing = {unit_id: missing[unit_id] for unit_id in self.store.failed_ids() if unit_id in missing}
            self.say(f"trying {len(missing):,} failed units again")
        elif not missing:
            self.say(f"all {votes_done:,} votes are there already")
        elif votes_done:
            self.say(f"going on at {votes_done:,} of {self.run.at_most}{self._votes_of(self._units):,} votes")
        if missing:
            pool = self._pool(kinds_of(evidence.devices))
            self._vote_on(list(missing.values()), evidence, pool)
            if math.isfinite(self.begin_until):
                self._finish_begun(pool)

    def _finish_begun(self, pool: Pool) -> None:
        """Completes all images before the last one that is begun: the complete ones are then the first of the order,
        whatever they cost."""
        evidence = self.store.all_evidence(fingerprint=self.run.fingerprint)
        place = {record.image_id: number for number, record in enumerate(self.run.in_order)}
        last = max((place[image_id] for _, image_id in evidence.cells()), default=-1)
        images = frozenset(record.image_id for record in self.run.in_order[: last + 1])
        begun = [unit for unit in self._missing(evidence).values() if unit.image_id in images]
        if begun:
            left = len({unit.image_id for unit in begun})
            self.say(f"the time is used; {left:,} images are finished that come before the last one begun")
            replace(self, begin_until=math.inf, to_finish=images)._vote_on(begun, evidence, pool)

    @property
    def is_used(self) -> bool:
        """Whether the budget ended the run before its images did."""
        if math.isinf(self.begin_until):
            return False
        return bool(self._missing(self.store.all_evidence(fingerprint=self.run.fingerprint)))

    @cached_property
    def _units(self) -> dict[str, WorkUnit]:
        """The units that the run may need for the shard's images, by id."""
        if self.shard.is_whole:
            return self.run.units
        images = {record.image_id for record in self.run.records if self.shard.has(record.image_id)}
        return {unit_id: unit for unit_id, unit in self.run.units.items() if unit.image_id in images}

    def _counts(self, image_id: str) -> bool:
        return self.shard.has(image_id) and (self.to_finish is None or image_id in self.to_finish)

    def _votes_of(self, unit_ids: Iterable[str]) -> int:
        return sum(self._units[unit_id].draws for unit_id in unit_ids if unit_id in self._units)

    def _missing(self, evidence: EvidenceTable) -> dict[str, WorkUnit]:
        missing = self.run.missing(evidence)
        return {unit_id: unit for unit_id, unit in missing.items() if unit_id in self._units}

    def _pool(self, begun: Sequence[str]) -> Pool:
        """Actors on the device that drew the votes so far, unless another is asked for: no silent mixing.

        Raises:
            ValueError: the votes so far were drawn on a GPU, and none can be used here.
        """
        asked_for = self.run.config.compute
        compute = as_begun(asked_for, begun)
        so_far = f"the votes so far were drawn on {' and '.join(begun)}"
        try:
            pool = connect_ray(compute, say=self.say)
        except NoGpuError as error:
            if compute == asked_for:
                raise
            raise NoGpuError(
                f"{so_far}, and no GPU can be used here; a CPU may decide near-ties otherwise: with --set "
                "compute.device=cpu the run goes on there, and its certificates are of votes on both"
            ) from error
        for remark in pool.remarks:
            self.say(remark)
        if begun and pool.device not in begun:
            self.say(
                f"{so_far}, the others are drawn on {pool.device}, which may decide near-ties otherwise: certificates "
                "are of votes on both (docs/soundness.md)"
            )
        elif pool.remarks and compute != asked_for and pool.device == "cpu":
            self.say(f"{so_far}, and the others are too; --set compute.device=cuda draws the others on GPUs")
        return pool

    def _reuse_votes(self, evidence: EvidenceTable, donor: UPath) -> EvidenceTable:
        run = self.run
        votes, evaluations = reuse_votes(
            self.store, run.declaration, evidence, run.records, num_classes=run.num_classes, donor=donor
        )
        if not votes:
            return evidence
        self.say(f"took {votes:,} votes over from {donor}, {evaluations:,} evaluations")
        return self.store.all_evidence(fingerprint=run.fingerprint)

    def _compact(self) -> None:
        with suppress(LocationError, FileNotFoundError):  # it can wait until the run is started again
            self.store.compact(fingerprint=self.run.fingerprint)

    def _listeners(self, evidence: EvidenceTable) -> dict[str, Callable[[], Listener[Receipt]]]:
        run = self.run
        listeners: dict[str, Callable[[], Listener[Receipt]]] = {
            "the progress display": lambda: VoteProgress(
                RemainingWork.of_evidence(
                    cells_of(run.declaration, run.records, evidence, num_classes=run.num_classes),
                    evidence,
                    stops_early=run.stops_early,
                    has=self._counts,
                ),
                begin_until=self.begin_until,
            )
        }
        if self.tracker:
            listeners["progress in MLflow"] = lambda: TrackedVotes(
                self.tracker, evidence, results=self._results, say=self.say
            )
        return listeners

    def _results(self) -> dict[str, float]:
        return partial_scalars(summary_so_far(self.store, radii=self.run.config.certificate.radii))

    def _vote_on(self, units: list[WorkUnit], evidence: EvidenceTable, pool: Pool) -> None:
        run, failed, done = self.run, [], 0
        self.log.add("start", units=len(units), fingerprint=run.fingerprint)
        with Listeners(self._listeners(evidence), say=self.say) as listeners:
            for receipt in stream_receipts(run, units, pool=pool, say=self.say, begin_until=self.begin_until):
                self.lease.check()
                listeners.add(receipt)
                self.log.add("unit", **asdict(receipt))
                done += 1
                if done % UNITS_BETWEEN_COMPACTIONS == 0 and self.shard.number == 1:
                    threading.Thread(target=self._compact, daemon=True).start()
                if receipt.error:
                    failed.append(receipt)
                if receipt.fatal:
                    raise NothingKeptError(
                        f"{receipt.unit}: {receipt.error}\nstopped, since nothing more can be kept; what was published "
                        f"is kept: run `{run.resume_command}{self.shard.option}` to go on"
                    )
        if failed:
            listed = "\n".join(f"  {receipt.unit}: {receipt.error}" for receipt in failed)
            raise UnitsFailedError(
                f"{len(failed)} of {done} units failed, the others are done:\n{listed}\n"
                f"mend the cause, then run `{run.resume_command}{self.shard.option}` to finish (`--retry-failed` for "
                "these alone)"
            )


def stream_receipts(
    run: PreparedRun, units: Sequence[WorkUnit], *, pool: Pool, say: Say, begin_until: float = math.inf
) -> Iterator[Receipt]:
    """Sends units to a pool of actors and yields a receipt for each as soon as it is published. No image is begun after
    the moment `begin_until`.

    Where the draws depend on the votes, an actor is sent one unit of each image and noise level, and goes on from
    there; levels on one path go together. It gets as many images at a time as fill its passes with their first draws
    several times over, because passes are seldom full while the last images end. Images go one after the other, so that
    an unfinished run has complete ones; within an image, what takes longest goes first: the level with the most noise,
    the unit with the most draws.
    """
    record_of = {record.image_id: record for record in run.in_order}
    place_of = {image_id: place for place, image_id in enumerate(record_of)}
    follows, one_path = run.config.follows_images, run.config.one_path
    sent = {
        (
            unit.image_id,
            None if one_path else unit.sigma_pixel,
            None if follows else (unit.phase, unit.draw_start),
        ): unit
        for unit in sorted(units, key=lambda unit: (place_of[unit.image_id], -unit.sigma_pixel, -unit.draws))
    }
    rows = [unit_row(unit, record_of[unit.image_id]) for unit in sent.values()]
    settings = VoterSettings(
        run.config,
        absolute(run.folder),
        run.declaration,
        run.fingerprint,
        run.num_classes,
        device=pool.device,
        begin_until=begin_until,
    )
    actor, fewest = (SequentialVoteActor, IMAGES_TOGETHER) if follows else (VoteActor, 1)
    fill = units_of_passes(run.declaration, passes=PASSES_OF_A_GPU if pool.gpus_per_actor else 1, follows=follows)
    together = max(fewest, (FILLS_OF_A_CALL if follows and pool.gpus_per_actor else 1) * fill)
    stuck_seconds = run.config.compute.stuck_seconds
    metrics, exported = Metrics(str(run.folder)), SideChannel("Ray's metrics", say)
    for row in map_over_actors(
        rows, actor, settings, pool=pool, stuck_seconds=stuck_seconds, rows_together=together, fill=fill, say=say
    ):
        receipt = Receipt(**row)
        with exported:
            if receipt.error:
                metrics.add(failed_units=1)
            else:
                metrics.add(units=1, votes=receipt.draws, evaluations=receipt.evaluations)
        yield receipt


def units_of_passes(declaration: Declaration, *, passes: int, follows: bool) -> int:
    """How many units it takes to fill so many passes when each draw waits for one row's answer. Where an actor follows
    the votes, an image begins with the units that select its class."""
    draws = min(declaration.votes_per_unit, declaration.selection_votes if follows else declaration.votes_per_unit)
    return math.ceil(passes * declaration.rows_per_pass / draws)
