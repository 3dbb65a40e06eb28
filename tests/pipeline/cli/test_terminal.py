"""What fits a terminal, and a run that is watched."""

import io
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from pipeline.cli.terminal_tables import drawn, widths_that_fit
from pipeline.report.tables import Table
from tests.support.commands import ndc
from tests.support.finished_runs import finished_run

COSTS = ["average radius", "abstained", "votes per image", "evaluations per image"]
REPORT = Table(
    "Certified accuracy",
    ["sigma", "r = 0", "r = 0.25", "r = 0.5", *COSTS],
    [
        ["0.25", "98.5 %", "97.5 %", "93.5 %", "0.369", "0 of 200", "725", "7,368"],
        ["best per radius, chosen on this data", "99.5 %", "98.5 %", "95.5 %", "", "", "", ""],
    ],
    names=1,
)


def lines_of(table: Table, width: int) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=width).print(drawn(table, widths_that_fit(table, width)))
    return out.getvalue().splitlines()


def test_eighty_columns_show_every_radius_and_drop_costs_first() -> None:
    text = "\n".join(lines_of(REPORT, 80))
    assert all(share in text for share in ("98.5 %", "97.5 %", "93.5 %", "99.5 %"))
    shown = [len(widths_that_fit(REPORT, width)) for width in (60, 80, 200)]
    assert shown[0] < shown[1] <= shown[2] == 8


words = st.text("abcdefg0123456789", min_size=1, max_size=9)
cells = st.lists(words, min_size=0, max_size=3).map(" ".join)


def tables(columns: int) -> st.SearchStrategy[list[list[str]]]:
    return st.lists(st.lists(cells, min_size=columns, max_size=columns), min_size=2, max_size=4)


@given(st.integers(30, 120), st.integers(1, 6).flatmap(tables))
def test_no_word_is_broken(width: int, rows: list[list[str]]) -> None:
    table = Table("", rows[0], rows[1:], names=1)
    shown = len(widths_that_fit(table, width))
    assert 1 <= shown <= len(rows[0])
    lines = lines_of(table, width)
    assert all(len(line) <= width for line in lines)
    printed = set(re.findall(r"\w+", "\n".join(lines)))
    assert {word for row in rows for cell in row[:shown] for word in cell.split()} <= printed


def test_names_that_are_too_wide_by_themselves_are_broken_rather_than_cut() -> None:
    table = Table("", ["unit", "error"], [["u" * 50, "e" * 50]], names=2)
    text = "".join(lines_of(table, 40))
    assert text.count("u") == 50 + len("unit".replace("nit", ""))
    assert text.count("e") == 50 + 1


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(tmp_path_factory.mktemp("runs") / "run", {0.25: [40, 40, 30, 40]})


def test_a_complete_run_is_watched_once_in_place_on_a_terminal_and_plainly_elsewhere(run: Path) -> None:
    words = ["status", str(run), "--watch"]
    plain = ndc(*words)
    assert plain.returncode == 0
    assert "complete" in plain.stdout
    assert "\x1b" not in plain.stdout
    ours, theirs = pty.openpty()
    watching = subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", *words],
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm"},
    )
    assert watching.wait(timeout=60) == 0
    os.close(theirs)
    assert b"complete" in os.read(ours, 65536)
    os.close(ours)
    assert json.loads(ndc(*words, "--json").stdout)["to_decide"]
