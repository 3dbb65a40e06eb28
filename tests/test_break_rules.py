"""The program that breaks the rules S1 to S9 still fits the code that it breaks; running it takes too long here."""

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.bench.break_rules import BREAKAGES, Breakage

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("breakage", BREAKAGES, ids=lambda breakage: breakage.how)
def test_a_breakage_fits_the_code_and_names_a_test(breakage: Breakage) -> None:
    assert (ROOT / breakage.file).read_text().count(breakage.sound) == 1
    path, _, name = breakage.test.partition("::")
    assert f"def {name.partition('[')[0]}" in (ROOT / "tests" / path).read_text()


def test_broken_code_runs_so_that_its_test_fails_for_the_rule(tmp_path: Path) -> None:
    for number, breakage in enumerate(BREAKAGES):
        sound = (ROOT / breakage.file).read_text()
        (tmp_path / f"{number}-sound.py").write_text(sound)
        (tmp_path / f"{number}-broken.py").write_text(sound.replace(breakage.sound, breakage.broken))
    command = [
        sys.executable,
        "-m",
        "ruff",
        "check",
        "--isolated",
        "--select=F821",
        "--output-format=json",
        str(tmp_path),
    ]
    faults = json.loads(subprocess.run(command, capture_output=True, text=True).stdout)
    seen = Counter((Path(fault["filename"]).name, fault["message"]) for fault in faults)
    for number, breakage in enumerate(BREAKAGES):
        names = {
            kind: {message: count for (name, message), count in seen.items() if name == f"{number}-{kind}.py"}
            for kind in ("sound", "broken")
        }
        assert names["broken"] == names["sound"], breakage.how


def test_the_documentation_counts_them() -> None:
    (number,) = re.findall(r"in (\d+) ways", (ROOT / "docs/soundness.md").read_text())
    assert int(number) == len(BREAKAGES)
