"""What users plug in: a function named `package.module:function`, and the Python files that it is made of.

Naming one runs it: it is a program, as this one is.
"""

import ast
import hashlib
import importlib
import re
import socket
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

NAMED = re.compile(r"((?:[^\W\d]\w*\.)*[^\W\d]\w*):([^\W\d]\w*)")
FILES_NAMED = 4
OWN = ("ndc_core", "pipeline")  # whose meaning for votes has a version of its own


class FunctionError(ValueError):
    """A function that cannot be imported or called: what, where, remedy."""


@dataclass(frozen=True)
class NamedFunction:
    """`files` are covered by `sha256`: their names, relative to where Python found the first, and their content."""

    name: str
    call: Callable[..., Any]
    files: tuple[str, ...]
    sha256: str

    @property
    def source(self) -> str:
        """The files, for people."""
        few = ", ".join(self.files[:FILES_NAMED]) + (", ..." if len(self.files) > FILES_NAMED else "")
        return f"{len(self.files):,} Python file{'s' * (len(self.files) > 1)} ({few}), SHA-256 {self.sha256[:12]}"


def is_function(where: str) -> bool:
    """Whether a name of a model or of data means a function. A path with a colon in it must begin with `./` or `/`."""
    return NAMED.fullmatch(where) is not None


@cache  # a process imports a module once: the digest is that of what runs, whatever happens to the files meanwhile
def named_function(where: str) -> NamedFunction:
    """Imports a function from wherever Python finds its module: installed, sent along with a job, or here.

    Raises:
        FunctionError: there is no such module or function on this node, or importing it fails.
    """
    named = NAMED.fullmatch(where)
    assert named is not None
    module_name, name = named.groups()
    _look_here_too()
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # whatever the module does when it is imported; a script may exit
        raise FunctionError(f"{where}: {_why(module_name, error)}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise FunctionError(f"{where}: {getattr(module, '__file__', module_name)} has no function {name}")
    contents = dict(_sources(module_name))
    if not contents:
        raise FunctionError(f"{where}: {module_name} has no Python source; name a function of a module that has")
    digest = hashlib.sha256()
    for path, content in sorted(contents.items()):
        digest.update(f"{path}\n{len(content)}\n".encode() + content)
    return NamedFunction(where, function, tuple(sorted(contents)), digest.hexdigest())


def called(where: str, *arguments: Any) -> Any:
    """What the function gives.

    Raises:
        FunctionError: see `named_function`; or the call fails.
    """
    function = named_function(where)
    try:
        return function.call(*arguments)
    except Exception as error:  # whatever the function does
        shown = ", ".join(map(repr, arguments))
        raise FunctionError(f"{where}({shown}) fails with {_first_line(error)}") from error


def _look_here_too() -> None:
    """The `ndc` command does not look in the current folder as `python -m` does; last, so that it hides nothing."""
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)
    importlib.invalidate_caches()


def _why(module_name: str, error: BaseException) -> str:
    if not isinstance(error, ModuleNotFoundError) or not f"{module_name}.".startswith(f"{error.name}."):
        return f"importing {module_name} fails with {_first_line(error)}"
    return (
        f"there is no module {error.name} on {socket.gethostname()}; run ndc in the folder that it lies in, install "
        "it, or send it to a cluster's nodes with `ray job submit --working-dir FOLDER`"
    )


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"


# Files


def _sources(module_name: str) -> Iterator[tuple[str, bytes]]:
    """The Python files of the package that a module is in, or its own file; and the same of whatever lies beside it
    that these import. What is installed is a library: only the package itself counts."""
    top = module_name.partition(".")[0]
    root = _root(sys.modules[top])
    if root is None:
        return
    installed = {Path(path).resolve() for path in sysconfig.get_paths().values()}
    waiting, seen = [top], set(OWN) - {top}
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        for path in _files_of(root, name):
            content = path.read_bytes()
            yield path.relative_to(root).as_posix(), content
            if root not in installed:
                waiting += _imported_by(content)


def _root(module: Any) -> Path | None:
    """The folder in which Python found a top-level module or package."""
    places = list(getattr(module, "__path__", ())) or [getattr(module, "__file__", None)]
    return Path(places[0]).resolve().parent if places[0] else None


def _files_of(root: Path, name: str) -> list[Path]:
    folder, file = root / name, root / f"{name}.py"
    if folder.is_dir():
        below = (path for path in folder.rglob("*.py") if path.is_file())
        return sorted(path for path in below if not any(part[0] == "." for part in path.relative_to(folder).parts))
    return [file] if file.is_file() else []


def _imported_by(content: bytes) -> Iterator[str]:
    """The first names of all absolute imports; none of a file that is not current Python."""
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]
