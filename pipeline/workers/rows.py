"""Work units and what became of them, as rows of columns."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from pipeline.data.datasets import ImageRecord
from pipeline.declaration.units import WorkUnit

Columns = dict[str, np.ndarray]


@dataclass(frozen=True)
class Receipt:
    """What became of a unit; `error` is empty unless it failed; if `fatal`, no other votes can be kept either.

    `decided` says that with it the image is known to need no more draws at its noise level. `usage` is the text of a
    `Usage` now and then, otherwise empty.
    """

    unit_id: str
    unit: str
    image_id: str
    sigma_pixel: float
    draws: int
    evaluations: int
    seconds: float
    host: str
    error: str
    fatal: bool
    decided: bool = False
    usage: str = ""


RECEIPT_COLUMNS = tuple(field.name for field in fields(Receipt))


def unit_row(unit: WorkUnit, record: ImageRecord) -> dict[str, Any]:
    """A unit and its image's record as one row of a Ray dataset."""
    return {**asdict(unit), **asdict(record)}


def unit_of_row(row: dict[str, Any]) -> tuple[WorkUnit, ImageRecord]:
    unit, record = ({name: row[name] for name in kind.__dataclass_fields__} for kind in (WorkUnit, ImageRecord))
    return WorkUnit(**unit), ImageRecord(**record)


def rows_of(batch: Columns) -> Iterator[dict[str, Any]]:
    """The rows of a batch of columns, as plain Python values."""
    columns = {name: column.tolist() for name, column in batch.items()}
    for values in zip(*columns.values(), strict=True):
        yield dict(zip(columns, values, strict=True))
