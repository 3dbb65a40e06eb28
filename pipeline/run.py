"""A run from configuration to report, and the one place where Ray is wired."""

import logging
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from ndc_core.checkpoints import denoiser_digest, load_denoiser
from pipeline.config import RunConfig
from pipeline.datasets import Example, check_examples, load_dataset
from pipeline.law import fingerprint_of, law_of, refuse_changes
from pipeline.progress import VoteProgress
from pipeline.reduce import CertifiedImage, certify_images
from pipeline.report import Report, write_report
from pipeline.store import RunStore
from pipeline.units import WorkUnit, plan_units
from pipeline.votes import Receipt, VoteActor, VoterSettings, pick_device, rows_of, unit_row

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 lets every other process push in front of the actors
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # the driver's terminal is for progress

ACTOR_RESTARTS, TASK_RETRIES = 20, 3
MAX_BLOCKS = 20_000
LOCAL_OBJECT_STORE_BYTES = 512 * 2**20

Say = Callable[[str], None]


def _interrupt(signum: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def stop_on_signals() -> None:
    """Lets SIGTERM stop a run as Ctrl-C does: both leave it to be resumed."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, _interrupt)
        signal.signal(signal.SIGTERM, _interrupt)


class UnitsFailedError(RuntimeError):
    """Some units have no evidence: the run is incomplete and can be resumed."""


@dataclass(frozen=True)
class PreparedRun:
    """A run that passed every check that can be made before work starts."""

    config: RunConfig
    folder: Path
    examples: list[Example]
    units: dict[str, WorkUnit]  # by unit id
    law: dict[str, Any]
    fingerprint: str
    num_classes: int

    @property
    def votes(self) -> int:
        return sum(unit.draws for unit in self.units.values())

    @property
    def resume_command(self) -> str:
        return f"ndc certify {self.folder}"

    @property
    def most_evaluations_per_vote(self) -> int:
        """What a vote costs at most: sift of all classes, refine of the kept ones, the unconditional estimate."""
        classifier = self.config.classifier
        sift = classifier.sift if classifier.sift and classifier.sift.keep < self.num_classes else None
        kept = sift.keep if sift else self.num_classes
        sifting = sift.grid.steps * self.num_classes if sift else 0
        return sifting + kept * classifier.grid.steps + int(classifier.name.startswith("apndc"))

    def manifest(self) -> dict[str, Any]:
        plan = {"units": len(self.units), "votes": self.votes, "classes": self.num_classes}
        return {"fingerprint": self.fingerprint, "law": self.law, "plan": plan}


def prepare(config: RunConfig, folder: Path) -> PreparedRun:
    """Loads and checks everything, writing nothing.

    Raises:
        ValueError: a model or data that cannot be used, or a folder that belongs to another run.
    """
    denoiser = load_denoiser(config.model)
    pick_device(config.compute.gpus_per_actor)
    dataset = config.dataset
    examples = load_dataset(dataset.name, split=dataset.split, limit=dataset.limit)
    check_examples(examples, image_shape=denoiser.image_shape, num_classes=denoiser.num_classes)
    law = law_of(config, examples, model_digest=denoiser_digest(config.model))
    fingerprint = fingerprint_of(law)
    refuse_other_law(RunStore(folder), law)
    units = {unit.unit_id(fingerprint): unit for unit in plan_units(config, examples)}
    return PreparedRun(config, folder, examples, units, law, fingerprint, denoiser.num_classes)


def refuse_other_law(store: RunStore, law: dict[str, Any]) -> None:
    """Raises LawChangedError if the folder holds a run of another law."""
    if store.is_declared():
        refuse_changes(store.manifest()["law"], law, folder=str(store.folder))


def certify_run(run: PreparedRun, *, say: Say) -> tuple[Report, Any]:
    """Brings a run to its end from wherever it stands; returns its report and its MLflow tracker.

    Raises:
        UnitsFailedError: naming the units that failed; the others are done.
        ValueError: the folder is in use or cannot be written, or the MLflow server does not answer.
    """
    from pipeline.tracking import Tracker

    stop_on_signals()
    store = RunStore(run.folder)
    with store.lock():
        refuse_other_law(store, run.law)  # another driver may have been here since `prepare`
        if not store.is_declared():
            store.declare(run.manifest(), config_toml=run.config.to_toml(), examples=run.examples)
        tracker = Tracker(experiment=run.config.experiment, folder=run.folder, law=run.law, fingerprint=run.fingerprint)
        try:
            _vote(run, store, say)
            certified, report = reduce_and_report(
                store, alpha=None, radii=run.config.certificate.radii, folder=run.folder
            )
        except BaseException as error:
            tracker.stopped(failed=isinstance(error, Exception))
            raise
        names = ("report.html", "curve.svg", "curve.png", "table.md", "certificates.parquet", "run.toml")
        tracker.finish(report, certified, [run.folder / name for name in names])
        return report, tracker


def _vote(run: PreparedRun, store: RunStore, say: Say) -> None:
    """Computes what is missing of the evidence."""
    for path, problem in store.set_aside_unusable(fingerprint=run.fingerprint, planned=set(run.units)):
        say(f"set aside {path}: {problem}; its unit is computed again")
    pending = {unit_id: unit for unit_id, unit in run.units.items() if not store.has_evidence(unit_id)}
    votes_done = run.votes - sum(unit.draws for unit in pending.values())
    if not pending:
        say(f"all {run.votes:,} votes are there already")
        return
    if votes_done:
        say(f"going on at {votes_done:,} of {run.votes:,} votes")
    failed = []
    with VoteProgress(votes=run.votes, votes_done_before=votes_done) as progress:
        for receipt in stream_receipts(run, list(pending.values())):
            progress.add(receipt)
            if receipt.error:
                failed.append(receipt)
    if failed:
        listed = "\n".join(f"  {receipt.unit}: {receipt.error}" for receipt in failed)
        raise UnitsFailedError(
            f"{len(failed)} of {len(pending)} units failed, the others are done:\n{listed}\n"
            f"mend the cause, then run `{run.resume_command}` to finish"
        )


def reduce_and_report(
    store: RunStore, *, alpha: float | None, radii: Sequence[float], folder: Path
) -> tuple[list[CertifiedImage], Report]:
    """Derives certificates and report from a run's evidence alone; another alpha needs no model and no votes."""
    manifest, images = store.manifest(), store.images()
    law = manifest["law"]
    certified = certify_images(
        store.all_evidence(fingerprint=manifest["fingerprint"]),
        images,
        law=law,
        num_classes=manifest["plan"]["classes"],
        alpha=law["certificate"]["alpha"] if alpha is None else alpha,
        resume_with=f"ndc certify {store.folder}",
    )
    title = f"Certified robustness: {store.folder.name}"
    return certified, write_report(folder, certified, images, law=law, radii=radii, title=title)


# Ray


def connect_ray(run: PreparedRun) -> int:
    """Joins the cluster of RAY_ADDRESS, or starts a local one on loopback; returns the number of actors."""
    import ray

    compute = run.config.compute
    if not ray.is_initialized():
        if os.environ.get("RAY_ADDRESS"):
            ray.init(log_to_driver=False, logging_level=logging.ERROR)
        else:
            # One CPU more than the actors take: without a free one, Ray Data's own tasks never start.
            cpus = len(os.sched_getaffinity(0))
            actors = compute.actors or max(1, cpus // compute.threads_per_actor)
            ray.init(
                address="local",
                num_cpus=actors * compute.threads_per_actor + 1,
                object_store_memory=LOCAL_OBJECT_STORE_BYTES,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
            return actors
    if compute.actors:
        return compute.actors
    resources = ray.cluster_resources()
    if compute.gpus_per_actor:
        return max(1, int(resources.get("GPU", 0) / compute.gpus_per_actor))
    return max(1, int((resources.get("CPU", 1) - 1) / compute.threads_per_actor))


def stream_receipts(run: PreparedRun, units: Sequence[WorkUnit]) -> Iterator[Receipt]:
    """Sends units to a pool of actors and yields a receipt for each as soon as it is published."""
    actors = min(connect_ray(run), len(units))
    stop_on_signals()  # again: Ray has put handlers of its own in place, which abort
    import ray.data

    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):  # its file among Ray's logs keeps everything
            handler.setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.verbose_progress = False
    context.target_max_block_size = 1  # receipts flow at once instead of filling a block first
    context.execution_no_progress_timeout_s = -1  # a long unit is not a stuck one
    example_of = {example.image_id: example for example in run.examples}
    rows = [unit_row(unit, example_of[unit.image_id]) for unit in units]
    settings = VoterSettings(run.config, str(run.folder.absolute()), run.fingerprint, run.law["model_sha256"])
    compute = run.config.compute
    with warnings.catch_warnings():
        # Ray deprecates these two without another way to say them, and its defaults would retry a unit that
        # kills its actor for ever.
        warnings.filterwarnings("ignore", message=".*ray_remote_args.*")
        receipts = ray.data.from_items(rows, override_num_blocks=min(len(rows), MAX_BLOCKS)).map_batches(
            VoteActor,
            fn_constructor_args=(settings,),
            batch_size=None,
            compute=ray.data.ActorPoolStrategy(size=actors, max_tasks_in_flight_per_actor=2),
            num_cpus=compute.threads_per_actor,
            num_gpus=compute.gpus_per_actor or None,
            max_restarts=ACTOR_RESTARTS,
            max_task_retries=TASK_RETRIES,
        )
    for batch in receipts.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=0):
        for row in rows_of(batch):
            yield Receipt(**row)
