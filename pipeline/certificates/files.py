"""The files of certificates: certificates.parquet, and the log that this field's scripts read."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from datetime import timedelta
from typing import Any

import pyarrow as pa
from upath import UPath

from pipeline.certificates.reduce import CertifiedImage
from pipeline.locations import publish, read
from pipeline.store.parquet_io import parquet_bytes, parquet_table
from pipeline.store.run_store import StoreError

EVIDENCE_KEY = b"ndc.evidence"
NOTE_MARK = "#"  # begins the line before a log's header, so that no script takes a partial log for a whole one

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


def write_certificates(path: UPath, rows: Sequence[dict[str, Any]], *, evidence_digest: str) -> None:
    """Writes certificates as Parquet, one row per image and noise level; the file names its evidence."""
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


def certificate_rows(certified: Sequence[CertifiedImage]) -> list[dict[str, Any]]:
    """Rows of certificates.parquet, by column name."""
    return [
        {
            "image_id": item.image_id,
            "label": item.label,
            "correct": item.holds(0.0),
            **asdict(item.certificate),
            "evaluations": item.evaluations,
            "seconds": item.seconds,
        }
        for item in certified
    ]


def cut(number: float, digits: int = 6) -> float:
    """The number cut to `digits` digits, never rounded up: a radius never exceeds the certified one (rule S7)."""
    return math.floor(number * 10**digits) / 10**digits


def cut_text(number: float, digits: int) -> str:
    return f"{cut(number, digits):.{digits}f}"


def certificate_tsv(certified: Sequence[CertifiedImage], image_ids: Sequence[str], *, note: str = "") -> str:
    """The log that this field's scripts read (predict is -1 for an abstention), with sigma_pixel as a last column.

    `idx` is an image's place among all images of the run. The radius is cut, not rounded, to six digits, so that it
    never exceeds the certified one (rule S7). A `note` is the first line.
    """
    index_of = {image_id: index for index, image_id in enumerate(image_ids)}
    lines = [*([f"{NOTE_MARK} {note}"] if note else []), "idx\tlabel\tpredict\tradius\tcorrect\ttime\tsigma_pixel"]
    for item in certified:
        certificate = item.certificate
        predict = -1 if certificate.predicted is None else certificate.predicted
        radius = cut(certificate.radius)
        lines.append(
            f"{index_of[item.image_id]}\t{item.label}\t{predict}\t{radius:.6f}\t{int(item.holds(0.0))}\t"
            f"{timedelta(seconds=item.seconds)}\t{certificate.sigma_pixel:g}"
        )
    return "\n".join(lines) + "\n"
