"""The head of a report: where its result comes from, also for runs that earlier versions began."""

import json
import webbrowser
from importlib.metadata import version
from pathlib import Path

import pytest

from pipeline.locations import location
from pipeline.program import command, commit
from pipeline.report.provenance import classes_text
from pipeline.report.report import reduce_and_report
from pipeline.store.run_store import RunStore
from pipeline.workers.model_facts import origins
from tests.support.commands import ndc
from tests.support.finished_runs import finished_run
from tests.support.small_runs import computed, small_config

WINS = {0.25: [40, 40, 20, 40]}


def facts_of(store: RunStore, **options: float | None) -> dict[str, str]:
    report = reduce_and_report(store, alpha=options.get("alpha"), radii=(0.0, 0.1), folder=store.folder)
    assert all(f"<dt>{name}</dt>" in report.page.read_text() for name, _ in report.provenance.facts)
    return dict(report.provenance.facts)


def test_a_report_names_its_model_data_and_program(tiny_model: Path, tmp_path: Path, monkeypatch) -> None:
    argv = ["/opt/bin/ndc", "certify", "demo", "--set", "model=s3://me:secret@host/m"]
    monkeypatch.setattr("sys.argv", argv)
    store = computed(small_config(tiny_model), tmp_path)
    facts = facts_of(store)
    digest = store.declaration().digest("model_sha256")[:12]
    parameters = store.manifest()["model"]["parameters"]
    assert parameters > 10_000
    assert facts["Model"] == f"{tiny_model}, small, {parameters:,} parameters, SHA-256 {digest}"
    assert facts["Data"] == "digits, test split, 4 images, 1 x 8 x 8 pixels"
    assert facts["Classes"] == "10, called by their numbers"
    assert facts["Certificate"] == "cohen, alpha 0.001, 40 votes per image and noise level"
    assert facts["Noise levels"] == "sigma 0.25, integer noise"
    assert "torch" in facts["Computed on"]
    assert facts["Dates (UTC)"].count(":") == 2
    assert facts["Program"].startswith(f"ndc {version('ndc')}")
    assert facts["Command"] == "ndc certify demo --set model=s3://host/m"
    assert facts_of(store, alpha=0.01)["Certificate"].startswith("cohen, alpha 0.01 (declared: 0.001)")


def test_a_run_of_an_earlier_program_has_a_report_that_says_what_is_known(tmp_path: Path) -> None:
    store = RunStore(location(finished_run(tmp_path, WINS)))
    manifest = json.loads((tmp_path / "run.json").read_text())
    del manifest["declared"]
    (tmp_path / "run.json").write_text(json.dumps(manifest))
    facts = facts_of(store)
    assert facts["Model"] == "models/tiny, SHA-256 0123456789ab"
    assert set(facts) == {"Model", "Data", "Classes", "Classifier", "Certificate", "Noise levels", "Computed on"}


def test_a_checkpoints_notes_say_where_it_comes_from() -> None:
    notes = {"source": "edm.pkl", "teacher_sha256": "ab" * 32, "dataset": "digits", "split": "train", "images": 1297}
    assert list(origins(notes)) == [
        "converted from edm.pkl",
        "distilled from the model abababababab",
        "learned from digits (train split, 1,297 images)",
    ]
    assert list(origins({"dataset": "photos", "parent": "models/a"})) == ["tuned from models/a", "learned from photos"]
    assert list(origins({})) == []


def test_only_some_of_many_classes_are_named() -> None:
    assert classes_text(2, ["ant", "bee"]) == "2: ant, bee"
    assert classes_text(100, [f"c{i}" for i in range(100)]).endswith("c10, c11, ...")
    assert classes_text(2, ["0", "1"]) == classes_text(2, ()) == "2, called by their numbers"


def test_the_commit_is_that_of_this_repository() -> None:
    head = commit()
    assert head == "" or len(head.removesuffix("-dirty")) == 40


def test_a_library_has_no_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/usr/lib/python3/site-packages/pytest/__main__.py", "-x"])
    assert command() == ""


def test_the_page_opens_in_the_browser_where_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finished_run(tmp_path, WINS)
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    assert ndc("report", tmp_path, "--open").returncode == 0
    assert opened == [(tmp_path / "report.html").as_uri()]

    def none(url: str) -> None:
        raise webbrowser.Error("could not locate runnable browser")

    monkeypatch.setattr(webbrowser, "open", none)
    done = ndc("report", tmp_path, "--open")
    assert (done.returncode, "browser" in done.stdout + done.stderr) == (0, False)
    assert ndc("report", tmp_path, "--open", "--mlflow-link").returncode == 2
