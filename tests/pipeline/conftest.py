"""What runs do around their votes is tested without the figure of each report, which takes as long as the votes."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.report.figures import Picture
from tests.support.fake_hub import FakeHub, fake_hub, led_to

WITHOUT_FIGURES = {"certificates", "driver", "store", "workers"}
PLACEHOLDER = Picture(svg="<svg xmlns='http://www.w3.org/2000/svg'/>", png=b"")


@pytest.fixture(autouse=True)
def placeholder_for_figures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if Path(request.path).parent.name in WITHOUT_FIGURES:
        monkeypatch.setattr("pipeline.report.report.certified_accuracy_figure", lambda curves, note="": PLACEHOLDER)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FakeHub]:
    """An empty hub, to which this process is led, and an empty cache."""
    with fake_hub() as hub, led_to(hub, tmp_path / "hub-cache"):
        yield hub
