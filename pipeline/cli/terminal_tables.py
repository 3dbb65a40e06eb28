"""Tables on the terminal."""

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from pipeline.report.tables import Table

WIDTH_OF_A_FILE = 140
BESIDE_A_CELL = 3  # a border and two spaces


def print_table(table: Table) -> None:
    """Prints as many columns as the terminal allows; the last ones, if they do not fit, are named below."""
    console = Console(width=None if sys.stdout.isatty() else WIDTH_OF_A_FILE)
    widths = widths_that_fit(table, console.width)
    console.print(drawn(table, widths))
    if left_out := table.header[len(widths) :]:
        console.print(Text(f"left out of {console.width} columns: {', '.join(left_out)}"))


def drawn(table: Table, widths: Sequence[int]) -> RichTable:
    """Names to the left, numbers to the right; what a cell says is never taken for markup."""
    shown = RichTable(title=Text(table.caption))
    for index, (name, width) in enumerate(zip(table.header, widths, strict=False)):
        left = index < table.names
        shown.add_column(Text(name), justify="left" if left else "right", overflow="fold", width=width)
    for row in table.rows:
        shown.add_row(*map(Text, row[: len(widths)]))
    return shown


def widths_that_fit(table: Table, width: int) -> list[int]:
    """Widths of as many columns as fit beside each other with no word and no number broken; at least of the names,
    which may be broken.

    The last columns of a table are of the least interest: in a report, the cost.
    """
    cells = [[name, *(row[index] for row in table.rows)] for index, name in enumerate(table.header)]
    pieces = [
        [*column[0].split(), *(column[1:] if index >= table.names else " ".join(column).split()), " "]
        for index, column in enumerate(cells)
    ]
    least = [max(map(len, column)) for column in pieces]
    fit = len(least)
    while fit > max(1, table.names) and _together(least[:fit]) > width:
        fit -= 1
    widths, left = least[:fit], width - _together(least[:fit])
    for index in range(fit):
        more = max(0, min(left, max(map(len, cells[index])) - widths[index]))
        widths[index] += more
        left -= more
    while (beyond := _together(widths) - width) > 0 and max(widths) > 1:  # names alone are too wide
        widest = widths.index(max(widths))
        widths[widest] = max(1, widths[widest] - beyond)
    return widths


def _together(widths: Sequence[int]) -> int:
    return 1 + sum(BESIDE_A_CELL + width for width in widths)
