"""What is given to a comparison: names, levels and radii, and what is refused in one line."""

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipeline.certificates.stopping import IncompleteRunError
from pipeline.cli import main
from pipeline.compare.compare import Opened, names_of, radii_of
from pipeline.compare.inputs import open_input, parse_argument
from pipeline.declaration.declaration import DeclarationChangedError
from tests.support.comparisons import LOG, SOME, compared
from tests.support.finished_runs import finished_run, log_text


def opened(*arguments: object) -> list[Opened]:
    return [open_input(parse_argument(str(argument)), alpha=None) for argument in arguments]


def test_runs_of_one_method_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    a, b = finished_run(tmp_path / "a", SOME), finished_run(tmp_path / "b", SOME, "classifier.name=epndc")
    assert names_of(opened(a, b)) == ["APNDC-ensemble", "EPNDC"]
    assert names_of(opened(a, f"Mine={a}")) == ["APNDC-ensemble", "Mine"]
    assert names_of(opened(a, f"APNDC-ensemble={b}")) == ["APNDC-ensemble (a)", "APNDC-ensemble"]
    c = finished_run(tmp_path / "x/a", SOME)
    assert names_of(opened(a, c)) == [f"APNDC-ensemble ({a})", f"APNDC-ensemble ({c})"]


@pytest.mark.parametrize(
    ("text", "where", "name", "level"),
    [
        ("runs/a", "runs/a", None, None),
        ("RS=runs/a", "runs/a", "RS", None),
        ("RS@0.25=log.tsv", "log.tsv", "RS", 0.25),
        ("@0.25=log.tsv", "log.tsv", None, 0.25),
        ("me@home=runs/a", "runs/a", "me@home", None),
        ("me@home@1=log", "log", "me@home", 1.0),
        ("s3://bucket/day=3/a", "s3://bucket/day=3/a", None, None),
        ("A=s3://bucket/day=3/a", "s3://bucket/day=3/a", "A", None),
    ],
)
def test_names_and_levels_are_read_before_the_place(
    text: str, where: str, name: str | None, level: float | None
) -> None:
    argument = parse_argument(text)
    assert (str(argument.where), argument.name, argument.level) == (where, name, level)


def test_an_incomplete_run_is_named_with_the_way_to_finish_it(tmp_path: Path, out: Path) -> None:
    run = finished_run(tmp_path / "a", SOME)
    next((run / "evidence").rglob("*.parquet")).unlink()
    with pytest.raises(IncompleteRunError, match=rf"{run} cannot be compared: image .* run `ndc certify {run}` to fi"):
        compared(run, out=out)
    assert not out.exists()


def test_a_sequential_run_is_refused_at_radii_that_it_did_not_aim_at(tmp_path: Path, out: Path) -> None:
    aimed = finished_run(
        tmp_path / "a", SOME, "certificate.method=sequential", "certificate.radii=[0.05, 0.1]", "votes.estimation=400"
    )
    fixed = finished_run(tmp_path / "b", SOME, "certificate.radii=[0.1, 0.2]")
    with pytest.raises(DeclarationChangedError, match=r"a: radius 0.2 was not declared.*compared at --radii 0.05,0.1$"):
        compared(aimed, fixed, out=out)
    with pytest.raises(DeclarationChangedError, match=r"radius 0.07 was not declared"):
        compared(aimed, fixed, out=out, radii=(0.07,))


OWN = "idx\tlabel\tpredict\tradius\tcorrect\ttime\tsigma_pixel\n0\t1\t1\t0.5\t1\t0:00:01\t0.25\n"


@pytest.mark.parametrize(
    ("arguments", "log", "message"),
    [
        (["nowhere"], "", r"nowhere is neither a run's folder \(no run.json\) nor a log"),
        (["folder"], "", r"folder is neither a run's folder"),
        (["log.tsv"], log_text(LOG), r"log.tsv does not say its noise level; add it, as log@0.25=log.tsv"),
        (["RS=log.tsv"], log_text(LOG), r"add it, as RS@0.25=log.tsv"),
        (["RS@0.5=log.tsv"], OWN, r"log.tsv has a column sigma_pixel; leave out @0.5"),
        (["RS@0.5=run"], "", r"run is a run, and knows its noise levels; leave out @0.5"),
        (["RS@0.5=log.tsv"], log_text(LOG), r"logs alone declare no radii; give those of the table"),
        (["RS=log.tsv"], OWN + "1\t1\t1\t0.5\t1\t0:00:01\t0.5\n", r"sigma_pixel 0.25 has no row of idx 1"),
        (["RS=log.tsv"], OWN + "0\t2\t1\t0.5\t0\t0:00:01\t0.5\n", r"idx 0 has two labels, 1 and 2"),
        (["A=run", "A=run"], "", r"A has the noise level 0.25 twice, in run and in run; give them different names"),
        (["run", "--out", "run"], "", r"run holds a run, whose tables these would replace"),
        (["run", "--radii", "wide"], "", r"--radii wide: these are not all numbers from 0 on"),
        (["run", "--radii", "-1,2"], "", r"--radii -1,2: these are not all numbers"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], log: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("log.tsv").write_text(log)
    finished_run("run", SOME)
    shown = CliRunner().invoke(main, ["compare", *arguments])
    assert shown.exit_code == 1
    assert shown.stderr.startswith("Error: ")
    assert re.search(message, shown.stderr), shown.stderr
    assert not Path("runs").exists()


def test_radii_are_read_as_typed() -> None:
    assert radii_of("0,0.25, 1") == (0.0, 0.25, 1.0)
