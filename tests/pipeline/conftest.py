from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fake_hub import FakeHub, fake_hub, led_to


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FakeHub]:
    """An empty hub, to which this process is led, and an empty cache."""
    with fake_hub() as hub, led_to(hub, tmp_path / "hub-cache"):
        yield hub
