"""Certification logs of other tools: tab-separated, with idx, label, predict, radius, correct and time."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import accumulate
from typing import Any

from upath import UPath

from pipeline.locations import read

COLUMNS = ("idx", "label", "predict", "radius", "correct", "time")
LEVEL_COLUMN = "sigma_pixel"  # in this program's logs: idx then counts the run's images
TIME = re.compile(r"(?:(\d+) days?, )?(\d+):([0-5]\d):([0-5]\d(?:\.\d+)?)")
TRUTH = {"true": 1.0, "false": 0.0}


class LogError(ValueError):
    """A log that cannot stand in a comparison: which, where in it, and what to do."""


@dataclass(frozen=True)
class LogRow:
    """What a log says of an image at one noise level; `predicted` is None for an abstention."""

    index: int
    label: int
    predicted: int | None
    radius: float
    seconds: float

    @property
    def right(self) -> bool:
        return self.predicted == self.label


@dataclass(frozen=True)
class Log:
    """Rows by noise level, None where the log does not say which; `remark` tells what was mended."""

    levels: dict[float | None, list[LogRow]]
    remark: str | None

    @property
    def own(self) -> bool:
        """Whether this program wrote it."""
        return None not in self.levels


def read_log(path: UPath) -> Log:
    """The rows of a log. Radii are as written. `correct` must say of each row whether predict is label.

    In some published logs it is a running count or accuracy instead: that is remarked, and nothing else taken from it.

    Raises:
        LogError: columns are missing, a cell is not what its column says, an image comes twice at a level, or `correct`
            contradicts its row.
    """
    cells = _cells(path)
    rows = [_row(row, f"{path}, line {number}") for number, row in enumerate(cells, start=2)]
    levels: dict[float | None, list[LogRow]] = {}
    seen = set()
    for number, (row, of) in enumerate(zip(rows, cells, strict=True), start=2):
        where = f"{path}, line {number}"
        level = _cell(of, LEVEL_COLUMN, _finite, "a noise level", where) if LEVEL_COLUMN in of else None
        if (level, row.index) in seen:
            raise LogError(f"{where}: idx {row.index} comes a second time at one noise level; keep one of the rows")
        seen.add((level, row.index))
        levels.setdefault(level, []).append(row)
    return Log(levels, _remark_on_correct([row["correct"] for row in cells], rows, path))


def _cells(path: UPath) -> list[dict[str, str]]:
    """The cells of each row, by column."""
    listed = ", ".join(COLUMNS)
    try:
        lines = [line.split("\t") for line in read(path).decode().rstrip().splitlines()]
    except UnicodeDecodeError as error:
        raise LogError(f"{path} is no text, so no log; give a run's folder, or a log with {listed}") from error
    header = [name.strip() for name in lines[0]] if lines else []
    if missing := [name for name in COLUMNS if name not in header]:
        raise LogError(f"{path} has no column {', '.join(missing)}; a log has the tab-separated columns {listed}")
    if len(lines) == 1:
        raise LogError(f"{path} has no rows; give the log of a finished certification")
    for number, line in enumerate(lines[1:], start=2):
        if len(line) != len(header):
            raise LogError(f"{path}, line {number}: {len(line)} cells where the header has {len(header)}; mend the log")
    return [dict(zip(header, map(str.strip, line), strict=True)) for line in lines[1:]]


def _row(cells: dict[str, str], where: str) -> LogRow:
    predict = _cell(cells, "predict", int, "a class, or -1 for an abstention", where)
    return LogRow(
        index=_cell(cells, "idx", _count, "a place in the data, counted from 0", where),
        label=_cell(cells, "label", _count, "a class, counted from 0", where),
        predicted=predict if predict >= 0 else None,
        radius=_cell(cells, "radius", _finite, "a radius", where),
        seconds=_cell(cells, "time", seconds_of, "a time as H:MM:SS.ffffff", where),
    )


def _cell(cells: dict[str, str], name: str, parse: Callable[[str], Any], what: str, where: str) -> Any:
    try:
        return parse(cells[name])
    except ValueError as error:
        raise LogError(f"{where}: {name} is {cells[name]!r}, not {what}; mend the log") from error


def _count(text: str) -> int:
    if (number := int(text)) < 0:
        raise ValueError
    return number


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number) or number < 0:
        raise ValueError
    return number


def seconds_of(text: str) -> float:
    """Seconds of a time as Python writes it: `H:MM:SS`, with a fraction or days or without."""
    found = TIME.fullmatch(text)
    if not found:
        raise ValueError(f"{text!r} is no time")
    days, hours, minutes, seconds = found.groups(default="0")
    time = timedelta(days=int(days), hours=int(hours), minutes=int(minutes), seconds=float(seconds))
    return time.total_seconds()


def _remark_on_correct(column: Sequence[str], rows: Sequence[LogRow], path: UPath) -> str | None:
    """None where `correct` fits every row; else what it holds instead.

    Raises:
        LogError: it fits neither the rows nor a running count or accuracy of them.
    """
    right = [row.right for row in rows]
    wrong_at = next((k for k, text in enumerate(column) if not _shows(text, right[k])), None)
    if wrong_at is None:
        return None
    counts = list(accumulate(map(int, right)))
    shares = [count / number for number, count in enumerate(counts, start=1)]
    running: dict[str, Sequence[float]] = {
        "count of right rows": counts,
        "accuracy": shares,
        "accuracy in percent": [100 * share for share in shares],
    }
    row, where = rows[wrong_at], f"line {wrong_at + 2}"
    for what, values in running.items():
        if all(_shows(text, value) for text, value in zip(column, values, strict=True)):
            return (
                f"{path}: column `correct` holds the running {what}, not 0 or 1 for its own row ({where} has "
                f"{column[wrong_at]}); it was left out, and recomputed from predict and label"
            )
    predicted = -1 if row.predicted is None else row.predicted
    raise LogError(
        f"{path}, {where}: correct is {column[wrong_at]}, but predict is {predicted} and label {row.label}; "
        "one of the three is wrong: mend the log"
    )


def _shows(text: str, value: float) -> bool:
    """Whether a text is a number, rounded to the digits that it has."""
    try:
        shown = TRUTH[text.lower()] if text.lower() in TRUTH else float(text)
    except ValueError:
        return False
    digits = len(text.partition(".")[2])
    rounding = 2.0**-52 * max(1.0, abs(value))  # of both numbers, as doubles: a text may have more digits than they do
    return abs(shown - value) <= (0.500001 * 10.0**-digits + rounding if digits else 0)
