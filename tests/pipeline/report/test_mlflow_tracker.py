import json
import shutil
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest
from upath import UPath

from pipeline.certificates.attack_results import Attacked
from pipeline.certificates.reduce import LARGEST
from pipeline.declaration.declaration import Declaration
from pipeline.declaration.toml_files import load_config
from pipeline.locations import location
from pipeline.program import commit
from pipeline.report import mlflow_tracker
from pipeline.report.mlflow_address import TrackingError
from pipeline.report.mlflow_tracker import CHARTS, Tracker, charts_link, check_tracking, link_of_run, serving_command
from pipeline.report.mlflow_values import (
    BEST_ROW,
    attacked_scalars,
    curve_points,
    description,
    flatten,
    model_tags,
    partial_scalars,
    scalars,
    table_of,
)
from pipeline.report.provenance import Provenance
from pipeline.report.report import Empirical, Report, summarise
from tests.pipeline.report.test_report import HALF, ITEMS

LAW = {
    "seed": 0,
    "votes": {"selection": 10},
    "dataset": {"sha256": "ab" * 32},
    "classifier": {"name": "denoise"},
    "certificate": {"method": "cohen", "alpha": 0.001},
    "sigma_pixel": [0.25, 0.5],
    "noise": "integer",
}
LEVELS = {"0.25": ITEMS, "0.5": HALF}


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


@pytest.fixture
def workplace(empty: Path, mlflow_database: Path) -> Path:
    """The same, with a database in it."""
    shutil.copy(mlflow_database, empty)
    return empty


OTHER_LAW = {**LAW, "seed": 9}


def tracker_of(folder: str = "runs/a", law: dict = LAW, **changes: str) -> Tracker:
    config = load_config("demo").model_copy(update=changes)
    return Tracker(config, folder=location(folder), declaration=Declaration(law))


def finish(tracker: Tracker, folder: Path) -> None:
    artifact = location(folder / "table.md")
    artifact.write_text("table")
    tracker.finish(report(folder), [artifact])


def report(folder: Path, empirical: Empirical | None = None) -> Report:
    summary = summarise(LEVELS, alpha=0.001, radii=(0.0, 0.25), empirical=empirical)
    return Report(summary, LEVELS, location(folder), Provenance((("Model", "models/my_model, small"),)))


def history(tracker: Tracker, metric: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in tracker.client.get_metric_history(tracker.run_id, metric)]


def test_a_run_has_parameters_scalars_curve_artifacts_and_the_datas_digest(workplace: Path) -> None:
    tracker = tracker_of()
    finish(tracker, workplace)
    client = tracker.client
    run = client.get_run(tracker.run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "denoise: a"
    assert run.data.params["votes.selection"] == "10"
    assert run.inputs.dataset_inputs[0].dataset.digest == ("ab" * 32)[:32]
    assert [artifact.path for artifact in client.list_artifacts(tracker.run_id)] == ["certified.json", "table.md"]
    assert dict(history(tracker, "curve/sigma_0.25"))[250] == 0.5
    assert (workplace / "mlflow.db").is_file()


def test_metrics_come_in_few_sections_and_name_no_method(workplace: Path) -> None:
    tracker = tracker_of()
    finish(tracker, workplace)
    metrics = tracker.client.get_run(tracker.run_id).data.metrics
    assert {name.partition("/")[0] for name in metrics} == {"cost", "curve", "radius", "sigma_0.25", "sigma_0.5"}
    assert {name for name in metrics if name.startswith("curve/")} == {
        "curve/best_sigma",
        "curve/sigma_0.25",
        "curve/sigma_0.5",
    }
    assert metrics["radius/0.25_best_sigma"] == 0.5
    assert metrics["cost/evaluations"] == 200
    assert metrics["sigma_0.25/evaluations"] == 100
    assert metrics["sigma_0.25/abstained"] == 0.25
    assert len(metrics) == 14


def test_the_largest_per_image_is_a_level_that_costs_nothing_more() -> None:
    with_largest = summarise({**LEVELS, LARGEST: ITEMS}, alpha=0.001, radii=(0.0,))
    assert scalars(with_largest)["cost/evaluations"] == 200
    assert "largest/avg_radius" in scalars(with_largest)
    assert table_of(with_largest)["level"] == [BEST_ROW, "sigma 0.25", "sigma 0.5", LARGEST]


def test_charts_show_every_name_whole() -> None:
    attacked = {level: Attacked(4, {0.25: 0.75}, confirmed=True) for level in ("0.0625", LARGEST)}
    levels = {"0.0625": ITEMS, LARGEST: ITEMS}
    summary = summarise(levels, alpha=0.001, radii=(0.0, 0.25), empirical=attacked)
    scalar_names = [*scalars(summary), *partial_scalars(summary), *attacked_scalars(summary)]
    names = {*scalar_names, *(name for name, _, _ in curve_points(levels))}
    assert len(names) > 15
    assert [name for name in names if len(name) > 24] == []


def test_a_run_says_who_ran_which_command_on_which_model(workplace: Path, monkeypatch) -> None:
    monkeypatch.setattr("sys.argv", ["/bin/ndc", "certify", "runs/a"])
    monkeypatch.setattr("getpass.getuser", lambda: "me")
    tags = model_tags({"network": "small", "parameters": 12}, 2, ("ant", "bee"))
    tracker = Tracker(load_config("demo"), folder=location("runs/a"), declaration=Declaration(LAW), tags=tags)
    kept = tracker.client.get_run(tracker.run_id)
    assert (
        kept.data.tags.items()
        >= {
            "mlflow.user": "me",
            "mlflow.source.name": "ndc certify",
            "command": "ndc certify runs/a",
            "network": "small",
            "parameters": "12",
            "classes": "2: ant, bee",
        }.items()
    )
    assert kept.data.tags.get("mlflow.source.git.commit", "") == commit().removesuffix("-dirty")
    assert [tag.value for tag in kept.inputs.dataset_inputs[0].tags] == ["certified"]


def test_files_that_are_too_large_are_left_out_and_named(workplace: Path, monkeypatch) -> None:
    monkeypatch.setattr(mlflow_tracker, "MOST_ARTIFACT_BYTES", 4)
    tracker = tracker_of()
    finish(tracker, workplace)
    assert [artifact.path for artifact in tracker.client.list_artifacts(tracker.run_id)] == ["certified.json"]
    note = "Too large for the artifacts, and in the run's folder: table.md (0 MB)"
    assert note in tracker.client.get_run(tracker.run_id).data.tags["mlflow.note.content"]
    tracker.attacked(report(workplace), [])
    assert note in tracker.client.get_run(tracker.run_id).data.tags["mlflow.note.content"]


def test_a_run_that_an_earlier_program_logged_gets_the_names_of_this_one_and_no_point_twice(workplace: Path) -> None:
    tracker = tracker_of()
    tracker._log_points([("curve/sigma_0.25", 0, 1.0)], milliseconds=1)
    tracker.client.set_tag(tracker.run_id, "ndc.reported", "true")
    for _ in range(2):
        finish(tracker_of(), workplace)
    assert history(tracker, "curve/sigma_0.25") == [(0, 1.0)]
    assert history(tracker, "cost/evaluations") == [(0, 200)]
    assert len(history(tracker, "curve/best_sigma")) == len(dict(history(tracker, "curve/best_sigma"))) > 1


def test_runs_are_found_by_method_certificate_levels_and_sweep(workplace: Path) -> None:
    tracker = tracker_of(sweep="first")
    tags = tracker.client.get_run(tracker.run_id).data.tags
    assert {key: value for key, value in tags.items() if not key.startswith(("ndc.", "mlflow.", "command"))} == {
        "method": "denoise",
        "certificate": "cohen",
        "dataset": "digits",
        "model": "models/digits",
        "sigmas": "0.25, 0.5",
        "noise": "integer",
        "alpha": "0.001",
        "version": version("ndc"),
        "sweep": "first",
    }
    query = "tags.method = 'denoise' and tags.sweep = 'first'"
    assert [run.info.run_id for run in tracker.client.search_runs([tracker.experiment_id], query)] == [tracker.run_id]
    assert "sweep" not in tracker_of("runs/b").client.get_run(tracker_of("runs/b").run_id).data.tags
    moved = tracker_of(sweep="second")
    assert moved.run_id == tracker.run_id
    assert moved.client.get_run(moved.run_id).data.tags["sweep"] == "second"


def test_the_description_says_how_to_go_on_and_then_what_was_proved(workplace: Path) -> None:
    tracker = tracker_of()
    first = tracker.client.get_run(tracker.run_id).data.tags["mlflow.note.content"]
    assert first == f"Not finished. To go on: `ndc certify {workplace}/runs/a`\n"
    finish(tracker, workplace)
    header, _, best, quarter, half, _, command, *rest = (
        tracker.client.get_run(tracker.run_id).data.tags["mlflow.note.content"].replace("&emsp;", "").splitlines()
    )
    assert rest == ["", "Model: models/my\\_model, small"]
    assert header == "| sigma | r = 0 | r = 0.25 |"
    assert best == "| best per radius, chosen on this data | 50.0 % | 50.0 % |"
    assert quarter == "| 0.25 | 50.0 % | 50.0 % |"
    assert half.startswith("| 0.5 | ")
    assert command == f"From the votes again: `ndc report {workplace}/runs/a`"


def test_a_description_stays_short_enough_for_mlflow() -> None:
    levels = {f"{0.01 * index:g}": ITEMS for index in range(1, 40)}
    summary = summarise(levels, alpha=0.001, radii=[0.01 * index for index in range(20)])
    assert len(description(summary, "runs/a")) < 8000
    assert "`table.md`" in description(summary, "runs/a")
    facts = tuple((f"fact {index}", 900 * "x") for index in range(20))
    assert len(description(summary, "runs/a", facts=facts)) < 8000


def test_the_best_sigmas_curve_is_the_highest_at_each_radius(workplace: Path) -> None:
    tracker = tracker_of()
    finish(tracker, workplace)
    best, *levels = (dict(history(tracker, f"curve/{name}")) for name in ("best_sigma", "sigma_0.25", "sigma_0.5"))
    assert all(best[step] == max(level.get(step, 0) for level in levels) for step in best)
    assert set(best) == set(levels[0]) | set(levels[1])
    assert levels[0] != levels[1]


def test_a_resumed_run_continues_its_mlflow_run_and_logs_its_curves_once(workplace: Path) -> None:
    first = tracker_of()
    first.stopped(failed=False)
    second = tracker_of()
    assert second.run_id == first.run_id
    finish(second, workplace)
    once = history(second, "curve/sigma_0.25")
    finish(tracker_of(), workplace)
    assert history(second, "curve/sigma_0.25") == once
    assert len({step for step, _ in once}) == len(once)


def test_a_driver_killed_while_it_logs_leaves_no_point_twice(workplace: Path) -> None:
    tracker = tracker_of()
    finish(tracker, workplace)
    once = history(tracker, "curve/best_sigma"), table_rows(tracker)
    tracker.client.delete_tag(tracker.run_id, "ndc.reported")  # as if the driver had been killed just before it
    finish(tracker_of(), workplace)
    assert (history(tracker, "curve/best_sigma"), table_rows(tracker)) == once


def table_rows(tracker: Tracker) -> list[list[object]]:
    path = tracker.client.download_artifacts(tracker.run_id, "certified.json")
    return json.loads(Path(path).read_text())["data"]


def test_the_table_artifact_has_a_row_for_each_level_and_radius(workplace: Path) -> None:
    tracker = tracker_of()
    finish(tracker, workplace)
    rows = table_rows(tracker)
    assert len(rows) == 6
    assert rows[1] == ["best sigma, chosen on this data, r = 0.25", 0.5, "best sigma, chosen on this data", 0.25]
    assert "certified.json" in tracker.client.get_run(tracker.run_id).data.tags["mlflow.loggedArtifacts"]


def test_attacks_are_added_to_level_and_description(workplace: Path) -> None:
    tracker = tracker_of()
    finish(tracker, workplace)
    tracker.attacked(report(workplace, {"0.25": Attacked(4, {0.25: 0.75}, confirmed=True)}), [])
    assert tracker.client.get_run(tracker.run_id).data.metrics["sigma_0.25/attack_0.25"] == 0.75


def test_another_folder_or_law_is_another_run(workplace: Path) -> None:
    assert len({tracker.run_id for tracker in (tracker_of(), tracker_of("runs/b"), tracker_of(law=OTHER_LAW))}) == 3


def test_the_link_opens_on_charts_and_says_how_to_serve_it(workplace: Path) -> None:
    tracker = tracker_of()
    assert tracker.link == f"http://127.0.0.1:5000/#/experiments/{tracker.experiment_id}/runs?{CHARTS}"
    assert tracker.how_to_open == f"mlflow ui --backend-store-uri sqlite:///{workplace}/mlflow.db"


def declared(folder: Path, law: dict = LAW) -> UPath:
    """A run folder, with only the files that identify its MLflow run."""
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"fingerprint": "f", "law": law, "plan": {}}))
    (folder / "run.toml").write_text(load_config("demo").to_toml())
    return location(folder)


def test_the_link_of_a_logged_run_is_the_trackers(workplace: Path) -> None:
    tracker = tracker_of()
    assert link_of_run(declared(workplace / "runs/a")) == (tracker.link, tracker.how_to_open)


def test_a_run_is_found_by_any_path_to_its_folder(workplace: Path) -> None:
    tracker = tracker_of()
    declared(workplace / "runs/a")
    (workplace / "link").symlink_to(workplace / "runs")
    assert link_of_run(location("runs/../runs/a"))[0] == tracker.link
    assert tracker_of("link/a").run_id == tracker.run_id


def test_asking_for_the_link_of_a_run_that_was_never_logged_creates_nothing(empty: Path, mlflow_database: Path) -> None:
    workplace = empty
    folder = declared(workplace / "runs/a", OTHER_LAW)
    with pytest.raises(TrackingError, match=rf"runs/a was never logged .* sqlite:///{workplace}/mlflow.db; set MLFLOW"):
        link_of_run(folder)
    assert [path.name for path in workplace.iterdir()] == ["runs"]
    shutil.copy(mlflow_database, workplace)
    tracker = tracker_of("runs/b")
    with pytest.raises(TrackingError, match="log it there: `ndc certify"):
        link_of_run(folder)
    assert len(tracker.client.search_runs([tracker.experiment_id])) == 1
    (workplace / "runs/a/run.toml").write_text(load_config("demo", ["experiment=new"]).to_toml())
    with pytest.raises(TrackingError, match="experiment 'new'"):
        link_of_run(folder)
    assert tracker.client.get_experiment_by_name("new") is None


@pytest.mark.parametrize("uri", ["https://mlflow.example.org", "https://user:secret@mlflow.example.org/mlflow/"])
def test_a_link_keeps_a_servers_path_and_drops_a_password(uri: str) -> None:
    path = "/mlflow" if "/mlflow/" in uri else ""
    assert charts_link(uri, "7") == f"https://mlflow.example.org{path}/#/experiments/7/runs?{CHARTS}"
    assert serving_command(uri) is None


def test_a_run_that_was_stopped_has_its_progress_and_goes_on_with_it(workplace: Path) -> None:
    first = tracker_of()
    first.progress({"progress/votes": 20, "progress/images_begun": 1}, step=20)
    first.stopped(failed=False)
    run = first.client.get_run(first.run_id)
    assert (run.info.status, run.data.metrics["progress/votes"]) == ("KILLED", 20)
    second = tracker_of()
    second.progress({"progress/votes": 50, "progress/images_begun": 4}, step=50)
    second.stopped(failed=True)
    run = second.client.get_run(first.run_id)
    assert (run.info.status, run.data.metrics["progress/images_begun"]) == ("FAILED", 4)
    assert history(second, "progress/votes") == [(20, 20), (50, 50)]


def test_a_deleted_experiment_is_named_with_the_command_that_restores_it(workplace: Path) -> None:
    tracker = tracker_of()
    tracker.client.delete_experiment(tracker.experiment_id)
    restore = f"mlflow experiments restore --experiment-id {tracker.experiment_id}"
    with pytest.raises(TrackingError, match=rf"'ndc' at sqlite.* was deleted; restore it with `{restore}`"):
        tracker_of()
    with pytest.raises(TrackingError, match="--set experiment=NAME"):
        check_tracking(load_config("demo"))
    assert tracker_of(experiment="other").experiment_id != tracker.experiment_id


def test_a_server_that_does_not_answer_is_an_error_at_once(workplace: Path, monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(TrackingError, match=r"does not answer.*unset MLFLOW_TRACKING_URI"):
        tracker_of()


def test_names_are_flattened_with_dots_and_curves_have_integer_steps() -> None:
    assert flatten({"a": {"b": 1, "c": {"d": "x"}}, "e": [1]}) == {"a.b": "1", "a.c.d": "x", "e": "[1]"}
    points = curve_points({"0.25": ITEMS})
    assert all(isinstance(step, int) for _, step, _ in points)
    assert points[-1][2] == 0.0


def test_tiny_radii_are_drawn_finely() -> None:
    small = replace(ITEMS[0], certificate=replace(ITEMS[0].certificate, radius=0.0375))
    points = {step: share for name, step, share in curve_points({"0": [small]}) if name == "curve/sigma_0"}
    assert (points[37], points[38]) == (1.0, 0.0)
    assert len(points) == 39
