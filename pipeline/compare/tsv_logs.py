"""Certification logs of other tools: tab-separated, with idx, label, predict, radius, correct and maybe time."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import accumulate
from typing import Any

from upath import UPath

from pipeline.certificates.files import NOTE_MARK
from pipeline.locations import read_text

COLUMNS = ("idx", "label", "predict", "radius", "correct")
TIME_COLUMN = "time"
LEVEL_COLUMN = "sigma_pixel"  # in this program's logs: idx then counts the run's images
TIME = re.compile(r"(?:(\d+) days?, )?(\d+):([0-5]\d):([0-5]\d(?:\.\d+)?)")
TRUTH = {"true": 1.0, "false": 0.0}


class LogError(ValueError):
    """A log that cannot be compared: which one, where in it, and what to do."""


@dataclass(frozen=True)
class LogRow:
    """What a log says of an image at one noise level.

    `predicted` is None for an abstention, `seconds` where the log tells no time.
    """

    index: int
    label: int
    predicted: int | None
    radius: float
    seconds: float | None

    @property
    def right(self) -> bool:
        return self.predicted == self.label


@dataclass(frozen=True)
class Log:
    """Rows by noise level, None where the log does not say which; `remark` tells whether a column was ignored."""

    levels: dict[float | None, list[LogRow]]
    remark: str | None

    @property
    def own(self) -> bool:
        """Whether this program wrote it."""
        return None not in self.levels

    @property
    def timed(self) -> bool:
        """Whether it tells the time of every image."""
        return all(row.seconds is not None for rows in self.levels.values() for row in rows)


def read_log(path: UPath) -> Log:
    """The rows of a log. Radii are as written. `correct` must say of each row whether predict is label.

    In some published logs it is a running count or accuracy instead: the log gets a remark, and the column is not used.

    Raises:
        LogError: columns are missing, a cell is not what its column says, an image comes twice at a level, or `correct`
            contradicts its row.
    """
    cells = _cells(path)
    rows = {number: _row(row, f"{path}, line {number}") for number, row in cells.items()}
    levels: dict[float | None, list[LogRow]] = {}
    seen = set()
    for number, row in rows.items():
        where, row_cells = f"{path}, line {number}", cells[number]
        level = _cell(row_cells, LEVEL_COLUMN, _finite, "a noise level", where) if LEVEL_COLUMN in row_cells else None
        if (level, row.index) in seen:
            raise LogError(f"{where}: idx {row.index} comes a second time at one noise level; keep one of the rows")
        seen.add((level, row.index))
        levels.setdefault(level, []).append(row)
    return Log(levels, _remark_on_correct({number: row["correct"] for number, row in cells.items()}, rows, path))


def _cells(path: UPath) -> dict[int, dict[str, str]]:
    """The cells of each row, by its line in the file and by column. Blank lines do not count."""
    listed = ", ".join(COLUMNS)
    try:
        text = read_text(path)
    except UnicodeDecodeError as error:
        raise LogError(f"{path} is no text in UTF-8, so no log; give a run's folder, or a log with {listed}") from error
    if text.startswith(NOTE_MARK):
        note = text.splitlines()[0].removeprefix(NOTE_MARK).strip()
        raise LogError(f"{path} is marked: {note}; finish the run that it is of, and give that")
    lines = {n: line.split("\t") for n, line in enumerate(text.splitlines(), start=1) if line.strip()}
    head = next(iter(lines), 0)
    header = [name.strip() for name in lines.pop(head, [])]
    if missing := [name for name in COLUMNS if name not in header]:
        raise LogError(
            f"{path} has no column {', '.join(missing)}; a log has the tab-separated columns {listed}, and may have "
            f"{TIME_COLUMN}"
        )
    if twice := [name for name in header if header.count(name) > 1]:
        raise LogError(f"{path} has two columns {twice[0]}; leave one out")
    if not lines:
        raise LogError(f"{path} has no rows; give the log of a finished certification")
    for number, line in lines.items():
        if len(line) != len(header):
            raise LogError(f"{path}, line {number}: {len(line)} cells where the header has {len(header)}; mend the log")
    return {number: dict(zip(header, map(str.strip, line), strict=True)) for number, line in lines.items()}


def _row(cells: dict[str, str], where: str) -> LogRow:
    predict = _cell(cells, "predict", int, "a class, or -1 for an abstention", where)
    return LogRow(
        index=_cell(cells, "idx", _count, "a place in the data, counted from 0", where),
        label=_cell(cells, "label", _count, "a class, counted from 0", where),
        predicted=predict if predict >= 0 else None,
        radius=_cell(cells, "radius", _finite, "a radius", where),
        seconds=_cell(cells, TIME_COLUMN, seconds_of, "a time as H:MM:SS.ffffff or in seconds", where)
        if cells.get(TIME_COLUMN)
        else None,
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
    """Seconds of a time as Python writes it: `H:MM:SS`, with or without a fraction or days; or a number of seconds."""
    match = TIME.fullmatch(text)
    if not match:
        return _finite(text)
    days, hours, minutes, seconds = match.groups(default="0")
    time = timedelta(days=int(days), hours=int(hours), minutes=int(minutes), seconds=float(seconds))
    return time.total_seconds()


def _remark_on_correct(column: Mapping[int, str], rows: Mapping[int, LogRow], path: UPath) -> str | None:
    """None where `correct` fits every row; else what it holds instead. Both are by line.

    Raises:
        LogError: it fits neither the rows nor a running count or accuracy of them.
    """
    right = [row.right for row in rows.values()]
    wrong_at = next((line for line, text in column.items() if not _shows(text, rows[line].right)), None)
    if wrong_at is None:
        return None
    counts = list(accumulate(map(int, right)))
    shares = [count / number for number, count in enumerate(counts, start=1)]
    running: dict[str, Sequence[float]] = {
        "count of right rows": counts,
        "accuracy": shares,
        "accuracy in percent": [100 * share for share in shares],
    }
    row, where = rows[wrong_at], f"line {wrong_at}"
    for what, values in running.items():
        if all(_shows(text, value) for text, value in zip(column.values(), values, strict=True)):
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
