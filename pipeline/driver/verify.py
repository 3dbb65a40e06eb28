"""`ndc verify`: checks a finished run against itself, its model and its data; finds tampering and bit rot."""

import json
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
from upath import UPath

from pipeline.certificates.files import certificate_rows, read_certificates
from pipeline.certificates.reduce import certify_images
from pipeline.certificates.stopping import Cells, IncompleteRunError, cells_of
from pipeline.data.datasets import ImageRecord, Listing, list_images, source_of
from pipeline.declaration.config import RunConfig
from pipeline.declaration.declaration import VOTE_VERSION, Declaration, declare, differences
from pipeline.declaration.growth import growth_of
from pipeline.declaration.toml_files import load_config
from pipeline.declaration.units import plan_units
from pipeline.driver.redraw import Comparison, redrawn
from pipeline.locations import exists, location, read
from pipeline.report.report import reduce_and_report
from pipeline.store.devices import device_lines
from pipeline.store.evidence import Evidence, EvidenceTable, checked_rows
from pipeline.store.run_store import RunStore, StoreError
from pipeline.workers.models import build_classifier, model_digests

COMPARED_FILES = ("certificates.tsv", "summary.json", "table.md", "table.tex")


class VerificationError(RuntimeError):
    """What was found to be different, one line each."""


@dataclass
class Findings:
    """Says what was checked, and collects what is wrong."""

    say: Callable[[str], None]
    problems: list[str] = field(default_factory=list)

    def check(self, what: str, problems: Sequence[str]) -> bool:
        self.problems += problems
        self.say(f"{'DIFFERS' if problems else 'ok':7}  {what}")
        return not problems

    def end(self, folder: UPath) -> None:
        """Raises VerificationError if anything is wrong."""
        if self.problems:
            listed = "\n".join(f"  {problem}" for problem in self.problems)
            raise VerificationError(f"{folder} is not what it states:\n{listed}")


def verify_run(folder: UPath, *, redraw: int, say: Callable[[str], None]) -> None:
    """Recomputes all that a run states from its evidence, and `redraw` random units of the evidence from the model.

    Raises:
        VerificationError: naming every difference found.
        ValueError: the folder holds no run.
    """
    store, findings = RunStore(folder), Findings(say)
    manifest, config = store.manifest(), load_config(str(folder / "run.toml"))
    declaration, fingerprint = Declaration.from_json(manifest["law"]), manifest["fingerprint"]
    declarations = [Declaration.from_json(stage["law"]) for stage in (*manifest["earlier"], manifest)]
    problems = _declaration_problems(declarations[0], fingerprint)
    findings.check("run.json: its fingerprint is that of its declaration", problems)
    if len(declarations) > 1:
        what = f"run.json, images.parquet: {len(declarations)} declarations, each the growth of the one before"
        findings.check(what, list(_growth_problems(store, declarations)))
    same = findings.check("run.toml, model and data are those of the declaration", _input_problems(config, declaration))
    records, problems = _records(store, declaration)
    if not findings.check("images.parquet, images: ids, labels and pixels are those of the declaration", problems):
        findings.end(folder)
    planned = {unit.unit_id(fingerprint) for unit in plan_units(declaration, records)}
    evidence, unreadable = _read(store, fingerprint, planned)
    findings.check(f"evidence of {len(evidence):,} units: readable, unchanged, of this run", unreadable)
    cells = cells_of(declaration, records, evidence, num_classes=manifest["plan"]["classes"])
    ranges = [problem for cell in cells.values() for problem in _range_problems(cell.finished, folder)]
    complete = findings.check(
        f"{evidence.draws:,} votes of {len(cells):,} images and levels: no gap, no overlap, none too many", ranges
    )
    if complete and not unreadable:
        findings.check(
            "certificates.parquet: every certificate follows from the evidence", _certificates(store, evidence)
        )
        findings.check(", ".join(COMPARED_FILES) + ": follow from the evidence", _report_problems(store, config))
    for line in device_lines(evidence.devices):
        say(f"{'note':7}  {line}")
    if redraw and same and evidence:
        chosen = random.SystemRandom().sample(list(evidence), min(redraw, len(evidence)))
        for compared in _redrawn(chosen, config, records, cells, store, of=len(evidence)):
            findings.check(compared.what, compared.problems)
    elif redraw:
        say("left out: drawing again, which needs the run's own model, data and evidence")
    findings.end(folder)


def _declaration_problems(declaration: Declaration, fingerprint: str) -> list[str]:
    if declaration.fingerprint != fingerprint:
        return ["run.json: the declaration was changed after the run was declared (its fingerprint does not fit)"]
    if declaration.vote_version != VOTE_VERSION:
        return [f"run.json: votes of version {declaration.vote_version}, this program's are {VOTE_VERSION}"]
    return []


def _growth_problems(store: RunStore, declarations: Sequence[Declaration]) -> Iterator[str]:
    """A run that has grown must have kept the images and noise levels of each earlier declaration."""
    try:
        records = [store.pictures.records(grown=grown) for grown in range(len(declarations))]
        for (before, after), (earlier, later) in zip(pairwise(declarations), pairwise(records), strict=True):
            if Listing(earlier, before.image_shape).digest != before.images_sha256:
                count = len(earlier)
                yield f"run.json: the {count} images listed of an earlier declaration are not those that it declared"
            growth_of(before, after, before=earlier, after=later, folder=str(store.folder))
    except ValueError as error:
        yield f"run.json: an earlier declaration is not one that this run can have grown from: {error}"


def _input_problems(config: RunConfig, declaration: Declaration) -> list[str]:
    """A declaration computed from today's run.toml, models and data must be the declared one."""
    try:
        classifier = build_classifier(config, device="cpu")
        shape, classes = classifier.image_shape, classifier.num_classes
        listing = list_images(
            config.dataset, source_of(config.dataset), image_shape=shape, num_classes=classes, noise=config.noise
        )
        wanted = declare(config, listing, models=model_digests(config))
        changed = differences(declaration.recorded, wanted.recorded)
    except (ValueError, OSError) as error:
        return [f"model or data: {error}"]
    return [f"declared -> found: {line}" for line in changed]


def _records(store: RunStore, declaration: Declaration) -> tuple[list[ImageRecord], list[str]]:
    """The images of the run's own copy, whose pixels must be those of the declaration."""
    try:
        records = store.records()
        for record in records:
            store.pictures.pixels(record)
    except (ValueError, LookupError, FileNotFoundError) as error:
        return [], [str(error)]
    listing = Listing(records, declaration.image_shape)
    if listing.digest != declaration.images_sha256:
        return records, ["images.parquet: ids, labels or hashes are not those that the run was declared with"]
    return records, []


def _read(store: RunStore, fingerprint: str, planned: set[str]) -> tuple[EvidenceTable, list[str]]:
    """All rows that are sound and of the plan, each checked by itself, and what is wrong with the other files."""
    tables, problems = [], []
    for path, table in store.each_table(fingerprint=fingerprint):
        try:
            if isinstance(table, ValueError):
                raise table
            for item in checked_rows(table, fingerprint=fingerprint):
                if item.unit.unit_id(fingerprint) not in planned:
                    raise ValueError(f"{item.unit}: no unit of this run's plan")
            tables.append(table)
        except ValueError as error:
            problems.append(f"{path}: {error}")
    return EvidenceTable(tables), problems


def _range_problems(finished: Callable[..., object], folder: UPath) -> list[str]:
    try:
        finished(resume_with=f"ndc certify {folder}")
    except IncompleteRunError as error:
        return [str(error)]
    return []


def _certificates(store: RunStore, evidence: EvidenceTable) -> list[str]:
    manifest, path = store.manifest(), store.folder / "certificates.parquet"
    try:
        stored, digest = read_certificates(path)
    except StoreError as error:
        return [str(error)]
    certified = certify_images(
        evidence,
        store.images(),
        declaration=Declaration.from_json(manifest["law"]),
        num_classes=manifest["plan"]["classes"],
        alpha=None,
        resume_with=f"ndc certify {store.folder}",
    )
    problems = []
    if digest != evidence.digest:
        problems.append(f"{path}: the evidence is not the one that it was made from")
    rows = certificate_rows(certified)
    if len(rows) != len(stored):
        problems.append(f"{path}: {len(stored)} certificates, the evidence gives {len(rows)}")
    for row, kept in zip(rows, stored, strict=False):
        problems += [
            f"{path}: image {row['image_id']}, sigma_pixel {row['sigma_pixel']:g}: {line}"
            for line in differences(kept, row)
        ]
    return problems


def _report_problems(store: RunStore, config: RunConfig) -> list[str]:
    try:
        radii = tuple(json.loads(read(store.folder / "summary.json"))["radii"])  # `ndc report` may set others
    except (OSError, ValueError, KeyError, TypeError):
        radii = config.certificate.radii
    with tempfile.TemporaryDirectory() as scratch:
        reduce_and_report(store, alpha=None, radii=radii, folder=location(scratch))
        return [
            f"{store.folder / name} does not follow from the evidence; run `ndc report {store.folder}` again"
            for name in COMPARED_FILES
            if not exists(store.folder / name) or read(store.folder / name) != (Path(scratch) / name).read_bytes()
        ]


def _redrawn(
    chosen: Sequence[Evidence],
    config: RunConfig,
    records: Sequence[ImageRecord],
    cells: Cells,
    store: RunStore,
    *,
    of: int,
) -> Iterator[Comparison]:
    record_of, fingerprint = {record.image_id: record for record in records}, store.manifest()["fingerprint"]

    def pixels(image_id: str) -> tuple[ImageRecord, np.ndarray]:
        return record_of[image_id], store.pictures.pixels(record_of[image_id])

    def candidate(item: Evidence) -> int | None:
        follows = config.follows_images and item.unit.phase == "estimation"
        return cells[item.unit.cell].candidate if follows else None

    def path(item: Evidence) -> UPath:
        return store.evidence_path(item.unit.unit_id(fingerprint))

    yield from redrawn(chosen, config=config, pixels=pixels, candidate=candidate, path=path, of=of)
