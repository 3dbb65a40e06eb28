"""Modules as users write them, in a folder that is the current one."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.named_functions import named_function

Write = Callable[[str, str], None]


@contextmanager
def users_folder(folder: Path) -> Iterator[Write]:
    """Writes modules into a folder; what was imported from there is forgotten at each change and at the end, as a
    process of its own would not know it."""
    before, tops = list(sys.path), set[str]()

    def write(name: str, text: str) -> None:
        path = folder / name
        tops.add(Path(name).parts[0].removesuffix(".py"))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        forget()

    def forget() -> None:
        named_function.cache_clear()
        for name in [name for name in sys.modules if name.partition(".")[0] in tops]:
            del sys.modules[name]

    try:
        yield write
    finally:
        forget()
        sys.path[:] = before
