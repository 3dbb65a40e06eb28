"""A function by its name: found, called, and known by the Python files that it is made of."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.named_functions import FunctionError, called, is_function, named_function
from tests.support.plugged_in import Write, users_folder


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # or a file changed within a second would not be seen
    with users_folder(tmp_path) as write:
        yield write


def test_functions_are_told_from_paths_and_addresses() -> None:
    for function in ("mine:build", "package.inner.mine:build", "µ:bäume"):
        assert is_function(function)
    for other in (
        "models/digits",
        "s3://bucket/model",
        "hf://org/name",
        "./a:b",
        "/a:b",
        "a:b/c",
        "a.b",
        "a:",
    ):
        assert not is_function(other)


def test_a_function_of_the_current_folder_is_called(write: Write) -> None:
    write("mine.py", "def add(first, second=1):\n    return first + second\n")
    assert called("mine:add", 4) == 5
    assert named_function("mine:add").files == ("mine.py",)
    assert named_function("mine:add").source.startswith("1 Python file (mine.py), SHA-256 ")


def test_the_digest_covers_the_package_and_what_lies_beside_it_and_is_imported(write: Write) -> None:
    files = {
        "package/__init__.py": "",
        "package/inner/mine.py": "import helper\ndef build(): return helper.ANSWER\n",
        "package/other.py": "",
        "package/.venv/hidden.py": "",
        "helper.py": "from far.away import ANSWER\nimport numpy, ndc_core, pipeline\n",
        "far/away.py": "ANSWER = 42\n",
        "unrelated.py": "",
        "numpy.txt": "",
    }
    for name, text in files.items():
        write(name, text)
    covered = ("far/away.py", "helper.py", "package/__init__.py", "package/inner/mine.py", "package/other.py")
    assert named_function("package.inner.mine:build").files == covered
    before = named_function("package.inner.mine:build").sha256
    for name in files:
        write(name, f"{files[name]}# changed\n")
        assert (named_function("package.inner.mine:build").sha256 != before) == (name in covered), name
        write(name, files[name])
        assert named_function("package.inner.mine:build").sha256 == before


def test_a_digest_does_not_depend_on_where_the_files_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digests = set()
    for place in ("here", "there/else"):
        (tmp_path / place).mkdir(parents=True)
        monkeypatch.chdir(tmp_path / place)
        with users_folder(tmp_path / place) as write:
            write("mine.py", "def build(): return 1\n")
            digests.add(named_function("mine:build").sha256)
    assert len(digests) == 1


def test_of_what_is_installed_only_the_package_itself_counts() -> None:
    files = named_function("safetensors.torch:save_file").files
    assert files
    assert all(name.startswith("safetensors/") for name in files)
    assert named_function("textwrap:dedent").files == ("textwrap.py",)


def test_code_that_ran_keeps_its_digest_when_the_file_changes(write: Write, tmp_path: Path) -> None:
    write("mine.py", "def build(): return 1\n")
    before = named_function("mine:build")
    (tmp_path / "mine.py").write_text("def build(): return 2\n")
    assert named_function("mine:build") == before
    assert called("mine:build") == 1


def test_every_way_to_fail_says_what_to_do(write: Write) -> None:
    write("mine.py", "import nothing_like_this\n")
    with pytest.raises(FunctionError, match="importing mine fails with ModuleNotFoundError: No module named"):
        named_function("mine:build")
    with pytest.raises(FunctionError, match=r"there is no module absent on .*; run ndc in .*--working-dir"):
        named_function("absent.mine:build")
    write("mine.py", "raise SystemExit(0)\n")
    with pytest.raises(FunctionError, match="importing mine fails with SystemExit: 0"):
        named_function("mine:build")
    write("mine.py", "build = 3\ndef broken():\n    raise KeyError('weights')\n")
    with pytest.raises(FunctionError, match=r"mine:build: .*mine.py has no function build"):
        named_function("mine:build")
    with pytest.raises(FunctionError, match=r"mine:broken\(\) fails with KeyError: 'weights'"):
        called("mine:broken")
    with pytest.raises(FunctionError, match=r"mine:broken\('test'\) fails with TypeError: .*takes 0 positional"):
        called("mine:broken", "test")
    with pytest.raises(FunctionError, match="sys has no Python source"):
        named_function("sys:exit")
