"""Where the tests of formats store their images."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from upath import UPath


@pytest.fixture(params=["local", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[UPath]:
    folder = UPath(tmp_path) if request.param == "local" else UPath(f"memory://{uuid.uuid4().hex}")
    yield folder
    if request.param == "memory" and folder.fs.exists(folder.path):
        folder.fs.rm(folder.path, recursive=True)


@pytest.fixture
def here(tmp_path: Path) -> UPath:
    return UPath(tmp_path)
