"""Evidence: what each work unit counted, as rows of Parquet; that of a whole run as columns."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ndc_core.analysis.exactness import Exactness
from ndc_core.noise.draw_generators import Phase
from pipeline.declaration.units import WorkUnit
from pipeline.store.devices import DeviceRecord
from pipeline.store.parquet_io import parquet_bytes, parquet_table

FINGERPRINT_KEY = b"ndc.law"
PHASES = ("selection", "estimation")

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
DEVICE = EVIDENCE_SCHEMA.get_field_index("device")


@dataclass(frozen=True)
class Evidence:
    """Integer vote counts of one unit (classes without a vote are left out), and what they cost.

    The scores of each draw are there only where the run's certificate is made from them. `device` is the text of a
    `DeviceRecord`.
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
            **asdict(self.unit),
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


def table_of(items: Iterable[Evidence], *, fingerprint: str) -> pa.Table:
    schema = EVIDENCE_SCHEMA.with_metadata({FINGERPRINT_KEY: fingerprint.encode()})
    return pa.Table.from_pylist([item.row(item.unit.unit_id(fingerprint)) for item in items], schema=schema)


def evidence_content(evidence: Evidence, *, fingerprint: str) -> bytes:
    """The file of one unit's evidence."""
    return parquet_bytes(table_of([evidence], fingerprint=fingerprint))


def parse_table(content: bytes, *, fingerprint: str) -> pa.Table:
    """The rows of a file of evidence, as they were written.

    Raises:
        ValueError: it is torn, changed or foreign, or another run's.
    """
    table = parquet_table(content)
    if not table.schema.equals(EVIDENCE_SCHEMA) or not table.num_rows:
        raise ValueError("a Parquet file, but not evidence")
    if (table.schema.metadata or {}).get(FINGERPRINT_KEY) != fingerprint.encode():
        raise ValueError("evidence of another run")
    return table


def checked_rows(table: pa.Table, *, fingerprint: str) -> Iterator[Evidence]:
    """Each row's evidence.

    Raises:
        ValueError: a row's counts do not add up, its id is not its unit's, or its checksum does not fit.
    """
    for row in table.to_pylist():
        unit = WorkUnit(**{name: row[name] for name in WorkUnit.__dataclass_fields__})
        if unit.unit_id(fingerprint) != row["unit_id"]:
            raise ValueError("its name is not that of the unit inside")
        votes = dict(zip(row["class_id"], row["votes"], strict=True))
        scores = None if row["scores"] is None else np.array(row["scores"]).reshape(unit.draws, -1)
        cost = row["evaluations"], row["seconds"], row["finished_unix"], row["device"]
        evidence = Evidence(unit, votes, *cost, scores)
        if evidence.row(row["unit_id"]) != row:
            raise ValueError("its checksum does not fit its content: it was changed after it was written")
        DeviceRecord.parse(evidence.device)
        yield evidence


def parse_evidence(content: bytes, *, unit_id: str, fingerprint: str) -> tuple[pa.Table, Evidence]:
    """The one row of a unit's own file, and what it says.

    Raises:
        ValueError: it is torn, changed or foreign, another run's, or its counts do not add up.
    """
    table = parse_table(content, fingerprint=fingerprint)
    if table.num_rows != 1 or table["unit_id"][0].as_py() != unit_id:
        raise ValueError("its name is not that of the unit inside")
    (evidence,) = checked_rows(table, fingerprint=fingerprint)
    return table, evidence


class EvidenceTable:
    """All evidence of a run in columns, sorted by noise level, image, phase and draw: a million units fit in memory.

    A cell's rows become objects when they are asked for. The rows are taken to be sound.
    """

    def __init__(self, tables: Sequence[pa.Table]) -> None:
        table = pa.concat_tables([*tables, EVIDENCE_SCHEMA.empty_table()])
        # A run has few devices, and the text of each is long.
        table = table.set_column(DEVICE, "device", table["device"].combine_chunks().dictionary_encode())
        image = table["image_id"].combine_chunks().dictionary_encode()
        codes, sigma = image.indices.to_numpy(), table["sigma_pixel"].to_numpy()
        estimation = pc.equal(table["phase"], "estimation").to_numpy()
        order = np.lexsort((table["draw_start"].to_numpy(), estimation, codes, sigma))
        self.table = table.take(order).combine_chunks()
        self.images: list[str] = image.dictionary.to_pylist()
        self.codes, self.estimation = codes[order], estimation[order]
        self.sigma = sigma[order]
        changes = (np.diff(self.codes) != 0) | (np.diff(self.sigma) != 0)
        starts = np.concatenate([[0], changes.nonzero()[0] + 1, [len(order)]]) if len(order) else np.zeros(1, int)
        self.span = {
            (float(self.sigma[first]), self.images[self.codes[first]]): (first, last)
            for first, last in pairwise(starts.tolist())
        }

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __iter__(self) -> Iterator[Evidence]:
        for key in self.span:
            yield from self.of_cell(key)

    def cells(self) -> Iterable[tuple[float, str]]:
        return self.span

    def of_cell(self, cell: tuple[float, str]) -> list[Evidence]:
        """The evidence of a noise level and image, selection first, in the order of the draws."""
        first, last = self.span.get(cell, (0, 0))
        estimation = self.estimation[first:last].tolist()
        columns = (column[first:last].tolist() for column in self._columns.values())
        lists = (self._lists_in(name, first, last) for name in ("class_id", "votes", "scores"))
        return [self._item(cell, *values) for values in zip(estimation, *lists, *columns, strict=True)]

    def totals(self) -> Iterator[tuple[tuple[float, str], int, int]]:
        """Draws and evaluations of each noise level and image that there is evidence of."""
        columns = self._columns
        each = columns["draw_stop"] - columns["draw_start"], columns["evaluations"]
        draws, evaluations = (np.concatenate([[0], np.cumsum(column)]).tolist() for column in each)
        for key, (first, last) in self.span.items():
            yield key, draws[last] - draws[first], evaluations[last] - evaluations[first]

    @cached_property
    def _columns(self) -> dict[str, np.ndarray]:
        names = ("label", "draw_start", "draw_stop", "evaluations", "seconds", "finished_unix")
        device = self.table["device"].combine_chunks().indices
        return {**{name: self.table[name].to_numpy() for name in names}, "device": device.to_numpy()}

    @cached_property
    def _device_texts(self) -> list[str]:
        texts: list[str] = self.table["device"].combine_chunks().dictionary.to_pylist()
        return texts

    @cached_property
    def _lists(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Values and offsets of the columns of lists."""
        lists = {}
        for name in ("class_id", "votes", "scores"):
            column = self.table[name].combine_chunks()
            lists[name] = (column.values.to_numpy(zero_copy_only=False), column.offsets.to_numpy())
        return lists

    def _lists_in(self, name: str, first: int, last: int) -> list[Any]:
        """What a column of lists holds in some rows. One conversion of all of it takes a third of one for each row."""
        values, offsets = self._lists[name]
        if not len(values):  # few runs keep scores
            return [values] * (last - first)
        bounds = offsets[first : last + 1].tolist()
        start = bounds[0]
        held = values[start : bounds[-1]]
        held = held if name == "scores" else held.tolist()  # there may be a million scores, which stay an array
        return [held[low - start : high - start] for low, high in pairwise(bounds)]

    def _item(
        self,
        cell: tuple[float, str],
        estimation: bool,
        classes: list[int],
        votes: list[int],
        scores: np.ndarray,
        label: int,
        draw_start: int,
        draw_stop: int,
        evaluations: int,
        seconds: float,
        finished_unix: float,
        device: int,
    ) -> Evidence:
        """The evidence in a row, from what the columns hold there."""
        sigma_pixel, image_id = cell
        phase: Phase = "estimation" if estimation else "selection"
        unit = WorkUnit(image_id, label, sigma_pixel, phase, draw_start, draw_stop)
        return Evidence(
            unit,
            dict(zip(classes, votes, strict=True)),
            evaluations,
            seconds,
            finished_unix,
            self._device_texts[device],
            scores.reshape(unit.draws, -1) if len(scores) else None,
        )

    @property
    def unit_ids(self) -> list[str]:
        ids: list[str] = self.table["unit_id"].to_pylist()
        return ids

    @cached_property
    def devices(self) -> tuple[tuple[DeviceRecord, int], ...]:
        """What computed it, with the number of units, most first. A device whose self-tests differ counts once, with
        the larger differences."""
        counts: dict[DeviceRecord, tuple[DeviceRecord, int]] = {}
        for value in pc.value_counts(self.table["device"]).to_pylist():
            record = DeviceRecord.parse(value["values"])
            same = replace(record, exactness=Exactness())
            known, units = counts.get(same, (same, 0))
            merged = replace(record, exactness=record.exactness.merged(known.exactness))
            counts[same] = merged, units + value["counts"]
        return tuple(sorted(counts.values(), key=lambda counted: (-counted[1], str(counted[0]))))

    def cost_of_a_selection_draw(self, cell: tuple[float, str]) -> tuple[float, float]:
        """Evaluations and seconds of one draw of the selection phase, the mean over a cell's."""
        first, last = self.span[cell]
        end = first + int((~self.estimation[first:last]).sum())
        sums = {name: column[first:end].sum().item() for name, column in self._columns.items()}
        draws = sums["draw_stop"] - sums["draw_start"]
        return sums["evaluations"] / draws, sums["seconds"] / draws

    @property
    def draws(self) -> int:
        return int((self._columns["draw_stop"] - self._columns["draw_start"]).sum())

    @property
    def evaluations(self) -> int:
        return int(self._columns["evaluations"].sum())

    @property
    def last_finished_unix(self) -> float:
        """By the clock of the actor that finished it; 0 if there is none."""
        return float(self._columns["finished_unix"].max(initial=0.0))

    def since(self, unix: float) -> tuple[int, float] | None:
        """Evaluations of the units that were finished after a time, and when the first of them began."""
        recent = self._columns["finished_unix"] > unix
        if not recent.any():
            return None
        columns = {name: column[recent] for name, column in self._columns.items()}
        began = float((columns["finished_unix"] - columns["seconds"]).min())
        return int(columns["evaluations"].sum()), began

    @property
    def digest(self) -> str:
        """One value for all of the evidence, whatever the order and the files in which it was read."""
        return checksum(sorted(self.table["checksum"].to_pylist()))
