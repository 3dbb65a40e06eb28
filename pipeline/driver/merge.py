"""`ndc merge`: runs of one declaration that were made apart, as one run of all their images."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from upath import UPath

from pipeline.certificates.stopping import IncompleteRunError
from pipeline.data.datasets import Example, ImageRecord, Listing, selected, source_of
from pipeline.declaration.config import RunConfig
from pipeline.declaration.declaration import Declaration, DeclarationChangedError, differences
from pipeline.declaration.growth import IMAGES
from pipeline.declaration.toml_files import load_config
from pipeline.declaration.units import plan_units
from pipeline.locations import absolute
from pipeline.program import program_facts
from pipeline.progress import counting
from pipeline.report.report import Report, reduce_and_report
from pipeline.side_channel import Say
from pipeline.store.evidence import Evidence, EvidenceTable, checked_rows
from pipeline.store.lease import held
from pipeline.store.run_store import RunStore, StoreError

ROWS_AT_ONCE = 10_000


class MergeError(ValueError):
    """Runs that are not parts of one: what differs, and where."""


@dataclass(frozen=True)
class Part:
    """One of the runs that are merged."""

    store: RunStore
    manifest: dict[str, Any]
    records: dict[str, ImageRecord]
    evidence: EvidenceTable

    @property
    def folder(self) -> UPath:
        return self.store.folder

    @property
    def declaration(self) -> Declaration:
        return Declaration.from_json(self.manifest["law"])

    def rows(self) -> Iterator[Evidence]:
        """Its evidence, checked row by row: what is copied gets a new checksum, which must not hide damage."""
        table = self.evidence.table
        for first in range(0, table.num_rows, ROWS_AT_ONCE):
            try:
                yield from checked_rows(table.slice(first, ROWS_AT_ONCE), fingerprint=self.manifest["fingerprint"])
            except ValueError as error:
                raise StoreError(f"{self.folder}: {error}; `ndc verify {self.folder}` names the file") from error


def merge_runs(sources: Sequence[UPath], out: UPath, *, say: Say) -> Report | None:
    """Writes a run of all images of these runs, with all their evidence; returns its report, if it is complete.

    The runs stay as they are. The data must be there, since their order is the run's. A merge that was interrupted goes
    on with the same command.

    Raises:
        MergeError: the runs declare different things, or differ in an image or a vote that they share.
        ValueError: a folder holds no run, or one whose evidence is not sound; or the data cannot be found.
    """
    if len({absolute(folder) for folder in (*sources, out)}) <= len(sources):
        raise MergeError("two of the runs, or one of them and -o, are the same folder; name each once")
    parts = [part_of(folder) for folder in sources]
    for part in parts[1:]:
        refuse_other_run(parts[0], part)
        refuse_other_images(parts[0], part)
    config, listing = merged_images(parts)
    for index, part in enumerate(parts):
        for other in parts[:index]:
            refuse_other_votes(other, part)
    declaration = declaration_of(parts[0].declaration, listing)
    with held(out, force=False, say=say):
        store = RunStore(out)
        declare(store, parts, config, declaration, listing)
        with counting("units taken over", sum(len(part.evidence) for part in parts)) as count:
            votes = sum(copy_evidence(part, store, declaration.fingerprint, on_unit=count) for part in parts)
        say(f"{len(listing.records):,} images, {votes:,} votes taken over from {len(parts)} runs into {out}")
        try:
            return reduce_and_report(store, alpha=None, radii=config.certificate.radii, folder=out)
        except IncompleteRunError as error:
            say(f"no report yet: {error}")
            return None


def part_of(folder: UPath) -> Part:
    store = RunStore(folder)
    manifest = store.manifest()
    records = {record.image_id: record for record in store.records()}
    return Part(store, manifest, records, store.all_evidence(fingerprint=manifest["fingerprint"]))


def without_images(declaration: Declaration) -> dict[str, Any]:
    dataset = {key: value for key, value in declaration.recorded["dataset"].items() if key not in IMAGES}
    return {**declaration.recorded, "dataset": dataset}


def refuse_other_run(first: Part, other: Part) -> None:
    changed = differences(without_images(first.declaration), without_images(other.declaration))
    for key in ("data", "plan"):
        of_both = [{"classes": part.manifest[key].get("classes")} for part in (first, other)]
        changed += differences(*of_both, key=key)
    if changed:
        raise MergeError(
            f"{first.folder} and {other.folder} declare different things ({'; '.join(changed)}): only runs that are "
            "the same but for their images are one run. `ndc compare` puts others beside each other"
        )


def refuse_other_images(first: Part, other: Part) -> None:
    for image_id in first.records.keys() & other.records.keys():
        ours, theirs = (replace(part.records[image_id], index=0) for part in (first, other))
        if ours != theirs:
            what = "pixels" if ours.label == theirs.label else f"labels ({ours.label} and {theirs.label})"
            raise MergeError(f"image {image_id} has other {what} in {other.folder} than in {first.folder}")


def refuse_other_votes(first: Part, other: Part) -> None:
    """What two runs drew of an image that both have must be the same."""
    shared = first.records.keys() & other.records.keys()
    for cell in (cell for cell in other.evidence.cells() if cell[1] in shared):
        ours = {(item.unit.phase, item.unit.draw_start): item for item in first.evidence.of_cell(cell)}
        for item in other.evidence.of_cell(cell):
            own = ours.get((item.unit.phase, item.unit.draw_start))
            if own and (own.unit, own.votes, scores_of(own)) != (item.unit, item.votes, scores_of(item)):
                raise MergeError(
                    f"{item.unit}: {other.folder} has the votes {item.votes}, {first.folder} has {own.votes}; where "
                    "two runs drew the same, they must agree: `ndc verify RUN --redraw N` says which is right"
                )


def scores_of(item: Evidence) -> bytes:
    return b"" if item.scores is None else item.scores.tobytes()


def merged_images(parts: Sequence[Part]) -> tuple[RunConfig, Listing]:
    """All images in the order of the data, and the configuration that names them."""
    records = {image_id: record for part in reversed(parts) for image_id, record in part.records.items()}
    config = load_config(str(parts[0].folder / "run.toml"))
    data = replace(config.dataset, ids=tuple(records), offset=0, every=1, limit=None)
    in_order = [records[entry.image_id] for entry in selected(data, source_of(data))]
    data = replace(data, ids=tuple(record.image_id for record in in_order))
    placed = [replace(record, index=index) for index, record in enumerate(in_order)]
    return config.model_copy(update={"dataset": data}), Listing(placed, parts[0].declaration.image_shape)


def declaration_of(first: Declaration, listing: Listing) -> Declaration:
    """What a run of these images and otherwise the same settings declares."""
    images = {"images": len(listing.records), "corrupt": 0, "sha256": listing.digest}
    return Declaration({**first.recorded, "dataset": {**first.recorded["dataset"], **images}})


def declare(
    store: RunStore, parts: Sequence[Part], config: RunConfig, declaration: Declaration, listing: Listing
) -> None:
    """Writes what the merged run is, unless it is there already, from a merge that was interrupted."""
    if store.is_declared():
        if store.declaration() != declaration:
            raise DeclarationChangedError(f"{store.folder} holds another run; give another folder with -o")
        return
    units = list(plan_units(declaration, listing.records))
    first = parts[0].manifest
    manifest = {
        "fingerprint": declaration.fingerprint,
        "law": declaration.to_json(),
        "plan": {**first["plan"], "units": len(units), "votes": sum(unit.draws for unit in units)},
        "data": first["data"],
        "model": first["model"],
        "program": program_facts(),
        "merged": [{"folder": str(part.folder), "fingerprint": part.manifest["fingerprint"]} for part in parts],
    }
    examples = (example_of(record, parts) for record in listing.records)
    store.declare(manifest, config_toml=config.to_toml(), records=listing.records, examples=examples)


def example_of(record: ImageRecord, parts: Sequence[Part]) -> Example:
    part = next(part for part in parts if record.image_id in part.records)
    pixels = part.store.pictures.pixels(part.records[record.image_id])
    return Example(record.image_id, pixels, record.label)


def copy_evidence(part: Part, store: RunStore, fingerprint: str, *, on_unit: Callable[[], None]) -> int:
    """Publishes a part's evidence under the merged run's fingerprint, except what is there; returns its votes."""
    present = set(store.all_evidence(fingerprint=fingerprint).unit_ids)
    copied, batch = 0, list[Evidence]()
    for item in part.rows():
        if item.unit.unit_id(fingerprint) not in present:
            batch.append(item)
            copied += item.unit.draws
        on_unit()
        if len(batch) == ROWS_AT_ONCE:
            store.publish_many(batch, fingerprint=fingerprint)
            batch = []
    if batch:
        store.publish_many(batch, fingerprint=fingerprint)
    return copied
