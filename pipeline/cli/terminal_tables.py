"""Tables on the terminal."""

import sys

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from pipeline.report.tables import Table

WIDTH_OF_A_FILE = 140
BESIDE_A_CELL = 3  # a border and two spaces


def print_table(table: Table) -> None:
    """Prints as many columns as the terminal allows; the last ones, if they do not fit, are named below."""
    console = Console(width=None if sys.stdout.isatty() else WIDTH_OF_A_FILE)
    shown = columns_that_fit(table, console.width)
    console.print(drawn(table, shown))
    if left_out := table.header[shown:]:
        console.print(Text(f"left out of {console.width} columns: {', '.join(left_out)}"))


def drawn(table: Table, columns: int) -> RichTable:
    """Names to the left, numbers to the right; what a cell says is never taken for markup."""
    shown = RichTable(title=Text(table.caption))
    for index, name in enumerate(table.header[:columns]):
        left = index < table.names
        shown.add_column(Text(name), justify="left" if left else "right", overflow="fold")
    for row in table.rows:
        shown.add_row(*map(Text, row[:columns]))
    return shown


def columns_that_fit(table: Table, width: int) -> int:
    """How many columns may stand beside each other so that no word is broken; at least the names.

    The last columns of a table are of the least interest: of a report, what it cost.
    """
    needed, fit = 1, 0
    for index, name in enumerate(table.header):
        cells = [name, *(row[index] for row in table.rows)]
        needed += BESIDE_A_CELL + max(len(word) for cell in cells for word in [*cell.split(), ""])
        if needed <= width or index < table.names:
            fit = index + 1
        else:
            break
    return fit
