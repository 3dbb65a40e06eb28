"""What `pip install ndc` brings: every file of the packages, and commands that need no checkout."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("ndc_core", "pipeline")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, out], cwd=source, check=True, capture_output=True)
    (path,) = out.glob("*.whl")
    return path


def test_it_has_every_file_of_the_packages_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
    files = (path for name in PACKAGES for path in (ROOT / name).rglob("*") if path.is_file())
    tracked = {path.relative_to(ROOT).as_posix() for path in files if "__pycache__" not in path.parts}
    assert inside == tracked


def test_commands_run_from_it_alone(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    program = (
        "import sys, pipeline, ndc_core; from pipeline.cli import main\n"
        "print(pipeline.__path__[0], ndc_core.__path__[0]); main(sys.argv[1:])"
    )

    def ndc(*arguments: str) -> str:
        command = [sys.executable, "-c", program, *arguments]
        environment = {**os.environ, "PYTHONPATH": str(site)}
        return subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True).stdout

    places, *shown = ndc("presets", "show", "fast").splitlines()
    assert places.split() == [str(site / name) for name in reversed(PACKAGES)]
    assert shown == (ROOT / "pipeline/presets/fast.toml").read_text().splitlines()
    listed = ndc("presets")
    for preset in (ROOT / "pipeline/presets").glob("*.toml"):
        assert preset.stem in listed
