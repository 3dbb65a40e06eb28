"""The actor that turns work units into evidence. An ordinary callable class: nothing here knows Ray."""

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch

from ndc_core.classifiers import DiffusionClassifier
from ndc_core.voting import VoteCounts, count_votes
from pipeline.config import RunConfig
from pipeline.datasets import ImageRecord
from pipeline.locations import LocationError
from pipeline.memory import keep_freed_memory
from pipeline.methods import method_of
from pipeline.models import load_models, model_digests
from pipeline.store import Evidence, RunStore
from pipeline.units import WorkUnit, draw_ranges
from pipeline.waves import Cell

Columns = dict[str, np.ndarray]


@dataclass(frozen=True)
class Receipt:
    """What became of a unit; `error` is empty unless it failed."""

    unit_id: str
    unit: str
    draws: int
    evaluations: int
    seconds: float
    error: str


RECEIPT_COLUMNS = tuple(field.name for field in fields(Receipt))


@dataclass(frozen=True)
class VoterSettings:
    """What an actor needs to know, small enough to send to each."""

    config: RunConfig
    run_folder: str
    law: dict[str, Any]
    fingerprint: str
    num_classes: int


def unit_row(unit: WorkUnit, record: ImageRecord) -> dict[str, Any]:
    """A unit and its image's record as one row of a Ray dataset."""
    return {**unit.__dict__, **record.__dict__}


def unit_of_row(row: dict[str, Any]) -> tuple[WorkUnit, ImageRecord]:
    unit, record = ({name: row[name] for name in kind.__dataclass_fields__} for kind in (WorkUnit, ImageRecord))
    return WorkUnit(**unit), ImageRecord(**record)


def rows_of(batch: Columns) -> Iterator[dict[str, Any]]:
    """The rows of a batch of columns, as plain Python values."""
    columns = {name: column.tolist() for name, column in batch.items()}
    for values in zip(*columns.values(), strict=True):
        yield dict(zip(columns, values, strict=True))


def pick_device(gpus_per_actor: float) -> str:
    """CUDA where GPUs are asked for (untested here: no GPU was at hand), else the CPU.

    Raises:
        ValueError: GPUs are asked for and there are none.
    """
    if gpus_per_actor > 0 and not torch.cuda.is_available():
        raise ValueError("compute.gpus_per_actor is above 0, but this node has no CUDA device; set it to 0")
    return "cuda" if gpus_per_actor > 0 else "cpu"


def build_classifier(config: RunConfig, *, device: str) -> DiffusionClassifier:
    """The classifier of a run, its models loaded."""
    denoiser, unconditional = load_models(config, device=device)
    return DiffusionClassifier(
        denoiser,
        config.classifier.name,
        grid=config.classifier.grid,
        weight=config.classifier.weight,
        sift=config.classifier.sift,
        loss_cap=config.classifier.loss_cap,
        rows_per_pass=config.compute.rows_per_pass,
        device=device,
        unconditional=unconditional,
    )


def load_voter(settings: VoterSettings) -> DiffusionClassifier:
    """The run's classifier on this node's device, in a process that does nothing else.

    Raises:
        ValueError: the model on this node is not the run's.
    """
    keep_freed_memory()
    torch.set_num_threads(settings.config.compute.threads_per_actor)
    for name, digest in model_digests(settings.config).items():
        if digest != settings.law[name]:
            where = settings.config.model if name == "model_sha256" else settings.config.unconditional
            raise ValueError(f"the model at {where} is not the one this run was started with")
    return build_classifier(settings.config, device=pick_device(settings.config.compute.gpus_per_actor))


def votes_of_unit(classifier: DiffusionClassifier, config: RunConfig, unit: WorkUnit, image: np.ndarray) -> VoteCounts:
    """The votes of a unit's draws; their scores too, where the certificate is made from them."""
    return count_votes(
        classifier,
        image,
        sigma_pixel=unit.sigma_pixel,
        noise=config.noise,
        seed=config.seed,
        image_id=unit.image_id,
        phase=unit.phase,
        draws=range(unit.draw_start, unit.draw_stop),
        keep_scores=config.certificate.method == "lipschitz",
    )


class VoteActor:
    """Holds the model; for each unit adds noise, scores, counts and publishes, then gives a receipt.

    A unit that fails is recorded and reported, and the next one goes on. What was published before is not
    computed again.

    Raises:
        ValueError: at construction, if the model on this node is not the run's.
    """

    def __init__(self, settings: VoterSettings) -> None:
        self.settings = settings
        self.classifier = load_voter(settings)
        self.store = RunStore(settings.run_folder)

    def __call__(self, batch: Columns) -> Iterator[Columns]:
        for row in rows_of(batch):
            for receipt in self.receipts(*unit_of_row(row)):
                yield {name: np.array([getattr(receipt, name)]) for name in RECEIPT_COLUMNS}

    def receipts(self, unit: WorkUnit, record: ImageRecord) -> Iterator[Receipt]:
        yield self.vote(unit, record)

    def vote(self, unit: WorkUnit, record: ImageRecord) -> Receipt:
        """Makes sure that the unit's evidence is in the store."""
        fingerprint = self.settings.fingerprint
        unit_id = unit.unit_id(fingerprint)
        started = time.perf_counter()
        try:
            if self.store.has_evidence(unit_id):
                return Receipt(unit_id, str(unit), unit.draws, 0, 0.0, "")
            evidence = self.compute(unit, self.store.pictures.pixels(record), started=started)
            self.store.publish(evidence, fingerprint=fingerprint)
        except Exception as error:  # whatever it is, it is this unit's: the others go on
            message = f"{type(error).__name__}: {error}"
            with suppress(LocationError):  # a store that is away cannot be told; the receipt says it
                self.store.record_failure(unit, message, fingerprint=fingerprint)
            return Receipt(unit_id, str(unit), unit.draws, 0, time.perf_counter() - started, message)
        return Receipt(unit_id, str(unit), unit.draws, evidence.evaluations, evidence.seconds, "")

    def compute(self, unit: WorkUnit, image: np.ndarray, *, started: float) -> Evidence:
        counts = votes_of_unit(self.classifier, self.settings.config, unit, image)
        votes = {int(c): int(counts.votes[c]) for c in counts.votes.nonzero()[0]}
        seconds = time.perf_counter() - started
        return Evidence(unit, votes, counts.evaluations, seconds, time.time(), self.classifier.device, counts.scores)


class WaveActor(VoteActor):
    """Sent any unit of an image and noise level, computes what its certificate still needs, one wave after the other.

    The size of a wave depends on the evidence of the waves before it and on nothing else, so an actor that takes over
    from another, or a run that is resumed, goes on as if nothing had happened.
    """

    def receipts(self, unit: WorkUnit, record: ImageRecord) -> Iterator[Receipt]:
        settings = self.settings
        cell = Cell(
            unit.image_id,
            unit.sigma_pixel,
            method_of(settings.law, unit.sigma_pixel),
            settings.law["votes"]["selection"],
            settings.num_classes,
        )
        for piece in draw_ranges(settings.law, unit.sigma_pixel):
            ahead = WorkUnit(unit.image_id, unit.label, unit.sigma_pixel, *piece)
            if ahead.phase == "estimation" and ahead.draw_stop > cell.standing().needed:
                return
            receipt = self.vote(ahead, record)
            yield receipt
            if receipt.error:
                return
            path = self.store.evidence_path(receipt.unit_id)
            try:
                cell.take(self.store.read_evidence(path, fingerprint=settings.fingerprint))
            except (ValueError, FileNotFoundError) as error:
                yield replace(receipt, error=str(error))
                return
