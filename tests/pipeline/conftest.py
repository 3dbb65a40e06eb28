"""What runs do around their votes is tested without the figure of each report, which takes as long as the votes."""

from pathlib import Path

import pytest

from pipeline.report import figures

WITHOUT_FIGURES = {"certificates", "driver", "store", "workers"}
PICTURE = figures.Picture(svg="<svg xmlns='http://www.w3.org/2000/svg'/>", png=b"")


@pytest.fixture(autouse=True)
def placeholder_for_figures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if Path(request.path).parent.name in WITHOUT_FIGURES:
        monkeypatch.setattr("pipeline.report.report.certified_accuracy_figure", lambda curves, note="": PICTURE)
