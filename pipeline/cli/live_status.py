"""The state of a run on the terminal, once or as it changes."""

import json
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from pipeline.cli.terminal_tables import WIDTH_OF_A_FILE, drawn, widths_that_fit
from pipeline.driver.status import RunStatus, status_lines
from pipeline.report.tables import Table


def print_status(state: RunStatus, *, as_json: bool) -> None:
    console = _console()
    console.print(_shown(state, width=console.width, as_json=as_json), soft_wrap=True)


def watch_status(look: Callable[[], RunStatus], *, every_seconds: float, as_json: bool) -> None:
    """Shows the state until the run is complete: in place on a terminal, one state below the other elsewhere."""
    console = _console()
    if as_json or not console.is_terminal:
        while not _printed(look(), as_json=as_json).complete:
            time.sleep(every_seconds)
        return
    with Live(console=console, auto_refresh=False) as live:
        while True:
            state = look()
            live.update(_shown(state, width=console.width, as_json=False), refresh=True)
            if state.complete:
                return
            time.sleep(every_seconds)


def _printed(state: RunStatus, *, as_json: bool) -> RunStatus:
    print_status(state, as_json=as_json)
    return state


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else WIDTH_OF_A_FILE)


def _shown(state: RunStatus, *, width: int, as_json: bool) -> RenderableType:
    if as_json:
        return Text(json.dumps(state.as_json(), indent=2))
    lines = Text("\n".join(status_lines(state)))
    return Group(lines, _failures(state.failures, width=width)) if state.failures else lines


def _failures(failures: list[dict[str, Any]], *, width: int) -> RenderableType:
    title = f"{len(failures):,} units failed; `ndc certify RUN --retry-failed` tries them again"
    rows = [
        [
            failure["unit"],
            failure["error"],
            datetime.fromtimestamp(failure["failed_unix"], UTC).isoformat(" ", timespec="seconds"),
        ]
        for failure in failures
    ]
    table = Table(title, ["unit", "error", "when"], rows, names=3)
    return drawn(table, widths_that_fit(table, width))
