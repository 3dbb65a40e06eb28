"""Data that users' functions give: the same images as through any format, and every wrong answer named."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.data.datasets import DatasetSpec, examples_of, source_of
from pipeline.data.source import DataError
from pipeline.declaration.declaration import DeclarationChangedError
from pipeline.driver.prepare import prepare
from pipeline.driver.verify import verify_run
from pipeline.locations import location
from pipeline.named_functions import FunctionError
from tests.support.commands import ndc
from tests.support.plugged_in import Write, users_folder
from tests.support.small_runs import computed, declared, small_config

PAGE = Path(__file__).parents[3] / "docs/data.md"
DIGITS = """
from pipeline.data.digits import digit_arrays

def held_out(split):
    images, labels = digit_arrays()
    rows = slice(1297, None) if split == "test" else slice(1297)
    return images[rows].transpose(0, 2, 3, 1), labels[rows], [*"0123456789"]
"""


@pytest.fixture
def write(workplace_without_ray: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    with users_folder(workplace_without_ray) as write:
        yield write


def images_of(name: str, **chosen: object) -> list[tuple[str, int, tuple[int, ...], int]]:
    spec = DatasetSpec(name, **chosen)  # type: ignore[arg-type]
    examples = examples_of(spec, source_of(spec), channels=3, corrupt=[])
    return [(e.image_id, e.label, e.image.shape, int(e.image[0, 0, 0])) for e in examples]


def test_images_labels_and_names_come_through_and_are_chosen_as_from_any_data(write: Write) -> None:
    write("mine.py", """
import numpy as np
def data(split):
    images = np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1) + np.zeros((5, 2, 4, 3), np.uint8)
    return images + (split == "train") * np.uint8(100), np.arange(5) % 3, ["ant", "bee", "cat"]
def planes(split):
    images, labels, _ = data(split)
    return images.transpose(0, 3, 1, 2), list(labels)
def grey(split):
    images, labels, _ = data(split)
    return images[..., 0], labels, None
""")  # fmt: skip
    rows = [(f"data-{row:08d}", row % 3, (3, 2, 4), row) for row in range(5)]
    assert images_of("mine:data") == rows
    assert images_of("mine:data", offset=1, every=2) == rows[1::2]
    assert images_of("mine:data", split="train")[2] == ("data-00000002", 2, (3, 2, 4), 102)
    assert source_of(DatasetSpec("mine:data")).class_names == ("ant", "bee", "cat")
    reordered = images_of("mine:data", classes=("cat", "bee", "ant"))
    assert [label for _, label, _, _ in reordered] == [2, 1, 0, 2, 1]
    for other in ("planes", "grey"):
        assert [row[1:] for row in images_of(f"mine:{other}")] == [row[1:] for row in rows]
        assert source_of(DatasetSpec(f"mine:{other}")).class_names is None


WRONG = {
    "[1]": "mine:data gives a list; it must return images",
    "1, 2, 3, 4": "gives a tuple of 4",
    "np.zeros((2, 4, 4, 3)), [0, 1]": r"images that mine:data gives is float64 \(2, 4, 4, 3\); images must be uint8",
    "np.zeros((2, 4, 4, 2), 'u1'), [0, 1]": "exactly one axis can be the 1 or 3 channels",
    "np.zeros((2, 4, 4, 3), 'u1'), [0, 1, 2]": r"gives int64 \(3,\) as labels; it must give one integer for each of 2",
    "np.zeros((2, 4, 4, 3), 'u1'), [0.0, 1.0]": "gives float64",
    "np.zeros((2, 4, 4, 3), 'u1'), [0, 1], 'ab'": "gives 'ab' as class names; it must give a list of strings",
    "np.zeros((2, 4, 4, 3), 'u1'), [0, 1], [0, 1]": "as class names",
    "np.zeros((2, 4, 4, 3), 'u1'), [0, -1]": "data-00000001 has the label -1; labels must be integers from 0 on",
}


@pytest.mark.parametrize("given", WRONG)
def test_a_wrong_answer_says_what_is_wanted(write: Write, given: str) -> None:
    write("mine.py", f"import numpy as np\ndef data(split):\n    return {given}\n")
    with pytest.raises(DataError, match=WRONG[given]):
        images_of("mine:data")


def test_a_function_that_takes_no_split_is_named(write: Write) -> None:
    write("mine.py", "def data():\n    return 1\n")
    with pytest.raises(FunctionError, match=r"mine:data\('test'\) fails with TypeError"):
        source_of(DatasetSpec("mine:data"))


def test_a_run_declares_what_the_function_gave_and_keeps_the_hash_of_its_source(write: Write, tiny_model: Path) -> None:
    write("mine.py", DIGITS)
    config = small_config(tiny_model, "dataset.name=mine:held_out", "tracking=none")
    store = computed(config, Path("run"))
    run = prepare(config, location("run"))
    assert any("mine:held_out is run as a program, of 1 Python file (mine.py)" in line for line in run.remarks)
    assert not any("--format" in line for line in run.remarks)
    kept = store.manifest()["data"]
    assert kept["classes"] == [*"0123456789"]
    verify_run(store.folder, redraw=1, say=lambda line: None)
    write("mine.py", DIGITS + "# a remark\n")
    assert declared(config, Path("run")).growth is None  # the same images
    write("mine.py", DIGITS.replace("return images", "return 255 - images"))
    with pytest.raises(DeclarationChangedError, match="the data changed since the run was declared"):
        prepare(config, location("run"))
    write("mine.py", DIGITS)
    assert json.loads((store.folder / "run.json").read_text())["data"]["source_sha256"] == kept["source_sha256"]


def test_the_data_of_the_page_are_learned(write: Write) -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), flags=re.DOTALL | re.MULTILINE)
    write("mydata.py", block)
    few = "--preset", "small", "--steps", "5", "--batch", "32", "--channels", "8", "--tracking", "none"
    done = ndc("train", "mydata:blobs", *few, "--out", "model")
    assert done.returncode == 0, done.stderr
    assert "0 = dark, 1 = bright" in done.stdout
    assert {label for _, label, _, _ in images_of("mydata:blobs", limit=20)} == {0, 1}
