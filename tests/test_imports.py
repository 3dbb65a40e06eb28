"""Imports go one way: cli -> run -> stages -> ndc_core, and each big library has one home."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# A module may import only from lines above its own.
ORDER = [
    {"ndc_core"},
    {"names"},
    {
        "locations",
        "memory",
        "methods",
        "decoding",
        "devices",
        "journal",
        "tables",
        "cores",
        "deaf",
        "ray_address",
        "side_channel",
    },
    {"entries", "lease", "run_log", "logs", "console", "tracking_address"},
    {"archives", "classes", "parquet"},
    {"arrays"},
    {"cifar"},
    {"readers"},
    {"datasets"},
    {"config"},
    {"sweep_file"},
    {"models", "units", "law", "images", "pools"},
    {"evidence"},
    {"store"},
    {"waves"},
    {"votes", "reduce", "sharing"},
    {"chance", "curves"},
    {"redraw", "cluster", "figures", "gallery", "progress", "measure", "tracked_votes"},
    {"page", "sweep_figure"},
    {"attackers", "report", "status", "train", "diagnosis_figures"},
    {"logged"},
    {"tracking", "distill", "diagnose", "image_classifiers"},
    {"services"},
    {"comparison"},
    {"contenders"},
    {"same_images", "remarks"},
    {"compare"},
    {"prepare"},
    {"run"},
    {"attack", "verify", "plan", "sweep_results"},
    {"sweep"},
    {"cli_models"},
    {"cli"},
]
HOMES = {
    "ray": {"pipeline/cluster.py"},
    "mlflow": {"pipeline/tracking.py"},
    "click": {"pipeline/cli.py", "pipeline/cli_models.py"},
    "pyarrow": {
        "pipeline/cluster.py",  # Ray Data's blocks are its tables
        "pipeline/store.py",
        "pipeline/evidence.py",
        "pipeline/images.py",
        "pipeline/parquet.py",
    },
    "PIL": {"pipeline/decoding.py"},
    "fsspec": set(),
    "s3fs": set(),
    "filelock": {"pipeline/lease.py", "pipeline/tracking.py", "pipeline/models.py"},
    "jinja2": {"pipeline/page.py"},
    "timm": {"pipeline/image_classifiers.py"},
    "triton": {"ndc_core/networks/fused_kernels.py"},
}


def imports_of(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def rank(module: str) -> int:
    package, _, rest = module.partition(".")
    name = package if package == "ndc_core" else rest.partition(".")[0]
    return next(index for index, names in enumerate(ORDER) if name in names)


SOURCES = sorted([*(ROOT / "ndc_core").rglob("*.py"), *(ROOT / "pipeline").rglob("*.py")])


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    relative = path.relative_to(ROOT)
    own = ".".join(relative.with_suffix("").parts)
    for module in imports_of(path):
        root = module.partition(".")[0]
        if root == "ndc_core" and relative.parts[0] == "ndc_core":
            continue
        if root in ("ndc_core", "pipeline"):
            assert rank(module) < rank(own), f"{relative} imports {module}, which is not below it"
        if root in HOMES:
            assert str(relative) in HOMES[root], f"{relative} imports {root}, whose home is {HOMES[root]}"


def test_the_core_imports_no_files_formats_or_services() -> None:
    allowed = {"torch", "numpy", "scipy", "safetensors", "jaxtyping", "ndc_core", "triton"}
    allowed |= set(sys.stdlib_module_names)
    for path in (ROOT / "ndc_core").rglob("*.py"):
        assert {module.partition(".")[0] for module in imports_of(path)} <= allowed, path


def test_the_command_answers_before_it_imports_anything_heavy() -> None:
    script = (
        "import sys, pipeline.cli; print(sorted({'torch', 'ray', 'mlflow', 'scipy', 'matplotlib'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
