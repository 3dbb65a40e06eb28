from pathlib import Path

import pytest

from pipeline.datasets import DatasetSpec
from pipeline.locations import location
from pipeline.report import Report, summarise
from pipeline.tracking import Tracker, TrackingError, curve_points, flatten
from tests.test_report import ITEMS

LAW = {"seed": 0, "votes": {"selection": 10}, "dataset": {"sha256": "ab" * 32}}


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


def tracker(folder: str = "runs/a", fingerprint: str = "f") -> Tracker:
    data = DatasetSpec("digits")
    return Tracker(experiment="ndc", folder=location(folder), law=LAW, fingerprint=fingerprint, data=data)


def finish(found: Tracker, folder: Path) -> None:
    artifact = location(folder / "table.md")
    artifact.write_text("table")
    levels = {"0.25": ITEMS}
    found.finish(Report(summarise(levels, alpha=0.001, radii=(0.0, 0.25)), levels, location(folder)), [artifact])


def test_a_run_has_parameters_scalars_curve_artifacts_and_the_datas_digest(workplace: Path) -> None:
    found = tracker()
    finish(found, workplace)
    client = found.client
    run = client.get_run(found.run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "a"
    assert run.data.params["votes.selection"] == "10"
    assert run.data.metrics["cert_sigma_0.25/r_0.25"] == 0.5
    assert run.data.metrics["summary/abstained_sigma_0.25"] == 1
    assert run.inputs.dataset_inputs[0].dataset.digest == ("ab" * 32)[:32]
    assert [artifact.path for artifact in client.list_artifacts(found.run_id)] == ["table.md"]
    curve = client.get_metric_history(found.run_id, "curve/certified_sigma_0.25")
    assert {point.step: point.value for point in curve}[250] == 0.5
    assert (workplace / "mlflow.db").is_file()


def test_a_resumed_run_continues_its_mlflow_run_and_logs_its_curve_once(workplace: Path) -> None:
    first = tracker()
    first.stopped(failed=False)
    second = tracker()
    assert second.run_id == first.run_id
    finish(second, workplace)
    finish(tracker(), workplace)
    history = second.client.get_metric_history(first.run_id, "curve/certified_sigma_0.25")
    assert len({point.step for point in history}) == len(history)


def test_another_folder_or_law_is_another_run(workplace: Path) -> None:
    assert len({found.run_id for found in (tracker(), tracker("runs/b"), tracker(fingerprint="g"))}) == 3


def test_the_link_opens_on_charts_and_says_how_to_serve_it(workplace: Path) -> None:
    found = tracker()
    assert found.link.startswith("http://127.0.0.1:5000/#/experiments/")
    assert found.link.endswith("compareRunsMode=CHART")
    assert found.how_to_open == f"mlflow ui --backend-store-uri sqlite:///{workplace}/mlflow.db"


def test_a_server_that_does_not_answer_is_an_error_at_once(workplace: Path, monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(TrackingError, match=r"does not answer.*unset MLFLOW_TRACKING_URI"):
        tracker()


def test_names_are_flattened_with_dots_and_curves_have_integer_steps() -> None:
    assert flatten({"a": {"b": 1, "c": {"d": "x"}}, "e": [1]}) == {"a.b": "1", "a.c.d": "x", "e": "[1]"}
    points = curve_points({"0.25": ITEMS})
    assert all(isinstance(step, int) for _, step, _ in points)
    assert points[-1][2] == 0.0
