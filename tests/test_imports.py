"""Imports go one way, between folders and between files, and each big library has one home."""

import ast
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from types import ModuleType

import pytest

import ndc_core
from tests.support.commands import environment
from tests.support.finished_runs import finished_run

ROOT = Path(__file__).parent.parent

# A folder or module may import only those on the lines above its own.
ORDER = [
    ["ndc_core.space", "ndc_core.cores"],
    ["ndc_core.untrusted_files", "ndc_core.noise", "ndc_core.models"],
    ["ndc_core.checkpoints", "ndc_core.classifiers", "ndc_core.certificates"],
    ["ndc_core.vote_requests"],
    ["ndc_core.conversion", "ndc_core.training", "ndc_core.voting", "ndc_core.images", "ndc_core.radius_curves"],
    ["ndc_core.image_votes"],
    ["ndc_core.certification", "ndc_core.analysis"],
    ["ndc_core.prediction"],
    ["ndc_core"],
    [
        "pipeline.file_names",
        "pipeline.hub",
        "pipeline.named_functions",
        "pipeline.near_names",
        "pipeline.program",
        "pipeline.side_channel",
    ],
    ["pipeline.locations", "pipeline.progress"],
    ["pipeline.data"],
    ["pipeline.declaration"],
    ["pipeline.store"],
    ["pipeline.certificates"],
    ["pipeline.workers", "pipeline.report"],
    ["pipeline.driver", "pipeline.compare", "pipeline.model_tools"],
    ["pipeline.sweep"],
    ["pipeline.cli"],
]
HOMES = {
    "ray": {f"pipeline/workers/ray_{name}.py" for name in ("cluster", "pool", "watch")},
    "mlflow": {"pipeline/report/mlflow_tracker.py"},
    "click": {
        f"pipeline/cli/{name}.py"
        for name in ("commands", "help_commands", "model_commands", "model_options", "options")
    },
    "pyarrow": {
        "pipeline/workers/ray_pool.py",  # Ray Data's blocks are its tables
        "pipeline/store/run_store.py",
        "pipeline/store/evidence.py",
        "pipeline/store/run_images.py",
        "pipeline/store/parquet_io.py",
        "pipeline/certificates/files.py",
        "pipeline/data/parquet.py",
    },
    "PIL": {"pipeline/data/decoding.py"},
    "fsspec": set(),
    "s3fs": set(),
    "filelock": {"pipeline/store/lease.py", "pipeline/report/mlflow_tracker.py", "pipeline/workers/models.py"},
    "jinja2": {"pipeline/report/pages.py"},
    "huggingface_hub": {"pipeline/hub.py"},
    "timm": {"pipeline/model_tools/convert_classifier.py"},
    "triton": {
        "ndc_core/models/networks/fused_kernels.py",
        "ndc_core/models/networks/fused_programs.py",
        "ndc_core/noise/counter_kernel.py",
    },
}


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


SOURCES = sorted([*(ROOT / "ndc_core").rglob("*.py"), *(ROOT / "pipeline").rglob("*.py")])
MODULES = {name_of(path): path for path in SOURCES}


def place_of(module: str) -> str:
    """The folder in ORDER that a module is in, or the module itself where it is in none."""
    return ".".join(module.split(".")[:2])


def rank(module: str) -> int:
    return next(index for index, places in enumerate(ORDER) if place_of(module) in places)


def own_imports_of(path: Path) -> set[str]:
    """The modules of this project that a file imports."""
    return {
        module
        for imported, name in names_imported_by(path)
        for module in [f"{imported}.{name}" if f"{imported}.{name}" in MODULES else imported]
        if module in MODULES
    }


def names_imported_by(path: Path) -> Iterator[tuple[str, str]]:
    """Of `from a import b`, (a, b); of `import a`, (a, "")."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ((node.module, alias.name) for alias in node.names)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    relative, own = str(path.relative_to(ROOT)), name_of(path)
    for module in own_imports_of(path):
        assert place_of(module) == place_of(own) or rank(module) < rank(own), f"{relative} imports {module}"
    for module, _ in names_imported_by(path):
        home = HOMES.get(module.partition(".")[0])
        assert home is None or relative in home, f"{relative} imports {module}, whose home is {home}"


def test_every_line_of_the_order_is_a_folder_or_a_module() -> None:
    assert {place for places in ORDER for place in places} == {place_of(module) for module in MODULES} - {"pipeline"}


PROGRAMS = [name_of(path) for folder in ("docs", "tests/bench") for path in sorted((ROOT / folder).glob("*.py"))]


@pytest.mark.parametrize("program", PROGRAMS)
def test_programs_for_pictures_and_measurements_find_all_their_imports(program: str) -> None:
    importlib.import_module(program)


def test_no_files_import_each_other_in_a_circle() -> None:
    graph = {name: own_imports_of(path) - {name} for name, path in MODULES.items()}
    assert list(TopologicalSorter(graph).static_order())  # a CycleError names the files


def test_the_core_imports_no_files_formats_or_services() -> None:
    allowed = {"torch", "numpy", "scipy", "safetensors", "jaxtyping", "ndc_core", "triton"}
    allowed |= set(sys.stdlib_module_names)
    for path in (ROOT / "ndc_core").rglob("*.py"):
        assert {module.partition(".")[0] for module, _ in names_imported_by(path)} <= allowed, path


def test_the_command_answers_before_it_imports_anything_heavy() -> None:
    script = (
        "import sys, pipeline.cli; print(sorted({'torch', 'ray', 'mlflow', 'scipy', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_run_is_watched_reported_and_compared_without_pytorch(tmp_path: Path) -> None:
    """Which takes three seconds to import; nothing but votes and their models needs it."""
    finished_run(tmp_path / "run", {0.25: [40, 40, 30, 40]}, "tracking='none'")
    script = """
import sys
from pipeline.cli import main
for command in (["status"], ["report"], ["compare", "--out", "compared"]):
    main([*command, "run"], standalone_mode=False)
    assert not {"torch", "ray", "mlflow"} & set(sys.modules), command
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ndc_core.__all__)
def test_a_name_of_the_library_is_a_thing_and_not_a_module(name: str) -> None:
    """A module of the same name would take its place when it is imported."""
    assert not isinstance(getattr(ndc_core, name), ModuleType)
    assert name in dir(ndc_core)
    assert importlib.util.find_spec(f"ndc_core.{name}") is None
