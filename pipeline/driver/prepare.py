"""What is checked, measured and planned before a run does any work."""

import math
from collections.abc import Iterator, Set
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from upath import UPath

from pipeline.certificates.stopping import cells_of
from pipeline.data.datasets import (
    Example,
    ImageRecord,
    Listing,
    examples_of,
    list_images,
    meaning_of_labels,
    source_of,
)
from pipeline.data.formats import FORMATS
from pipeline.data.source import Source
from pipeline.declaration.config import RunConfig
from pipeline.declaration.declaration import Declaration, declare
from pipeline.declaration.growth import Growth, growth_of
from pipeline.declaration.order import in_order
from pipeline.declaration.units import WorkUnit, draws_a_unit, plan_units
from pipeline.driver.pinned import with_commits
from pipeline.named_functions import is_function, named_function
from pipeline.program import program_facts
from pipeline.progress import ReadingProgress
from pipeline.side_channel import Say
from pipeline.store.evidence import EvidenceTable
from pipeline.store.run_images import placed
from pipeline.store.run_store import RunStore
from pipeline.workers.measurement import MeasuredCost, MeasurementRequest, measure
from pipeline.workers.model_facts import model_facts
from pipeline.workers.models import build_classifier, functions_of, model_digests
from pipeline.workers.ray_pool import run_once

IMAGES_TO_MEASURE = 8


@dataclass(frozen=True)
class PreparedRun:
    """A run that passed every check that can be made before work starts."""

    config: RunConfig
    folder: UPath
    source: Source
    listing: Listing
    declaration: Declaration
    fingerprint: str  # marks its evidence: that of the first declaration, if the run has grown
    model: dict[str, Any]  # what readers are told about it
    num_classes: int
    most_evaluations_per_vote: int
    votes_cost_alike: bool  # whether every vote costs that
    measured: MeasuredCost | None  # for its sizes, if anything was measured
    growth: Growth | None = None  # how the run in its folder grows

    @cached_property
    def in_order(self) -> list[ImageRecord]:
        """The images as the run takes them."""
        return in_order(self.records, self.config.order, seed=self.config.seed)

    @cached_property
    def units(self) -> dict[str, WorkUnit]:
        """By unit id."""
        return {unit.unit_id(self.fingerprint): unit for unit in plan_units(self.declaration, self.records)}

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

    def missing(self, evidence: EvidenceTable) -> dict[str, WorkUnit]:
        """The units without evidence that images are known to need."""
        present = set(evidence.unit_ids)
        absent = {unit_id: unit for unit_id, unit in self.units.items() if unit_id not in present}
        if not self.stops_early:
            return absent
        cells = cells_of(self.declaration, self.records, evidence, num_classes=self.num_classes)
        needed = {key: cell.state().needed for key, cell in cells.items()}
        return {
            unit_id: unit
            for unit_id, unit in absent.items()
            if unit.phase == "selection" or unit.draw_stop <= needed[unit.cell]
        }

    @property
    def remarks(self) -> list[str]:
        """What was decided about the data without being asked."""
        data, (channels, height, width) = self.config.dataset, self.listing.image_shape
        guessed = self.source.format in FORMATS and not data.format
        guess = f", read as {self.source.format} (--format overrides)" if guessed else ""
        resized = f", resized with the filter {data.filter}" if data.resize else ""
        lines = [f"data: {data.name}{guess}: {channels} x {height} x {width} pixels{resized}", self.labels]
        lines += [f"data: {note}" for note in self.listing.notes]
        lines += [f"model: {line}" for line in functions_of(self.config)]
        lines += [f"the run {self.growth}"] if self.growth else []
        if self.measured is None or self.measured.device:  # a stated rate does not tell the rows of a pass
            lines += [
                f"{self.config.compute.rows_per_pass} rows per forward pass, "
                f"{self.config.votes.per_unit:,} draws per unit"
            ]
        if self.config.compute.precision == "tf32":
            lines.append("compute.precision is tf32: on a CPU, or a GPU from before Ampere, that is float32")
        corrupt = self.listing.corrupt
        return lines + ([f"left out {len(corrupt):,} corrupt images: {', '.join(corrupt)}"] if corrupt else [])

    @property
    def labels(self) -> str:
        return meaning_of_labels(self.config.dataset, self.source, num_classes=self.num_classes)

    @property
    def resume_command(self) -> str:
        return f"ndc certify {self.folder}"

    def examples(self, *, without: Set[str]) -> Iterator[Example]:
        """The images with their pixels, read again, except those with these ids."""
        chosen = self.config.dataset
        if without:
            ids = tuple(record.image_id for record in self.records if record.image_id not in without)
            chosen = replace(chosen, ids=ids, offset=0, every=1, limit=None)
            if not ids:
                return iter(())
        return examples_of(chosen, self.source, channels=self.listing.image_shape[0], corrupt=[])

    def manifest(self) -> dict[str, Any]:
        plan = {
            "units": len(self.units),
            "votes": self.votes,
            "classes": self.num_classes,
            "stops_early": self.stops_early,
        }
        data = {
            "format": self.source.format,
            "label_order": self.source.label_order,
            "classes": self.source.class_names,
        }
        if is_function(self.config.dataset.name):
            data["source_sha256"] = named_function(self.config.dataset.name).sha256
        return {
            "fingerprint": self.fingerprint,
            "law": self.declaration.to_json(),
            "plan": plan,
            "data": data,
            "model": self.model,
            "program": program_facts(),
        }


def silent(line: str) -> None:
    """Says nothing."""


@dataclass(frozen=True)
class Inputs:
    """A run's model and data, as far as a plan needs them."""

    source: Source
    listing: Listing
    digests: dict[str, str]  # of the models
    model: dict[str, Any]  # see `model_facts`
    num_classes: int
    most_evaluations_per_vote: int
    votes_cost_alike: bool


def read_inputs(config: RunConfig) -> Inputs:
    """Loads the models on the CPU, since the driver's node may have nothing else, and lists the images.

    Raises:
        ValueError: a model or data that cannot be used.
    """
    classifier = build_classifier(config, device="cpu")
    source = source_of(config.dataset)
    listing = list_images(
        config.dataset,
        source,
        image_shape=classifier.image_shape,
        num_classes=classifier.num_classes,
        noise=config.noise,
        on_image=ReadingProgress(),
    )
    return Inputs(
        source,
        listing,
        model_digests(config),
        model_facts(config, classifier),
        classifier.num_classes,
        classifier.most_evaluations_per_vote,
        classifier.votes_cost_alike,
    )


def prepare(
    config: RunConfig,
    folder: UPath,
    *,
    say: Say = silent,
    plan: "CostSample | None" = None,
    inputs: Inputs | None = None,
) -> PreparedRun:
    """Loads and checks everything, writing nothing (a model in an object store is copied to this node's cache).

    The sizes that the run leaves open, and for a plan some votes, are measured in a process with an actor's
    resources. `inputs` are those of this configuration, if they were read before.

    Raises:
        ValueError: a model or data that cannot be used, or a folder that belongs to another run.
    """
    store = RunStore(folder)
    store.is_declared()  # says at once whether the place can be reached at all
    config = with_commits(config)
    inputs = inputs or read_inputs(config)
    source, listing = inputs.source, inputs.listing
    measuring = Measurer(source, listing, inputs.most_evaluations_per_vote, say)
    config, measured = with_sizes(config, store, measuring, plan)
    data = replace(config.dataset, label_order=source.label_order)  # run.toml states what was taken
    config = config.model_copy(update={"dataset": data})
    declaration = declare(config, listing, models=inputs.digests)
    run = PreparedRun(
        config,
        folder,
        source,
        listing,
        declaration,
        declaration.fingerprint,
        inputs.model,
        inputs.num_classes,
        inputs.most_evaluations_per_vote,
        inputs.votes_cost_alike,
        measured,
    )
    return in_folder(run)


@dataclass(frozen=True)
class Measurer:
    """Measures for a run: on its images, with votes of at most this cost."""

    source: Source
    listing: Listing
    most_evaluations_per_vote: int
    say: Say

    def cells(self, config: RunConfig) -> int:
        """How many certificates the run makes."""
        return len(self.listing.records) * len(config.sigma_pixel)

    def measure(self, config: RunConfig, *, votes: bool) -> MeasuredCost:
        """Measures passes and, if asked for, some votes of images that are spread over the data."""
        images: tuple[tuple[str, Any], ...] = ()
        if votes:
            records = self.listing.records
            few = min(IMAGES_TO_MEASURE, len(records))
            ids = tuple(records[index * len(records) // few].image_id for index in range(few))
            chosen = replace(config.dataset, ids=ids, offset=0, every=1, limit=None)
            examples = examples_of(chosen, self.source, channels=self.listing.image_shape[0], corrupt=[])
            images = tuple((example.image_id, example.image) for example in examples)
        self.say(
            f"measuring passes{f' and votes of {len(images)} images' * bool(images)}; it takes up to half a minute"
        )
        request = MeasurementRequest(config, images, self.most_evaluations_per_vote)
        return run_once(measure, request, compute=config.compute, say=self.say)


@dataclass(frozen=True)
class CostSample:
    """Asks for a sample of votes, or takes a stated rate of one actor instead of measuring."""

    evaluations_per_second: float | None = None


def with_sizes(
    config: RunConfig, store: RunStore, measuring: Measurer, plan: CostSample | None
) -> tuple[RunConfig, MeasuredCost | None]:
    """The configuration with the sizes of passes and units that the run was declared with, or else measured here."""
    rows, per_unit, measured = config.compute.rows_per_pass, config.votes.per_unit, None
    if store.is_declared():
        declaration = store.declaration()
        rows, per_unit = rows or declaration.rows_per_pass, per_unit or declaration.votes_per_unit
    stated = plan.evaluations_per_second if plan else None
    if stated:
        measured = MeasuredCost("", rows or 1, stated, ())
    elif plan or rows is None or per_unit is None:
        sizes = {"rows_per_pass": rows}
        tried = config.model_copy(update={"compute": config.compute.model_copy(update=sizes)})
        measured = measuring.measure(tried, votes=plan is not None or per_unit is None)
    if measured:
        rows = rows or measured.rows_per_pass
        per_vote = measured.evaluations_per_vote or measuring.most_evaluations_per_vote
        per_unit = per_unit or draws_a_unit(
            measured.evaluations_per_second / per_vote,
            phase=max(config.votes.selection, config.votes.estimation),
            run=measuring.cells(config) * (config.votes.selection + config.votes.estimation),
            of_a_pass=math.ceil(rows / per_vote),
        )
    chosen = {
        "compute": config.compute.model_copy(update={"rows_per_pass": rows}),
        "votes": config.votes.model_copy(update={"per_unit": per_unit}),
    }
    return config.model_copy(update=chosen), measured


def in_folder(run: PreparedRun) -> PreparedRun:
    """The run as its folder has it now: its fingerprint, the places of its images, the order in which it takes them,
    and how it would grow.

    Raises:
        DeclarationChangedError: the folder holds a run that cannot grow into this one.
    """
    store = RunStore(run.folder)
    if not store.is_declared():
        return run
    manifest, before = store.manifest(), store.records()
    declared = Declaration.from_json(manifest["law"])
    growth = growth_of(declared, run.declaration, before=before, after=run.records, folder=str(run.folder))
    listing = replace(run.listing, records=placed(before, run.records))
    config = run.config.model_copy(update={"order": store.order()})
    return replace(run, config=config, listing=listing, fingerprint=manifest["fingerprint"], growth=growth)
