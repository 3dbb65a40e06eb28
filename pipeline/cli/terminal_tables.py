"""Tables on the terminal."""

import sys

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from pipeline.report.tables import Table

WIDTH_OF_A_FILE = 140


def print_table(table: Table) -> None:
    """Names to the left, numbers to the right; what a cell says is never taken for markup."""
    shown = RichTable(title=Text(table.caption))
    for index, name in enumerate(table.header):
        left = index < table.names
        shown.add_column(Text(name), justify="left" if left else "right", overflow="fold")
    for row in table.rows:
        shown.add_row(*map(Text, row))
    Console(width=None if sys.stdout.isatty() else WIDTH_OF_A_FILE).print(shown)
