"""A run's folder: what it was declared to be, and the evidence that its units left.

run.json               the law (all that decides a vote), its fingerprint, and the plan
run.toml               the configuration as resolved
images.parquet         the images' ids and labels; pixels of the first few, for the report
evidence/ab/<id>.parquet   one file a work unit, published whole or not at all
failures/<id>.json     the last failed attempt of a unit without evidence
set-aside/             files found among the evidence that are none
"""

import hashlib
import json
import os
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from pipeline.datasets import Example
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


def write_atomically(path: Path, content: bytes) -> None:
    """Publishes a file whole or not at all, also across a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    with partial.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(path)


def write_certificates(path: Path, rows: Sequence[dict[str, Any]], *, evidence_digest: str) -> None:
    """Certificates as Parquet, one row an image and noise level; the file names the evidence it was made from."""
    schema = CERTIFICATE_SCHEMA.with_metadata({EVIDENCE_KEY: evidence_digest.encode()})
    write_atomically(path, parquet_bytes(pa.Table.from_pylist(list(rows), schema=schema)))


def read_certificates(path: Path) -> tuple[list[dict[str, Any]], str]:
    """Rows of certificates.parquet, and the digest of the evidence that they were made from.

    Raises:
        StoreError: there is no such file, or it is damaged.
    """
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            table = file.read()
    except (pa.ArrowException, OSError) as error:
        raise StoreError(f"{path} is no readable file of certificates; run `ndc report` on the run again") from error
    return table.to_pylist(), (table.schema.metadata or {}).get(EVIDENCE_KEY, b"").decode()


def parquet_bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, write_page_checksum=True)
    return bytes(sink.getvalue())


class RunStore:
    """Reads and writes one run's folder."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the run for one driver; the system lets go of it when the process dies, however it dies.

        Raises:
            StoreError: the folder cannot be written, or another driver holds it.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.folder / "run.lock")
            lock.acquire(timeout=0)
        except Timeout as error:
            raise StoreError(
                f"{self.folder} is in use by another `ndc certify`; wait for it, or choose another --run"
            ) from error
        except OSError as error:
            raise StoreError(f"the run folder {self.folder} cannot be written: {error.strerror}") from error
        try:
            yield
        finally:
            lock.release()

    # What the run is

    def manifest(self) -> dict[str, Any]:
        """The declaration of the run: `law`, `fingerprint`, `plan`.

        Raises:
            StoreError: the folder holds no run, or its manifest is damaged.
        """
        path = self.folder / "run.json"
        if not path.is_file():
            raise StoreError(f"{self.folder} holds no run (no run.json); start one with `ndc certify PRESET --run DIR`")
        try:
            manifest: dict[str, Any] = json.loads(path.read_text())
            return {key: manifest[key] for key in ("law", "fingerprint", "plan")}
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{path} is damaged ({error}); restore it, or start again in another folder") from error

    def is_declared(self) -> bool:
        return (self.folder / "run.json").is_file()

    def declare(self, manifest: dict[str, Any], *, config_toml: str, examples: Sequence[Example]) -> None:
        """Writes what the run is; run.json comes last, so that a folder with it is complete."""
        shown = [example.image.tobytes() for example in examples[:GALLERY_IMAGES]]
        pixels = shown + [None] * (len(examples) - len(shown))
        table = pa.table(
            {
                "image_id": pa.array([example.image_id for example in examples], pa.string()),
                "label": pa.array([example.label for example in examples], pa.int32()),
                "shape": pa.array([list(example.image.shape) for example in examples], pa.list_(pa.int32())),
                "pixels": pa.array(pixels, pa.binary()),
            }
        )
        write_atomically(self.folder / "images.parquet", parquet_bytes(table))
        write_atomically(self.folder / "run.toml", config_toml.encode())
        write_atomically(self.folder / "run.json", json.dumps(manifest, indent=2).encode())

    def images(self) -> list[StoredImage]:
        rows = pq.read_table(self.folder / "images.parquet").to_pylist()
        return [
            StoredImage(
                row["image_id"],
                row["label"],
                np.frombuffer(row["pixels"], np.uint8).reshape(row["shape"]) if row["pixels"] is not None else None,
            )
            for row in rows
        ]

    # Evidence

    def evidence_path(self, unit_id: str) -> Path:
        return self.folder / "evidence" / unit_id[:2] / f"{unit_id}.parquet"

    def publish(self, evidence: Evidence, *, fingerprint: str) -> None:
        """Makes a unit's evidence durable; publishing the same unit again replaces it by its equal."""
        unit_id = evidence.unit.unit_id(fingerprint)
        schema = EVIDENCE_SCHEMA.with_metadata({FINGERPRINT_KEY: fingerprint.encode()})
        table = pa.Table.from_pylist([evidence.row(unit_id)], schema=schema)
        write_atomically(self.evidence_path(unit_id), parquet_bytes(table))
        self.failure_path(unit_id).unlink(missing_ok=True)

    def has_evidence(self, unit_id: str) -> bool:
        return self.evidence_path(unit_id).is_file()

    def read_evidence(self, path: Path, *, fingerprint: str) -> Evidence:
        """One unit's evidence.

        Raises:
            ValueError: a torn, changed or foreign file, another run's, or counts that do not add up.
        """
        try:
            with pq.ParquetFile(path, page_checksum_verification=True) as file:
                table = file.read()
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"not a readable Parquet file ({str(error).splitlines()[0]})") from error
        if not table.schema.equals(EVIDENCE_SCHEMA) or table.num_rows != 1:
            raise ValueError("a Parquet file, but not one unit's evidence")
        if (table.schema.metadata or {}).get(FINGERPRINT_KEY) != fingerprint.encode():
            raise ValueError("evidence of another run")
        row = table.to_pylist()[0]
        unit = WorkUnit(**{name: row[name] for name in WorkUnit.__dataclass_fields__})
        if not unit.unit_id(fingerprint) == row["unit_id"] == path.stem:
            raise ValueError("its name is not that of the unit inside")
        votes = dict(zip(row["class_id"], row["votes"], strict=True))
        scores = None if row["scores"] is None else np.array(row["scores"]).reshape(unit.draws, -1)
        cost = row["evaluations"], row["seconds"], row["finished_unix"], row["device"]
        evidence = Evidence(unit, votes, *cost, scores)
        if evidence.row(path.stem) != row:
            raise ValueError("its checksum does not fit its content: it was changed after it was written")
        return evidence

    def evidence_files(self) -> list[Path]:
        return sorted((self.folder / "evidence").glob("*/*.parquet"))

    def all_evidence(self, *, fingerprint: str) -> list[Evidence]:
        """All evidence of the run.

        Raises:
            StoreError: naming the first file that is none.
        """
        found = []
        for path in self.evidence_files():
            try:
                found.append(self.read_evidence(path, fingerprint=fingerprint))
            except ValueError as error:
                raise StoreError(
                    f"{path}: {error}; run `ndc certify` on this run again to set it aside and recompute it"
                ) from error
        return found

    def sort_out_evidence(
        self, *, fingerprint: str, planned: set[str]
    ) -> tuple[list[Evidence], list[tuple[Path, str]]]:
        """All evidence of the run, after moving out of its folder what is none: each such file's new place, and why.

        Only for a driver that holds the lock: half-written files are removed as well.
        """
        sound, unusable = [], []
        for partial in (self.folder / "evidence").glob("*/*.partial"):
            partial.unlink(missing_ok=True)
        for path in self.evidence_files():
            try:
                evidence = self.read_evidence(path, fingerprint=fingerprint)
                if path.stem not in planned:
                    raise ValueError("evidence of a unit that this run does not plan")
                sound.append(evidence)
            except ValueError as error:
                target = self.folder / "set-aside" / f"{path.name}.{time.time_ns()}"
                target.parent.mkdir(exist_ok=True)
                path.replace(target)
                unusable.append((target, str(error)))
        return sound, unusable

    # Failures

    def failure_path(self, unit_id: str) -> Path:
        return self.folder / "failures" / f"{unit_id}.json"

    def record_failure(self, unit: WorkUnit, error: str, *, fingerprint: str) -> None:
        unit_id = unit.unit_id(fingerprint)
        record = {"unit": str(unit), "error": error, "failed_unix": time.time()}
        write_atomically(self.failure_path(unit_id), json.dumps(record, indent=2).encode())

    def failures(self) -> Iterable[dict[str, Any]]:
        for path in sorted((self.folder / "failures").glob("*.json")):
            yield json.loads(path.read_text())
