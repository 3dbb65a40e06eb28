"""A run from configuration to report."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import torch
from upath import UPath

from ndc_core.denoiser import Denoiser, EveryClass
from ndc_core.rows import fastest_rows
from pipeline.attackers import empirical_accuracy
from pipeline.cluster import Say, stop_on_signals, stream
from pipeline.config import RunConfig
from pipeline.datasets import DATASETS, ImageRecord, Listing, examples_of, list_images, source_of
from pipeline.entries import Source
from pipeline.law import fingerprint_of, law_of, refuse_changes, refuse_undeclared_radii
from pipeline.lease import Lease, held
from pipeline.locations import absolute
from pipeline.memory import keep_freed_memory
from pipeline.models import load_models, model_digests
from pipeline.progress import ReadingProgress, VoteProgress
from pipeline.reduce import certify_images
from pipeline.report import Report, write_report
from pipeline.run_log import RunLog
from pipeline.store import RunStore, evidence_digest
from pipeline.units import WorkUnit, plan_units
from pipeline.votes import Receipt, VoteActor, VoterSettings, WaveActor, pick_device, unit_row
from pipeline.waves import Cells, cells_of

IMAGES_TOGETHER = 8


class UnitsFailedError(RuntimeError):
    """Some units have no evidence: the run is incomplete and can be resumed."""


@dataclass(frozen=True)
class PreparedRun:
    """A run that passed every check that can be made before work starts."""

    config: RunConfig
    folder: UPath
    source: Source
    listing: Listing
    units: dict[str, WorkUnit]  # by unit id
    law: dict[str, Any]
    fingerprint: str
    num_classes: int
    estimate_evaluations: int  # of the clean image behind a vote, without a label
    every_class_at_once: bool  # whether a forward pass gives all classes

    @property
    def records(self) -> list[ImageRecord]:
        return self.listing.records

    @property
    def votes(self) -> int:
        return sum(unit.draws for unit in self.units.values())

    @property
    def stops_early(self) -> bool:
        """Whether the number of votes depends on the votes."""
        return self.config.certificate.method != "cohen"

    @property
    def at_most(self) -> str:
        return "at most " if self.stops_early else ""

    def missing(self, cells: Cells) -> dict[str, WorkUnit]:
        """The units without evidence that images are known to need."""
        needed = {key: cell.standing().needed for key, cell in cells.items()}
        return {
            unit_id: unit
            for unit_id, unit in self.units.items()
            if unit.draw_start not in cells[unit.cell].evidence[unit.phase]
            and (unit.phase == "selection" or unit.draw_stop <= needed[unit.cell])
        }

    @property
    def remarks(self) -> list[str]:
        """What was decided about the data without being asked."""
        data, (channels, height, width) = self.config.dataset, self.listing.image_shape
        guess = "" if data.format or data.name in DATASETS else f", read as {self.source.format} (--format overrides)"
        resized = f", resized with the filter {data.filter}" if data.resize else ""
        lines = [
            f"data: {data.name}{guess}: {channels} x {height} x {width} pixels{resized}",
            f"{self.config.compute.rows_per_pass} rows a forward pass",
        ]
        corrupt = self.listing.corrupt
        return lines + ([f"left out {len(corrupt):,} corrupt images: {', '.join(corrupt)}"] if corrupt else [])

    @property
    def resume_command(self) -> str:
        return f"ndc certify {self.folder}"

    @property
    def most_evaluations_per_vote(self) -> int:
        """What a vote costs at most: sift of all classes, refine of the kept ones, the unconditional estimate."""
        classifier = self.config.classifier
        sift = classifier.sift if classifier.sift and classifier.sift.keep < self.num_classes else None
        estimating = self.estimate_evaluations if classifier.name.startswith("apndc") else 0
        if self.every_class_at_once:
            return classifier.grid.steps + estimating
        gradient = classifier.label_gradient
        gradient = gradient if gradient and gradient.keep < self.num_classes else None
        kept = gradient.keep if gradient else sift.keep if sift else self.num_classes
        sifting = sift.grid.steps * self.num_classes if sift else 2 * gradient.steps if gradient else 0
        return sifting + kept * classifier.grid.steps + estimating

    def manifest(self) -> dict[str, Any]:
        plan = {
            "units": len(self.units),
            "votes": self.votes,
            "classes": self.num_classes,
            "stops_early": self.stops_early,
        }
        return {"fingerprint": self.fingerprint, "law": self.law, "plan": plan}


def prepare(config: RunConfig, folder: UPath) -> PreparedRun:
    """Loads and checks everything, writing nothing (a model in an object store is copied to this node's cache).

    Raises:
        ValueError: a model or data that cannot be used, or a folder that belongs to another run.
    """
    device = pick_device(config.compute.gpus_per_actor)
    store = RunStore(folder)
    store.is_declared()  # says at once whether the place can be reached at all
    denoiser, unconditional = load_models(config, device=device)
    config = with_rows_per_pass(config, store, denoiser, device=device)
    source = source_of(config.dataset)
    listing = list_images(
        config.dataset,
        source,
        image_shape=denoiser.image_shape,
        num_classes=denoiser.num_classes,
        noise=config.noise,
        on_image=ReadingProgress(),
    )
    law = law_of(config, listing, models=model_digests(config))
    fingerprint = fingerprint_of(law)
    refuse_other_law(store, law)
    units = {unit.unit_id(fingerprint): unit for unit in plan_units(law, listing.records)}
    classes, at_once = denoiser.num_classes, isinstance(denoiser, EveryClass)
    return PreparedRun(
        config, folder, source, listing, units, law, fingerprint, classes, unconditional.evaluations, at_once
    )


def with_rows_per_pass(config: RunConfig, store: RunStore, denoiser: Denoiser, *, device: str) -> RunConfig:
    """The configuration with the number of rows that the run was declared with, or else the fastest here."""
    if config.compute.rows_per_pass is not None:
        return config
    if store.is_declared():
        rows = store.manifest()["law"]["compute"]["rows_per_pass"]
    else:
        keep_freed_memory()
        threads = torch.get_num_threads()
        torch.set_num_threads(config.compute.threads_per_actor)
        rows = fastest_rows(denoiser, device=device).rows
        torch.set_num_threads(threads)
    return config.model_copy(update={"compute": config.compute.model_copy(update={"rows_per_pass": rows})})


def refuse_other_law(store: RunStore, law: dict[str, Any]) -> None:
    """Raises LawChangedError if the folder holds a run of another law."""
    if store.is_declared():
        refuse_changes(store.manifest()["law"], law, folder=str(store.folder))


def certify_run(run: PreparedRun, *, say: Say, force: bool = False, retry_failed: bool = False) -> tuple[Report, Any]:
    """Brings a run to its end from wherever it stands; returns its report and its MLflow tracker.

    `force` takes the run from a driver that is at work on it; `retry_failed` computes failed units only.

    Raises:
        UnitsFailedError: naming the units that failed; the others are done.
        ValueError: the folder is in use or cannot be written, or the MLflow server does not answer.
    """
    from pipeline.tracking import Tracker

    stop_on_signals()
    store = RunStore(run.folder)
    with held(run.folder, force=force, say=say) as lease, RunLog(run.folder) as log:
        refuse_other_law(store, run.law)  # another driver may have been here since `prepare`
        if not store.is_declared():
            examples = examples_of(run.config.dataset, run.source, channels=run.listing.image_shape[0], corrupt=[])
            store.declare(run.manifest(), config_toml=run.config.to_toml(), records=run.records, examples=examples)
        tracker = Tracker(
            experiment=run.config.experiment,
            folder=run.folder,
            law=run.law,
            fingerprint=run.fingerprint,
            data=run.config.dataset,
        )
        try:
            Session(run, store, lease, log, say).vote(only_failed=retry_failed)
            report = reduce_and_report(store, alpha=None, radii=run.config.certificate.radii, folder=run.folder)
        except BaseException as error:
            with suppress(Exception):  # a full disk is told by what hit it first
                tracker.stopped(failed=isinstance(error, Exception))
            raise
        names = ("report.html", "curve.svg", "curve.png", "table.md", "certificates.parquet", "run.toml")
        tracker.finish(report, [run.folder / name for name in names])
        return report, tracker


@dataclass(frozen=True)
class Session:
    """What one driver does for a run."""

    run: PreparedRun
    store: RunStore
    lease: Lease
    log: RunLog
    tell: Say

    def say(self, line: str) -> None:
        self.tell(line)
        self.log.add("note", message=line)

    def vote(self, *, only_failed: bool) -> None:
        """Computes what is missing of the evidence.

        Raises:
            UnitsFailedError: naming the units that failed.
            LeaseError: another driver has taken the run over.
        """
        evidence, unusable = self.store.sort_out_evidence(fingerprint=self.run.fingerprint, planned=set(self.run.units))
        for path, problem in unusable:
            self.say(f"set aside {path}: {problem}; its unit is computed again")
        cells = cells_of(self.run.law, self.run.records, evidence, num_classes=self.run.num_classes)
        votes_done = sum(item.unit.draws for item in evidence)
        missing = self.run.missing(cells)
        if only_failed:
            missing = {unit_id: missing[unit_id] for unit_id in self.store.failed_ids() if unit_id in missing}
            self.say(f"trying {len(missing):,} failed units again")
        elif not missing:
            self.say(f"all {votes_done:,} votes are there already")
        elif votes_done:
            self.say(f"going on at {votes_done:,} of {self.run.at_most}{self.run.votes:,} votes")
        if missing:
            self._vote_on(list(missing.values()), votes_done)

    def _vote_on(self, units: list[WorkUnit], votes_done: int) -> None:
        run, failed, done = self.run, [], 0
        self.log.add("start", units=len(units), fingerprint=run.fingerprint)
        with VoteProgress(votes=run.votes, votes_done_before=votes_done, at_most=run.at_most) as progress:
            for receipt in stream_receipts(run, units, say=self.say):
                self.lease.check()
                progress.add(receipt)
                self.log.add("unit", **asdict(receipt))
                done += 1
                if receipt.error:
                    failed.append(receipt)
                if receipt.fatal:
                    raise UnitsFailedError(
                        f"{receipt.unit}: {receipt.error}\nstopped, since nothing can be kept; what was published is: "
                        f"run `{run.resume_command}` to go on"
                    )
        if failed:
            listed = "\n".join(f"  {receipt.unit}: {receipt.error}" for receipt in failed)
            raise UnitsFailedError(
                f"{len(failed)} of {done} units failed, the others are done:\n{listed}\n"
                f"mend the cause, then run `{run.resume_command}` to finish (`--retry-failed` for these alone)"
            )


def stream_receipts(run: PreparedRun, units: Sequence[WorkUnit], *, say: Say) -> Iterator[Receipt]:
    """Sends units to a pool of actors and yields a receipt for each as soon as it is published.

    Where what is drawn depends on the votes, an actor is sent one unit of each image and noise level, and goes on from
    there; levels on one path go together. Several images at a time, so that their rows share forward passes. What
    takes longest is sent first, so that no actor is left with much at the end: the more draws a unit has, and where
    they depend on the votes, the more noise.
    """
    record_of = {record.image_id: record for record in run.records}
    follows, one_path = run.config.follows_images, run.config.classifier.one_path
    sent = {
        (
            unit.image_id,
            None if one_path else unit.sigma_pixel,
            None if follows else (unit.phase, unit.draw_start),
        ): unit
        for unit in sorted(units, key=lambda unit: (unit.sigma_pixel if follows else 0, unit.draws), reverse=True)
    }
    rows = [unit_row(unit, record_of[unit.image_id]) for unit in sent.values()]
    settings = VoterSettings(run.config, absolute(run.folder), run.law, run.fingerprint, num_classes=run.num_classes)
    actor, together = (WaveActor, IMAGES_TOGETHER) if follows else (VoteActor, 1)
    for row in stream(rows, actor, settings, compute=run.config.compute, rows_together=together, say=say):
        yield Receipt(**row)


def reduce_and_report(store: RunStore, *, alpha: float | None, radii: Sequence[float], folder: UPath) -> Report:
    """Derives certificates and report from a run's evidence alone; another alpha needs no model and no votes.

    Raises:
        ValueError: the run is incomplete, or a radius is none that a sequential run declared.
    """
    manifest, images = store.manifest(), store.images()
    law, fingerprint = manifest["law"], manifest["fingerprint"]
    refuse_undeclared_radii(law, radii)
    evidence = store.all_evidence(fingerprint=fingerprint)
    certified = certify_images(
        evidence,
        images,
        law=law,
        num_classes=manifest["plan"]["classes"],
        alpha=alpha,
        resume_with=f"ndc certify {store.folder}",
    )
    return write_report(
        folder,
        certified,
        images,
        law=law,
        alpha=law["certificate"]["alpha"] if alpha is None else alpha,
        radii=radii,
        title=f"Certified robustness: {store.folder.name}",
        evidence_digest=evidence_digest(evidence, fingerprint=fingerprint),
        empirical=empirical_accuracy(store.folder, fingerprint=fingerprint),
    )
