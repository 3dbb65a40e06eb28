"""A run's folder: what it was declared to be, and the evidence that its units left.

run.json               the law (all that decides a vote), its fingerprint, and the plan
run.toml               the configuration as resolved
images.parquet images/ ids, labels and pixels: see pipeline/images.py
evidence/ab/<id>.parquet   one file a work unit, published whole or not at all
failures/<id>.json     the last failed attempt of a unit without evidence
set-aside/             files found among the evidence that are none
"""

import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from upath import UPath

from pipeline.datasets import Example, ImageRecord
from pipeline.images import RunImages, parquet_bytes, parquet_table
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
from pipeline.units import WorkUnit

GALLERY_IMAGES = 64
FINGERPRINT_KEY = b"ndc.law"
EVIDENCE_KEY = b"ndc.evidence"

EVIDENCE_SCHEMA = pa.schema(
    [
        ("unit_id", pa.string()),
        ("image_id", pa.string()),
        ("label", pa.int32()),
        ("sigma_pixel", pa.float64()),
        ("phase", pa.string()),
        ("draw_start", pa.int64()),
        ("draw_stop", pa.int64()),
        ("class_id", pa.list_(pa.int32())),
        ("votes", pa.list_(pa.int64())),
        ("scores", pa.list_(pa.float64())),
        ("evaluations", pa.int64()),
        ("seconds", pa.float64()),
        ("finished_unix", pa.float64()),
        ("device", pa.string()),
        ("checksum", pa.string()),
    ]
)

CERTIFICATE_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("label", pa.int32()),
        ("sigma_pixel", pa.float64()),
        ("method", pa.string()),
        ("predicted", pa.int32()),
        ("correct", pa.bool_()),
        ("radius", pa.float64()),
        ("p_lower", pa.float64()),
        ("margin_lower", pa.float64()),
        ("votes_top", pa.int64()),
        ("votes", pa.int64()),
        ("evaluations", pa.int64()),
        ("seconds", pa.float64()),
        ("alpha", pa.float64()),
        ("scope", pa.string()),
    ]
)


class StoreError(ValueError):
    """A run folder that cannot be used as asked: what, where, remedy."""


@dataclass(frozen=True)
class Evidence:
    """Integer vote counts of one unit (classes without a vote are left out), and what they cost.

    The scores of each draw are there only where the run's certificate is made from them.
    """

    unit: WorkUnit
    votes: dict[int, int]
    evaluations: int
    seconds: float
    finished_unix: float
    device: str
    scores: np.ndarray | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        counted = sum(self.votes.values())
        if counted != self.unit.draws or min(self.votes.values()) < 0:
            raise ValueError(f"{self.unit}: {counted} votes counted of {self.unit.draws} draws")

    def row(self, unit_id: str) -> dict[str, Any]:
        """The row of the evidence file, with a checksum over all the rest of it."""
        classes = sorted(self.votes)
        row = {
            "unit_id": unit_id,
            **self.unit.__dict__,
            "class_id": classes,
            "votes": [self.votes[c] for c in classes],
            "scores": None if self.scores is None else self.scores.ravel().tolist(),
            "evaluations": self.evaluations,
            "seconds": self.seconds,
            "finished_unix": self.finished_unix,
            "device": self.device,
        }
        return {**row, "checksum": checksum(row)}


def checksum(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def evidence_digest(evidence: Iterable[Evidence], *, fingerprint: str) -> str:
    """One value for all of a run's evidence, whatever the order in which it is read."""
    rows = [item.row(item.unit.unit_id(fingerprint)) for item in evidence]
    return checksum(sorted(row["checksum"] for row in rows))


@dataclass(frozen=True)
class StoredImage:
    """An image as the run folder knows it; pixels are kept for the first few only."""

    image_id: str
    label: int
    pixels: np.ndarray | None


def write_certificates(path: UPath, rows: Sequence[dict[str, Any]], *, evidence_digest: str) -> None:
    """Certificates as Parquet, one row an image and noise level; the file names the evidence it was made from."""
    schema = CERTIFICATE_SCHEMA.with_metadata({EVIDENCE_KEY: evidence_digest.encode()})
    publish(path, parquet_bytes(pa.Table.from_pylist(list(rows), schema=schema)))


def read_certificates(path: UPath) -> tuple[list[dict[str, Any]], str]:
    """Rows of certificates.parquet, and the digest of the evidence that they were made from.

    Raises:
        StoreError: there is no such file, or it is damaged.
    """
    try:
        table = parquet_table(read(path))
    except (ValueError, FileNotFoundError) as error:
        raise StoreError(f"{path} is no readable file of certificates; run `ndc report` on the run again") from error
    return table.to_pylist(), (table.schema.metadata or {}).get(EVIDENCE_KEY, b"").decode()


class RunStore:
    """Reads and writes one run's folder, on this machine or in an object store."""

    def __init__(self, folder: Where) -> None:
        self.folder = location(folder)
        self.pictures = RunImages(self.folder)

    # What the run is

    def manifest(self) -> dict[str, Any]:
        """The declaration of the run: `law`, `fingerprint`, `plan`.

        Raises:
            StoreError: the folder holds no run, or its manifest is damaged.
        """
        path = self.folder / "run.json"
        try:
            manifest: dict[str, Any] = json.loads(read(path))
            return {key: manifest[key] for key in ("law", "fingerprint", "plan")}
        except FileNotFoundError as error:
            raise StoreError(
                f"{self.folder} holds no run (no run.json); start one with `ndc certify PRESET --run DIR`"
            ) from error
        except LocationError:
            raise
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{path} is damaged ({error}); restore it, or start again in another folder") from error

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
        publish(self.folder / "run.toml", config_toml.encode())
        publish(self.folder / "run.json", json.dumps(manifest, indent=2).encode())

    def images(self) -> list[StoredImage]:
        """All images, the first few with their pixels."""
        return [
            StoredImage(
                record.image_id,
                record.label,
                self.pictures.pixels(record) if record.index < GALLERY_IMAGES else None,
            )
            for record in self.pictures.records()
        ]

    # Evidence

    def evidence_path(self, unit_id: str) -> UPath:
        return self.folder / "evidence" / unit_id[:2] / f"{unit_id}.parquet"

    def publish(self, evidence: Evidence, *, fingerprint: str) -> None:
        """Makes a unit's evidence durable; publishing the same unit again replaces it by its equal."""
        unit_id = evidence.unit.unit_id(fingerprint)
        publish_patiently(self.evidence_path(unit_id), evidence_content(evidence, fingerprint=fingerprint))
        remove(self.failure_path(unit_id))

    def has_evidence(self, unit_id: str) -> bool:
        return exists(self.evidence_path(unit_id))

    def read_evidence(self, path: UPath, *, fingerprint: str) -> Evidence:
        """One unit's evidence.

        Raises:
            ValueError: a torn, changed or foreign file, another run's, or counts that do not add up.
        """
        return parse_evidence(read(path), unit_id=path.stem, fingerprint=fingerprint)

    def evidence_files(self) -> list[UPath]:
        return [path for path in files_of_shards(self.folder / "evidence") if path.suffix == ".parquet"]

    def each_evidence(self, *, fingerprint: str) -> Iterator[tuple[UPath, Evidence | ValueError]]:
        """Every file among the evidence, with what is in it or why it is none."""
        paths = self.evidence_files()
        for path, content in zip(paths, read_each(paths), strict=True):
            try:
                yield path, parse_evidence(content, unit_id=path.stem, fingerprint=fingerprint)
            except ValueError as error:
                yield path, error

    def all_evidence(self, *, fingerprint: str) -> list[Evidence]:
        """All evidence of the run.

        Raises:
            StoreError: naming the first file that is none.
        """
        found = []
        for path, item in self.each_evidence(fingerprint=fingerprint):
            if isinstance(item, ValueError):
                raise StoreError(
                    f"{path}: {item}; run `ndc certify` on this run again to set it aside and recompute it"
                ) from item
            found.append(item)
        return found

    def sort_out_evidence(
        self, *, fingerprint: str, planned: set[str]
    ) -> tuple[list[Evidence], list[tuple[UPath, str]]]:
        """All evidence of the run, after moving out of its folder what is none: each such file's new place, and why.

        Only for a driver that holds the lock: half-written files are removed as well.
        """
        sound, unusable = [], []
        for path in files_of_shards(self.folder / "evidence"):
            if path.suffix == ".partial":
                remove(path)
        for path, item in self.each_evidence(fingerprint=fingerprint):
            if isinstance(item, Evidence) and path.stem in planned:
                sound.append(item)
                continue
            why = str(item) if isinstance(item, ValueError) else "evidence of a unit that this run does not plan"
            target = self.folder / "set-aside" / f"{path.name}.{time.time_ns()}"
            move(path, target)
            unusable.append((target, why))
        return sound, unusable

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


def evidence_content(evidence: Evidence, *, fingerprint: str) -> bytes:
    """The file of one unit's evidence."""
    schema = EVIDENCE_SCHEMA.with_metadata({FINGERPRINT_KEY: fingerprint.encode()})
    return parquet_bytes(pa.Table.from_pylist([evidence.row(evidence.unit.unit_id(fingerprint))], schema=schema))


def parse_evidence(content: bytes, *, unit_id: str, fingerprint: str) -> Evidence:
    """What a file among the evidence says.

    Raises:
        ValueError: it is torn, changed or foreign, another run's, or its counts do not add up.
    """
    table = parquet_table(content)
    if not table.schema.equals(EVIDENCE_SCHEMA) or table.num_rows != 1:
        raise ValueError("a Parquet file, but not one unit's evidence")
    if (table.schema.metadata or {}).get(FINGERPRINT_KEY) != fingerprint.encode():
        raise ValueError("evidence of another run")
    row = table.to_pylist()[0]
    unit = WorkUnit(**{name: row[name] for name in WorkUnit.__dataclass_fields__})
    if not unit.unit_id(fingerprint) == row["unit_id"] == unit_id:
        raise ValueError("its name is not that of the unit inside")
    votes = dict(zip(row["class_id"], row["votes"], strict=True))
    scores = None if row["scores"] is None else np.array(row["scores"]).reshape(unit.draws, -1)
    cost = row["evaluations"], row["seconds"], row["finished_unix"], row["device"]
    evidence = Evidence(unit, votes, *cost, scores)
    if evidence.row(unit_id) != row:
        raise ValueError("its checksum does not fit its content: it was changed after it was written")
    return evidence
