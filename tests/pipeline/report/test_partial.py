"""Reports of incomplete runs: certificates of the complete images, in the order of the data, labelled everywhere."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.certificates.files import read_certificates
from pipeline.certificates.stopping import IncompleteRunError
from pipeline.compare.tsv_logs import LogError, read_log
from pipeline.locations import location
from pipeline.report.mlflow_values import partial_scalars
from pipeline.report.report import Report, reduce_and_report, summary_so_far
from pipeline.store.run_store import RunStore
from tests.support.commands import ndc
from tests.support.finished_runs import finished_run
from tests.support.small_runs import declared, small_config, voted

RADII = (0.0, 0.1)
WINS = {0.25: [40, 40, 20, 40], 0.5: [40, 40, 40, 40]}
TEXTS = ("table.md", "table.tex", "report.html", "summary.json")
FILES = (*TEXTS, "certificates.parquet", "certificates.tsv", "curve.svg")


def without(folder: Path, *cells: tuple[str, float]) -> RunStore:
    """The run with the last unit of these images and levels missing."""
    store = RunStore(location(folder))
    fingerprint = store.manifest()["fingerprint"]
    for item in store.all_evidence(fingerprint=fingerprint):
        if (item.unit.image_id, item.unit.sigma_pixel) in cells and item.unit.draw_stop == 40:
            store.evidence_path(item.unit.unit_id(fingerprint)).unlink()
    return store


def report(store: RunStore, *, partial: bool, folder: str = "out") -> Report:
    return reduce_and_report(store, alpha=None, radii=RADII, folder=store.folder / folder, partial=partial)


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Report, Report]:
    """The report of a whole run, and the partial one when two of its four images lacked a unit."""
    folder = finished_run(tmp_path / "run", WINS)
    whole = report(RunStore(location(folder)), partial=False, folder="whole")
    return whole, report(without(folder, ("image-0", 0.5), ("image-2", 0.25)), partial=True)


def test_a_certificate_of_a_partial_report_is_that_of_the_whole_run(runs) -> None:
    whole, partial = (read_certificates(run_report.folder / "certificates.parquet")[0] for run_report in runs)
    assert [(row["image_id"], row["sigma_pixel"]) for row in partial] == [
        (image_id, sigma) for sigma in WINS for image_id in ("image-1", "image-3")
    ]
    assert [row for row in whole if row["image_id"] in ("image-1", "image-3")] == partial


def test_every_file_of_a_partial_report_says_what_it_is(runs) -> None:
    _, partial = runs
    text = {name: (partial.folder / name).read_bytes().decode(errors="replace") for name in FILES}
    for name in TEXTS:
        assert "Partial: 2 of 4 images are complete, 2 are missing." in text[name], name
    for name in TEXTS[:3]:
        assert "sigma, 2 of 4 images".replace("sigma", r"$\sigma$" if name == "table.tex" else "sigma") in text[name]
    assert "(2 of 4 images)</title>" in text["report.html"]
    assert json.loads(text["summary.json"])["missing"] == 2
    first, header, *rows = text["certificates.tsv"].splitlines()
    assert first == "# partial: 2 of 4 images"
    assert header.startswith("idx\t")
    assert [row.split("\t")[0] for row in rows] == ["1", "3"] * 2, "places are those among all images"


def test_a_partial_log_is_not_taken_for_a_whole_one(runs) -> None:
    with pytest.raises(LogError, match="is marked: partial: 2 of 4 images; finish the run"):
        read_log(runs[1].folder / "certificates.tsv")


def test_without_partial_an_incomplete_run_has_no_report(runs) -> None:
    store = RunStore(runs[1].folder.parent)
    with pytest.raises(IncompleteRunError, match="of 40 estimation votes present"):
        report(store, partial=False)


def test_the_partial_report_of_a_complete_run_is_the_whole_one(tmp_path: Path) -> None:
    store = RunStore(location(finished_run(tmp_path, WINS)))
    whole, partial = report(store, partial=False, folder="a"), report(store, partial=True, folder="b")
    for name in FILES:
        assert (whole.folder / name).read_bytes() == (partial.folder / name).read_bytes(), name


def test_a_run_without_a_complete_image_says_so(tmp_path: Path) -> None:
    store = without(finished_run(tmp_path, WINS), *((f"image-{index}", 0.25) for index in range(4)))
    with pytest.raises(IncompleteRunError, match="no image is complete at all noise levels yet"):
        report(store, partial=True)
    assert partial_scalars(summary_so_far(store, radii=RADII)) == {}


def test_the_command_leaves_the_runs_own_report_alone(tmp_path: Path) -> None:
    store = without(finished_run(tmp_path / "run", WINS), ("image-0", 0.5))
    done = ndc("report", store.folder, "--partial", "--radii", "0.0")
    assert done.returncode == 0
    assert "3 of 4 images" in done.stdout
    assert "Partial: 3 of 4 images" in done.stderr
    assert not (tmp_path / "run" / "certificates.parquet").exists()
    assert (tmp_path / "run" / "partial" / "report.html").is_file()
    assert ndc("report", store.folder, "--partial", "--alpha", "0.01").returncode == 0
    assert (tmp_path / "run" / "partial" / "alpha-0.01" / "report.html").is_file()


def test_mlflow_gets_the_complete_images(tmp_path: Path) -> None:
    store = without(finished_run(tmp_path, WINS), ("image-3", 0.5))
    metrics = partial_scalars(summary_so_far(store, radii=RADII))
    assert metrics["partial/images"] == 3
    assert metrics["partial/0.25_at_0"] == metrics["partial/0.25_at_0.1"] == pytest.approx(2 / 3)
    assert metrics["partial/0.5_at_0.1"] == 1.0
    assert set(metrics) == {"partial/images"} | {
        f"partial/{sigma:g}_{name}" for sigma in WINS for name in ("at_0", "at_0.1")
    }


@pytest.mark.parametrize(
    "settings", [(), ("certificate.method=sequential", "votes.estimation=100")], ids=["cohen", "sequential"]
)
def test_images_that_grew_or_not_are_complete_one_after_the_other(tiny_model: Path, tmp_path: Path, settings) -> None:
    few, many = (small_config(tiny_model, *settings, f"dataset.limit={limit}") for limit in (2, 3))
    voted(declared(few, tmp_path))
    run = declared(many, tmp_path)
    store = RunStore(run.folder)
    partial = report(store, partial=True)
    assert partial.summary.so_far == "2 of 3 images"
    voted(run)
    assert replace(report(store, partial=True).summary, warnings=()).missing == 0
