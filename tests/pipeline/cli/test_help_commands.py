"""Presets to copy, what this machine has, and what somebody may have meant."""

import json
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipeline.cli import main
from pipeline.declaration.config import RunConfig
from pipeline.declaration.keys import keys_of
from pipeline.declaration.toml_files import FOLDERS, load_config, packaged_names
from pipeline.near_names import did_you_mean


def run(*arguments: str, code: int = 0) -> str:
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == code, done.output
    return done.output


def test_presets_are_listed_with_what_they_are_and_shown_as_they_can_be_used(tmp_path: Path) -> None:
    listed = run("presets").splitlines()
    assert listed[0] == "ndc certify"
    for folder in FOLDERS.values():
        for name in packaged_names(folder):
            (line,) = [line for line in listed if line.startswith(f"  {name} ")]
            assert len(line.split()) > 3
            assert tomllib.loads(run("presets", "show", name))
    (tmp_path / "mine.toml").write_text(run("presets", "show", "fast"))
    assert load_config(str(tmp_path / "mine.toml")) == load_config("fast")


@pytest.mark.parametrize(
    ("arguments", "code", "meant"),
    [
        (["certfy", "demo"], 2, "certify"),
        (["presets", "show", "fsat"], 1, "fast"),
        (["certify", "dmeo"], 1, "demo"),
        (["certify", "demo", "--set", "votes.estimatoin=5"], 1, "votes.estimation"),
        (["certify", "demo", "--set", "classifier.grid.pionts=5"], 1, "classifier.grid.points"),
        (["sweep", "method"], 1, "methods"),
    ],
)
def test_who_writes_a_name_wrong_is_told_the_right_one(arguments: list[str], code: int, meant: str) -> None:
    assert f"did you mean {meant}?" in run(*arguments, code=code)


def test_nothing_is_proposed_where_nothing_is_near() -> None:
    assert did_you_mean("zzz", ["certify", "plan"]) == ""


def test_every_key_that_a_preset_sets_is_known() -> None:
    known = set(keys_of(RunConfig))
    assert {"votes.estimation", "classifier.sift.grid.points", "classifier.network", "sigma_pixel"} <= known

    def set_in(section: dict, path: str) -> set[str]:
        own = {f"{path}{name}" for name in section}
        inner = [set_in(value, f"{path}{name}.") for name, value in section.items() if isinstance(value, dict)]
        return own.union(*inner)

    for name in packaged_names(FOLDERS["certify"]):
        assert set_in(tomllib.loads(run("presets", "show", name)), "") <= known


def test_the_doctor_names_versions_and_what_can_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    said = run("doctor", "--run", str(tmp_path / "runs"))
    for what in ("ndc", "Python", "torch 2", "ray 2", "GPU", "MLflow", f"{tmp_path / 'runs'} can be written"):
        assert what in said
    assert not list(tmp_path.iterdir())


def test_the_doctor_ends_with_1_where_a_run_would_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    (tmp_path / "file").touch()
    findings = json.loads(run("doctor", "--run", str(tmp_path / "file" / "runs"), "--json", code=1))
    trouble = {finding["what"] for finding in findings if finding["trouble"]}
    assert trouble == {"Ray", "folder"}
