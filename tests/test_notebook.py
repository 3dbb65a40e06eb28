"""The notebook runs, it shows what its cells give, and its links work."""

import json
import re
from typing import Any

import pytest

from docs import notebook

LARGEST = 60_000  # bytes, pictures included
CELLS: list[dict[str, Any]] = json.loads(notebook.PAGE.read_text())["cells"]
CODE = [cell for cell in CELLS if cell["cell_type"] == "code"]


def texts(outputs: list[dict[str, Any]]) -> list[str]:
    """What is shown, without numbers, which may differ in a last digit or a vote on another machine."""
    lines = ["".join(output.get("text", output.get("data", {}).get("text/plain", "a picture"))) for output in outputs]
    return [re.sub(r"[\d.,]+", "#", line) for line in lines]


@pytest.fixture(scope="module")
def outputs() -> list[list[dict[str, Any]]]:
    return list(notebook.run(CELLS))


def test_the_notebook_shows_what_its_cells_give(outputs: list[list[dict[str, Any]]]) -> None:
    for cell, made in zip(CODE, outputs, strict=True):
        assert texts(cell["outputs"]) == texts(made), "".join(cell["source"])
    assert notebook.PAGE.stat().st_size < LARGEST


def test_its_classifier_is_right_and_certified(outputs: list[list[dict[str, Any]]]) -> None:
    shown = "\n".join("".join(output.get("data", {}).get("text/plain", ())) for made in outputs for output in made)
    right, images = re.search(r"'(\d+) of (\d+) right", shown).groups()
    assert int(right) >= 0.9 * int(images)
    assert [float(radius) > 0.2 for radius in re.findall(r"class 1 to radius ([\d.]+)", shown)] == [True, True]


def test_every_link_leads_to_a_page() -> None:
    text = "".join(line for cell in CELLS if cell["cell_type"] == "markdown" for line in cell["source"])
    targets = re.findall(r"\]\(([^)]+)\)", text)
    assert targets
    assert all((notebook.PAGE.parent / target).exists() for target in targets)
