"""A run's folder: what it was declared to be, and the evidence that its units left.

run.json               the declaration (`law`: all that decides a vote), the fingerprint of the first, the plan, which
                       class is which, when that was declared and by which program, what the model is, and, if the run
                       has grown, what was declared earlier
run.toml               the configuration as resolved
images.parquet images/ ids, labels and pixels: see pipeline/store/run_images.py
evidence/ab/<id>.parquet   one file a work unit, published whole or not at all
evidence/ab.parquet    many units' evidence, once there are many files
failures/<id>.json     the last failed attempt of a unit without evidence
set-aside/             files found among the evidence that are not evidence
"""

import json
import time
import tomllib
from collections.abc import Iterable, Iterator, Set
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from upath import UPath

from pipeline.data.datasets import Example, ImageRecord
from pipeline.declaration.declaration import Declaration
from pipeline.declaration.order import Order
from pipeline.declaration.units import WorkUnit
from pipeline.locations import (
    LocationError,
    Where,
    exists,
    files_of,
    files_of_shards,
    location,
    move,
    publish,
    publish_patiently,
    read,
    read_each,
    remove,
)
from pipeline.store.evidence import (
    Evidence,
    EvidenceTable,
    checked_rows,
    evidence_content,
    parse_evidence,
    parse_table,
    table_of,
)
from pipeline.store.parquet_io import parquet_bytes
from pipeline.store.run_images import RunImages

MANY_FILES = 5_000
READINGS = 5
# Keys of run.json that folders of earlier programs lack, and what stands for each.
OPTIONAL: dict[str, Any] = {"data": {}, "model": {}, "program": {}, "declared": "", "earlier": [], "merged": []}


class StoreError(ValueError):
    """A run folder that cannot be used as asked: what, where, remedy."""


@dataclass(frozen=True)
class StoredImage:
    """An image as the run folder knows it; pixels come only where they are asked for."""

    image_id: str
    label: int
    pixels: np.ndarray | None


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def spread(count: int, most: int) -> list[int]:
    """At most `most` of the indices below `count`, evenly spaced."""
    taken = min(count, most)
    return [index * count // taken for index in range(taken)]


class RunStore:
    """Reads and writes one run's folder, on this machine or in an object store."""

    def __init__(self, folder: Where) -> None:
        self.folder = location(folder)
        self.pictures = RunImages(self.folder)

    # What the run is

    def manifest(self) -> dict[str, Any]:
        """The declaration of the run: `law`, `fingerprint`, `plan`, and `data`, what labels were taken to mean.

        `fingerprint` is that of the declaration that the run began with, and marks its evidence. `declared` is when the
        declaration was made, and `earlier` has those before it, of a run that has grown, oldest first; `merged` names
        the runs that it was put together from. `model` and `program` say, for readers, what the model is and which
        program declared the run, by which command. Folders without these six have empty ones.

        Raises:
            StoreError: the folder holds no run, or its manifest is damaged.
        """
        path = self.folder / "run.json"
        try:
            manifest: dict[str, Any] = json.loads(read(path))
            needed = {key: manifest[key] for key in ("law", "fingerprint", "plan")}
            return needed | {key: manifest.get(key, empty) for key, empty in OPTIONAL.items()}
        except FileNotFoundError as error:
            raise StoreError(
                f"{self.folder} holds no run (no run.json); start one with `ndc certify PRESET --run DIR`"
            ) from error
        except LocationError:
            raise
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{path} is damaged ({error}); restore it, or start again in another folder") from error

    def declaration(self) -> Declaration:
        """What the run declared. Raises StoreError as `manifest`."""
        return Declaration.from_json(self.manifest()["law"])

    def order(self) -> Order:
        """The order in which the run takes its images: as it declared, or as all did before there was another order."""
        try:
            declared = tomllib.loads(read(self.folder / "run.toml").decode()).get("order", "data")
        except LocationError:
            raise
        except (FileNotFoundError, ValueError):  # missing or damaged: code that needs the rest of it says so
            return "data"
        return "random" if declared == "random" else "data"

    def is_declared(self) -> bool:
        return exists(self.folder / "run.json")

    def declare(
        self,
        manifest: dict[str, Any],
        *,
        config_toml: str,
        records: list[ImageRecord],
        examples: Iterable[Example],
    ) -> None:
        """Writes what the run is; run.json comes last, so that a folder with it is complete."""
        self.pictures.write(examples, expected=records)
        self._publish_manifest({**manifest, "declared": now()}, config_toml)

    def grow(
        self,
        manifest: dict[str, Any],
        *,
        config_toml: str,
        records: list[ImageRecord],
        examples: Iterable[Example],
    ) -> None:
        """Writes what the run is from now on, and keeps what it was; `examples` are the images that it lacks.

        Only for a driver that holds the run. What was there is not touched before run.json names what is new, so that
        an interruption leaves the run as it was.
        """
        before, present = self.manifest(), {record.image_id for record in self.records()}
        added = [record for record in records if record.image_id not in present]
        earlier = [*before["earlier"], {"law": before["law"], "declared": before["declared"]}]
        self.pictures.copy(examples, expected=added)
        self.pictures.list_records(records, grown=len(earlier))
        kept = {"fingerprint": before["fingerprint"], "merged": before["merged"], "declared": now(), "earlier": earlier}
        self._publish_manifest({**manifest, **kept}, config_toml)

    def _publish_manifest(self, manifest: dict[str, Any], config_toml: str) -> None:
        publish(self.folder / "run.toml", config_toml.encode())
        publish(self.folder / "run.json", json.dumps(manifest, indent=2).encode())

    def records(self) -> list[ImageRecord]:
        """The images of the run, in the order of the data. Raises LocationError if their list is missing or damaged."""
        return self.pictures.records(grown=len(self.manifest()["earlier"]))

    def images(self, *, shown: int = 0) -> list[StoredImage]:
        """All images; at most `shown` of them, spread evenly over the data, with their pixels."""
        records = self.records()
        chosen = set(spread(len(records), shown))
        return [
            StoredImage(record.image_id, record.label, self.pictures.pixels(record) if place in chosen else None)
            for place, record in enumerate(records)
        ]

    # Evidence

    def evidence_path(self, unit_id: str) -> UPath:
        return self.folder / "evidence" / unit_id[:2] / f"{unit_id}.parquet"

    def publish(self, evidence: Evidence, *, fingerprint: str) -> None:
        """Makes a unit's evidence durable; publishing the same unit again replaces it with an equal one."""
        unit_id = evidence.unit.unit_id(fingerprint)
        publish_patiently(self.evidence_path(unit_id), evidence_content(evidence, fingerprint=fingerprint))
        remove(self.failure_path(unit_id))

    def publish_many(self, items: Iterable[Evidence], *, fingerprint: str) -> None:
        """Puts evidence of units that have none into their shards' files: only for a driver that holds the run."""
        rows = table_of(items, fingerprint=fingerprint)
        of_shard = pc.utf8_slice_codeunits(rows["unit_id"], 0, 2)
        for prefix in pc.unique(of_shard).to_pylist():
            self._add_to_shard(self._shard(prefix), [rows.filter(pc.equal(of_shard, prefix))], fingerprint=fingerprint)
        for unit_id in set(self.failed_ids()).intersection(rows["unit_id"].to_pylist()):
            remove(self.failure_path(unit_id))

    def has_evidence(self, unit_id: str, *, fingerprint: str) -> bool:
        return exists(self.evidence_path(unit_id)) or unit_id in self._ids_of_shard(unit_id, fingerprint)

    def _shard(self, unit_id: str) -> UPath:
        return self.folder / "evidence" / f"{unit_id[:2]}.parquet"

    def _ids_of_shard(self, unit_id: str, fingerprint: str) -> set[str]:
        try:
            return set(parse_table(read(self._shard(unit_id)), fingerprint=fingerprint)["unit_id"].to_pylist())
        except FileNotFoundError:
            return set()
        except LocationError:
            raise
        except ValueError:  # a damaged file is for `sort_out_evidence` to name
            return set()

    def read_evidence(self, unit_id: str, *, fingerprint: str) -> Evidence:
        """One unit's evidence, from its own file or its shard's.

        Raises:
            ValueError: a torn, changed or foreign file, another run's, or counts that do not add up.
            FileNotFoundError: there is none.
        """
        try:
            content = read(self.evidence_path(unit_id))
        except FileNotFoundError:
            table = parse_table(read(self._shard(unit_id)), fingerprint=fingerprint)
            (evidence,) = checked_rows(table.filter(pc.equal(table["unit_id"], unit_id)), fingerprint=fingerprint)
            return evidence
        return parse_evidence(content, unit_id=unit_id, fingerprint=fingerprint)[1]

    def evidence_files(self) -> list[UPath]:
        """The files of single units."""
        return [path for path in files_of_shards(self.folder / "evidence") if path.suffix == ".parquet"]

    def shard_files(self) -> list[UPath]:
        """The files that hold many units' evidence."""
        return [path for path in files_of(self.folder / "evidence") if path.suffix == ".parquet"]

    def each_table(self, *, fingerprint: str) -> Iterator[tuple[UPath, pa.Table | ValueError]]:
        """Every file among the evidence, with its rows or why it has none. A unit of a shard comes once.

        The rows of single units' files are checked one by one, as they are before they go into a shard.
        """
        # The units' own files are listed first: what a driver puts into shards meanwhile is then seen twice, not never.
        paths, folded = self.evidence_files(), set[str]()
        for path in self.shard_files():
            try:
                table = parse_table(read(path), fingerprint=fingerprint)
            except ValueError as error:
                yield path, error
                continue
            folded |= set(table["unit_id"].to_pylist())
            yield path, table
        alone = [path for path in paths if path.stem not in folded]
        for path, content in zip(alone, read_each(alone), strict=True):
            try:
                yield path, parse_evidence(content, unit_id=path.stem, fingerprint=fingerprint)[0]
            except ValueError as error:
                yield path, error

    def all_evidence(self, *, fingerprint: str) -> EvidenceTable:
        """All evidence of the run.

        Raises:
            StoreError: naming the first file that is not evidence.
        """
        for _ in range(READINGS):
            with suppress(FileNotFoundError):  # the run's driver has put it into a shard meanwhile
                evidence = EvidenceTable(list(self._sound_tables(fingerprint)))
                pa.default_memory_pool().release_unused()  # what was read: 0.5 GB of a million units
                return evidence
        raise self._restless

    def _sound_tables(self, fingerprint: str) -> Iterator[pa.Table]:
        for path, table in self.each_table(fingerprint=fingerprint):
            if isinstance(table, ValueError):
                raise StoreError(
                    f"{path}: {table}; run `ndc certify` on this run again to set it aside and recompute it"
                ) from table
            yield table

    def sort_out_evidence(
        self, *, fingerprint: str, planned: Set[str], of_whole_run: bool = True, compact: bool = True
    ) -> tuple[EvidenceTable, list[tuple[UPath, str]]]:
        """All evidence of the run, after moving other files out of its folder: returns each one's new place, and why.

        Only for a driver that holds the run, or a shard of it. With `of_whole_run` it also removes half-written files:
        nobody else writes any. With `compact`, for only one driver at a time, it puts files of single units into their
        shards' files where they are many.
        """
        unusable: list[tuple[UPath, str]] = []
        for path in files_of_shards(self.folder / "evidence") if of_whole_run else ():
            if path.suffix == ".partial":
                remove(path)
        for _ in range(READINGS):
            with suppress(FileNotFoundError):  # another driver has put it into a shard, or aside
                sound = list(self._sorted_tables(fingerprint, planned, unusable))
                break
        else:
            raise self._restless
        if compact:
            self.compact(fingerprint=fingerprint)
        return EvidenceTable(sound), unusable

    def _sorted_tables(
        self, fingerprint: str, planned: Set[str], unusable: list[tuple[UPath, str]]
    ) -> Iterator[pa.Table]:
        for path, table in self.each_table(fingerprint=fingerprint):
            why = str(table) if isinstance(table, ValueError) else ""
            if not isinstance(table, ValueError) and planned >= set(table["unit_id"].to_pylist()):
                yield table
                continue
            unusable.append((self._set_aside(path), why or "evidence of a unit that this run does not plan"))

    @property
    def _restless(self) -> StoreError:
        return StoreError(f"{self.folder}: its files go while they are read; try again")

    def _set_aside(self, path: UPath) -> UPath:
        target = self.folder / "set-aside" / f"{path.name}.{time.time_ns()}"
        move(path, target)
        return target

    def compact(self, *, fingerprint: str, at_least: int = MANY_FILES) -> None:
        """Moves the files of single units into their shards', if there are many; only for a driver that holds the run.

        Actors may publish meanwhile. A shard's new file is there before a unit's own goes, so that an interruption
        leaves a unit in both, where it counts once. What is not evidence stays, for `sort_out_evidence` to name.
        """
        paths = self.evidence_files()
        if len(paths) < at_least:
            return
        for _, of_shard in groupby(paths, key=lambda path: path.parent.name):
            files = list(of_shard)
            present, tables, folded = self._ids_of_shard(files[0].stem, fingerprint), [], []
            for path, content in zip(files, read_each(files), strict=True):
                with suppress(ValueError):
                    if path.stem not in present:
                        tables.append(parse_evidence(content, unit_id=path.stem, fingerprint=fingerprint)[0])
                    folded.append(path)
            if tables:
                self._add_to_shard(self._shard(files[0].stem), tables, fingerprint=fingerprint)
            for path in folded:
                remove(path)

    def _add_to_shard(self, shard: UPath, tables: list[pa.Table], *, fingerprint: str) -> None:
        with suppress(FileNotFoundError):
            tables = [parse_table(read(shard), fingerprint=fingerprint), *tables]
        publish_patiently(shard, parquet_bytes(pa.concat_tables(tables).sort_by("unit_id")))

    # Failures

    def failure_path(self, unit_id: str) -> UPath:
        return self.folder / "failures" / f"{unit_id}.json"

    def record_failure(self, unit: WorkUnit, error: str, *, fingerprint: str) -> None:
        unit_id = unit.unit_id(fingerprint)
        record = {"unit": str(unit), "error": error, "failed_unix": time.time()}
        publish(self.failure_path(unit_id), json.dumps(record, indent=2).encode())

    def failed_ids(self) -> list[str]:
        return [path.stem for path in files_of(self.folder / "failures")]

    def failures(self) -> Iterable[dict[str, Any]]:
        return [json.loads(content) for content in read_each(files_of(self.folder / "failures"))]
