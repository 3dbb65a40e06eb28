"""What some machines lack or have: affinities, quotas, other versions of Python."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ndc_core import cores
from ndc_core.cores import usable_cores
from pipeline.workers.memory import keep_freed_memory

ROOT = Path(__file__).parent.parent
OLDEST = (3, 11)  # as pyproject.toml says
# What macOS lacks in `os` and `signal`, and the files that guard against it.
GUARDED = {"sched_getaffinity": {"ndc_core/cores.py"}}
# The processor's name and a process's memory: each has another source where the file is missing.
READS_IF_THERE = {"pipeline/workers/device_record.py", "pipeline/workers/usage.py"}
LINUX_ONLY = {"sched_getaffinity", "sched_setaffinity", "memfd_create", "posix_fallocate", "pidfd_open", "sigtimedwait"}
SOURCES = sorted(path for folder in ("ndc_core", "pipeline", "docs") for path in (ROOT / folder).rglob("*.py"))


def test_cores_are_counted_where_there_are_no_affinities(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cores, "QUOTA", tmp_path / "cpu.max")
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    assert usable_cores() == 12
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cores() == 1


@pytest.mark.parametrize(
    ("quota", "count"),
    [("max 100000", 64), ("200000 100000", 2), ("50000 100000", 1), ("9900000 100000", 64), ("", 64)],
)
def test_a_containers_quota_bounds_the_cores(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, quota: str, count: int
) -> None:
    monkeypatch.setattr(cores, "QUOTA", tmp_path / "cpu.max")
    (tmp_path / "cpu.max").write_text(f"{quota}\n")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)), raising=False)
    assert usable_cores() == count


def test_another_c_library_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    keep_freed_memory()


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_sources_need_no_newer_python_and_nothing_that_only_linux_has(path: Path) -> None:
    tree, relative = ast.parse(path.read_text(), feature_version=OLDEST), str(path.relative_to(ROOT))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in LINUX_ONLY:
            assert relative in GUARDED.get(node.attr, set()), f"{relative}:{node.lineno}: os.{node.attr}"
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and node.value.startswith(("/proc/", "/dev/shm"))
            and relative not in READS_IF_THERE
        ):
            pytest.fail(f"{relative}:{node.lineno}: {node.value} is Linux's")


VERSIONS = ("3.12", "3.13")
# Modules that need only the standard library: they run under another Python without an installation.
ALONE = [
    "side_channel",
    "report.mlflow_address",
    "workers.memory",
    "workers.ray_address",
    "workers.signals",
    "workers.watchdog",
]
OTHER_PYTHON = """
import ast, importlib, importlib.util, pathlib, sys
root, known, *alone = sys.argv[1:]
folders = [pathlib.Path(root, name) for name in ("ndc_core", "pipeline", "docs", "tests")]
for path in [path for folder in folders for path in folder.rglob("*.py")]:
    tree = compile(path.read_text(), str(path), "exec", ast.PyCF_ONLY_AST)
    compile(tree, str(path), "exec")
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
        for name in names:
            if name.partition(".")[0] in known.split(","):
                assert importlib.util.find_spec(name), f"{path}: {name} is gone"
sys.path.insert(0, root)
for name in alone:
    importlib.import_module(f"pipeline.{name}")
print(*sys.version_info[:2], sep=".")
"""


def interpreter(version: str) -> str:
    """A Python of that version on this machine."""
    kept = sorted(Path("~/.pyenv/versions").expanduser().glob(f"{version}.*/bin/python3"))
    for candidate in [*map(str, kept), shutil.which(f"python{version}") or ""]:
        if candidate and subprocess.run([candidate, "-c", ""], capture_output=True).returncode == 0:
            return candidate
    pytest.skip(f"no Python {version} on this machine")


@pytest.mark.parametrize("version", VERSIONS)
def test_sources_compile_without_a_warning_under_newer_pythons_here(version: str) -> None:
    known = ",".join(sorted(sys.stdlib_module_names))
    command = [interpreter(version), "-W", "error", "-B", "-c", OTHER_PYTHON, str(ROOT), known, *ALONE]
    done = subprocess.run(command, capture_output=True, text=True, env={"HOME": os.environ.get("HOME", "/")})
    assert done.stdout.strip() == version, done.stderr
