"""Sweeps: what they refuse, what they draw, what they write."""

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.certificates.reuse import drawn_once
from pipeline.compare.shared_images import OtherImagesError
from pipeline.declaration.config import ConfigError
from pipeline.declaration.declaration import Declaration, DeclarationChangedError
from pipeline.driver.certify import UnitsFailedError
from pipeline.driver.verify import verify_run
from pipeline.locations import location
from pipeline.store.run_store import RunStore
from pipeline.sweep.file import load_sweep, sweep_names
from pipeline.sweep.run import plan_sweep, run_sweep, settled
from tests.support.commands import ndc
from tests.support.in_process import replace_ray, stopped_after
from tests.support.small_sweeps import SWEEP, alone, certificates_of, sweep_toml, votes_of

NAMES = [
    "sigma_pixel-0.125_0.25",
    "votes.selection-4",
    "votes.estimation-20",
    "votes.estimation-60",
    "certificate.alpha-0.1",
    "Cohen",
    "Sequential",
    "Raced",
    "RacedOfFew",
]
RACED = NAMES[-2:]


def silent(line: str) -> None:
    pass


# What is read and refused


def loaded(tmp_path: Path, text: str, *assignments: str):
    return load_sweep(sweep_toml(tmp_path, Path("models/tiny"), text), assignments)


def test_a_key_is_varied_by_itself_around_the_base(tmp_path: Path) -> None:
    sweep = loaded(tmp_path, SWEEP, "votes.selection=7", "experiment=mine")
    assert [point.name for point in sweep.points] == NAMES
    configs = {point.name: point.config for point in sweep.points}
    assert configs["votes.selection-4"].votes.selection == 4
    assert configs["votes.estimation-20"].votes.selection == 7
    assert configs["votes.estimation-20"].votes.estimation == 20
    assert configs["Sequential"].certificate.method == "sequential"
    assert {config.sweep for config in configs.values()} == {"small"}
    assert {config.experiment for config in configs.values()} == {"mine"}


def test_a_varied_key_may_need_others_that_only_its_runs_have(tmp_path: Path) -> None:
    text = """base = "fast"
[vary]
sigma_pixel = [[0.25]]
"certificate.alpha" = {values = [0.1, 0.2], set = {"certificate.method" = "cohen"}}"""
    methods = [point.config.certificate.method for point in loaded(tmp_path, text).points]
    assert methods == ["sequential", "cohen", "cohen"]


def test_radii_beyond_the_reach_of_one_run_are_left_to_the_others(tmp_path: Path) -> None:
    text = """base = "fast"
[vary]
sigma_pixel = [[0.0625], [0.5]]"""
    small, large = (point.config.certificate.radii for point in loaded(tmp_path, text).points)
    assert (small, large) == ((0.0, 0.1), (0.0, 0.1, 0.2, 0.4))
    with pytest.raises(ConfigError, match=r"radius 4 can never be certified"):
        loaded(tmp_path, text, "certificate.radii=[0.1, 4.0]")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('base = "fast"', r"has no runs; give values"),
        ('base = "nothing"\n[points.A]', r"'nothing' is neither a preset"),
        ('base = "fast"\nbasis = 1', r"unknown key basis"),
        ("[vary]\nseed = [1, 2]", r"key base is missing"),
        ('base = "fast"\n[vary]\nseed = []', r"vary.seed.values: .* at least 1 item"),
        ('base = "fast"\n[vary]\nseed = {values = [1], product = true}', r"unknown key vary.seed.product"),
        ('base = "fast"\n[vary]\nseed = [1, 2, 1]', r"vary.seed has the value 1 twice"),
        (
            'base = "fast"\n[vary]\nvotes.estimation = [100]',
            r"vary.votes has no values; write a key with a dot in quotes",
        ),
        ('base = "fast"\n[vary]\n"votes.estimate" = [100]', r"run votes.estimate-100: unknown key votes.estimate"),
        ('base = "fast"\n[vary]\nseed = [1, -1]', r"run seed--1: seed: .* greater than or equal to 0"),
        ('base = "fast"\n[points."a/b"]', r"'a/b' cannot name a folder"),
        ('base = "fast"\n[vary]\nseed = [1]\n[points.seed-1]', r"two runs would be called seed-1"),
        ('base = "fast"\n[vary]\nmodel = ["a/b", "a-b"]', r"two runs would be called model-a-b"),
        ('base = "fast"\n[points.A]\n"seed.x" = 1', r"run A: seed.x: 'seed' is a value, not a section"),
    ],
)
def test_a_sweep_that_cannot_be_run_is_refused_with_what_and_where(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        loaded(tmp_path, text)


def test_an_unknown_sweep_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"neither a sweep \(.*ablations"):
        load_sweep("ablation")


def test_packaged_sweeps_are_valid() -> None:
    for name in sweep_names():
        assert load_sweep(name).name == name


def test_what_cannot_be_started_or_compared_is_refused_before_any_work(tmp_path: Path, tiny_model: Path) -> None:
    head = f'base = "demo"\n[set]\nmodel = "{tiny_model}"\n"dataset.limit" = 2\n'
    for points, error, message in (
        ('[points.A]\n[points.B]\nmodel = "models/none"', ConfigError, r"B: .*models/none"),
        (
            '[points.A]\n[points.B]\n"certificate.alpha" = 0.1',
            DeclarationChangedError,
            r"A was declared with alpha 0.001, .*B",
        ),
        ('[points.A]\n[points.B]\n"dataset.limit" = 3', OtherImagesError, r"A and .*B are over different images"),
    ):
        sweep = loaded(tmp_path, head + points)
        with pytest.raises(error, match=message):
            settled(sweep, location(tmp_path / "out"), say=silent)
    assert not (tmp_path / "out").exists()


# A whole sweep


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory, mlflow_database: Path) -> Iterator[Path]:
    """A folder to run in, by an actor in this process."""
    folder = tmp_path_factory.mktemp("sweep")
    shutil.copy(mlflow_database, folder)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS"):
            patch.delenv(name, raising=False)
        patch.chdir(folder)
        replace_ray(patch)
        yield folder


@pytest.fixture(scope="module")
def swept(workplace: Path, tiny_model: Path) -> Path:
    """The folder of a finished sweep."""
    sweep = load_sweep(sweep_toml(workplace, tiny_model))
    planned = plan_sweep(sweep, location("out"), say=silent)
    assert not Path("out").exists()
    (workplace / "planned.json").write_text(json.dumps(planned.rows))
    run_sweep(sweep, location("out"), say=silent)
    return workplace / "out"


def drawn_by_actors(folder: Path) -> tuple[int, int]:
    """Votes and evaluations of the units that were computed for a run, whatever it took over."""
    events = [json.loads(line) for path in (folder / "logs").iterdir() for line in path.read_text().splitlines()]
    units = [event for event in events if event["event"] == "unit" and event["seconds"]]
    return sum(unit["draws"] for unit in units), sum(unit["evaluations"] for unit in units)


def all_runs(folder: Path) -> list[tuple[dict, object]]:
    stores = [RunStore(location(folder / name)) for name in NAMES]
    manifests = [store.manifest() for store in stores]
    evidence = [store.all_evidence(fingerprint=m["fingerprint"]) for store, m in zip(stores, manifests, strict=True)]
    return list(zip((Declaration(manifest["law"]) for manifest in manifests), evidence, strict=True))


def test_each_vote_is_drawn_once(swept: Path) -> None:
    drawn = {name: drawn_by_actors(swept / name) for name in NAMES}
    # 3 images: 10 selection and 60 estimation votes at sigma 0.25, 10 and 40 at 0.125.
    alike = {name: votes for name, (votes, _) in drawn.items() if name not in RACED}
    assert {name: votes for name, votes in alike.items() if votes} == {
        "votes.estimation-60": 3 * 70,
        "sigma_pixel-0.125_0.25": 3 * 50,
    }
    totals = [sum(column) for column in zip(*drawn.values(), strict=True)]
    assert drawn_once(all_runs(swept)) == tuple(totals)


def test_a_raced_run_draws_again_what_was_about_a_class_that_it_did_not_select(swept: Path) -> None:
    selected = [
        [top_of(votes) for cell, (votes, _) in sorted(votes_of(swept / name).items()) if cell[2] == "selection"]
        for name in RACED
    ]
    others = sum(one != other for one, other in zip(*selected, strict=True))
    assert 0 < others < 3, "the test needs images of both kinds"
    assert drawn_by_actors(swept / "Raced")[0] == 150
    assert drawn_by_actors(swept / "RacedOfFew")[0] == 40 * others


def top_of(votes: dict[int, int]) -> int:
    return min(votes, key=lambda class_id: (-votes[class_id], class_id))


def test_a_dry_run_said_how_many_would_be_drawn(swept: Path) -> None:
    *rows, total = json.loads((swept.parent / "planned.json").read_text())
    to_draw = {row[0]: row[4] for row in rows}
    assert {name: votes for name, votes in to_draw.items() if votes != "0"} == {
        "votes.estimation-60": "210",
        "sigma_pixel-0.125_0.25": "150",
        "Raced": "150",
        "RacedOfFew": "120",
    }
    assert total[4] == "at most 630"


@pytest.mark.parametrize("name", NAMES)
def test_each_run_of_a_sweep_is_what_it_would_be_alone(swept: Path, tmp_path: Path, name: str) -> None:
    sweep = load_sweep(str(swept.parent / "small.toml"))
    alone(next(point.config for point in sweep.points if point.name == name), tmp_path / "alone")
    assert votes_of(swept / name) == votes_of(tmp_path / "alone")
    assert certificates_of(swept / name) == certificates_of(tmp_path / "alone")


@pytest.mark.parametrize("name", ["votes.selection-4", "Sequential", "RacedOfFew"])
def test_votes_that_were_taken_over_are_those_that_the_model_gives(swept: Path, name: str) -> None:
    said: list[str] = []
    verify_run(location(swept / name), redraw=8, say=said.append)
    assert any("units drawn again from the model: equal bit for bit" in line for line in said)


def test_each_run_is_an_mlflow_run_with_the_name_of_the_sweep(swept: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{swept.parent}/mlflow.db")
    experiment = client.get_experiment_by_name("ndc")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "tags.sweep = 'small'")
    assert {(run.data.tags["ndc.folder"], run.info.status) for run in runs} == {
        (str(swept / name), "FINISHED") for name in NAMES
    }
    assert len(runs) == len(NAMES)
    assert not [run for run in runs if "mlflow.parentRunId" in run.data.tags]


def test_numbers_and_tables_follow_from_the_runs(swept: Path) -> None:
    results = json.loads((swept / "sweep.json").read_text())
    assert [run["name"] for run in results["runs"]] == NAMES[:-4]
    table = (swept / "sweep.md").read_text()
    for run in results["runs"]:
        with (swept / run["name"] / "certificates.tsv").open() as log:
            rows = list(csv.DictReader(log, delimiter="\t"))
        for level in run["levels"]:
            of_level = [row for row in rows if row["sigma_pixel"] == level["sigma_pixel"]]
            right = sum(row["correct"] == "1" and float(row["radius"]) >= 0.1 for row in of_level)
            assert level["certified_accuracy"]["0.1"]["right"] == right
        if run["key"] == "votes.estimation":
            shares = [f"{100 * run['levels'][0]['certified_accuracy'][r]['share']:.1f} %" for r in ("0.0", "0.1")]
            assert f"| {run['value']} | {shares[0]} | {shares[1]} |" in table
    votes, evaluations = drawn_once(all_runs(swept))
    assert f"9 runs drew {votes:,} votes with {evaluations:,} evaluations" in results["remarks"][2]
    assert (swept / "sweep.tex").read_text().count(r"\begin{table}") == 4
    assert (swept / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_the_best_of_several_levels_says_so_in_table_and_figure(swept: Path) -> None:
    table, figure = (swept / "sweep.md").read_text(), (swept / "sweep.svg").read_text()
    assert r"sigma\_pixel varied (best sigma per radius, chosen on this data)" in table
    assert "the best sigma for each radius, chosen on this data" in figure


def test_the_page_has_the_figure_and_the_named_runs_are_compared(swept: Path) -> None:
    page = (swept / "sweep.html").read_text()
    assert (swept / "sweep.svg").read_text()[-2000:].strip() in page
    assert "<link" not in page
    assert "src=" not in page
    compared = json.loads((swept / "compare.json").read_text())
    assert [method["name"] for method in compared["methods"]] == ["Cohen", "Sequential", "Raced", "RacedOfFew"]


def test_a_finished_sweep_draws_nothing_again(swept: Path) -> None:
    said: list[str] = []
    before = {name: votes_of(swept / name) for name in NAMES}
    run_sweep(load_sweep(str(swept.parent / "small.toml")), location(swept), say=said.append)
    assert {name: votes_of(swept / name) for name in NAMES} == before
    assert sum("votes are there already" in line for line in said) == len(NAMES)


def test_votes_that_may_have_been_looked_at_are_lent_to_no_new_run(
    swept: Path, tmp_path: Path, tiny_model: Path
) -> None:
    fewer = load_sweep(sweep_toml(tmp_path, tiny_model, SWEEP.replace("[20, 60]", "[20]")))
    assert len(settled(fewer, location(swept), say=silent)) == len(NAMES) - 1
    for text, message in (
        (SWEEP.replace("[20, 60]", "[20, 50, 60]"), r"votes.estimation-50: this sweep was started without it"),
        (SWEEP.replace('"votes.selection" = 10', '"votes.selection" = 11'), r"sigma_pixel.*votes.selection: 10 -> 11"),
    ):
        with pytest.raises(ConfigError, match=message):
            settled(load_sweep(sweep_toml(tmp_path, tiny_model, text)), location(swept), say=silent)
    sweep = load_sweep(sweep_toml(tmp_path, tiny_model))
    (tmp_path / "Cohen").symlink_to(swept / "Cohen")
    with pytest.raises(ConfigError, match=r"Cohen holds a run that no sweep declared"):
        settled(sweep, location(tmp_path), say=silent)


# Interruption and failure


def test_a_stopped_sweep_goes_on_to_the_same_results(
    swept: Path, tmp_path: Path, tiny_model: Path, mlflow_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(mlflow_database, tmp_path)
    names = ["votes.estimation-20", "votes.estimation-60"]
    varied = '[vary]\n"votes.estimation" = [20, 60]\n'
    toml = sweep_toml(tmp_path, tiny_model, SWEEP[: SWEEP.index("[vary]")] + varied)
    command = ["sweep", toml, "--out", "out", "--set", "votes.per_unit=5"]
    with stopped_after(5):
        stopped = ndc(*command)
    assert stopped.returncode == 130
    assert "Run the same command to go on." in stopped.stderr
    first = tmp_path / "out" / "votes.estimation-60"
    assert 5 <= len(RunStore(first).evidence_files()) < 42, "it was not stopped in the middle"
    resumed = ndc(*command)
    assert resumed.returncode == 0, resumed.stderr
    assert "going on at" in resumed.stderr
    for name in names:
        assert votes_of(tmp_path / "out" / name) == votes_of(swept / name)
        assert certificates_of(tmp_path / "out" / name) == certificates_of(swept / name)


def test_runs_after_one_whose_units_fail_are_done_and_it_is_named(workplace: Path, tiny_model: Path) -> None:
    text = SWEEP[: SWEEP.index("[vary]")].replace('limit" = 3', 'limit" = 1') + "[vary]\nseed = [1, 2]\n"
    sweep = load_sweep(sweep_toml(workplace, tiny_model, text))
    blocked = Path("failing/seed-1/evidence")
    blocked.parent.mkdir(parents=True)
    blocked.write_text("a file where a folder should be")
    with pytest.raises(UnitsFailedError, match=r"units failed in 1 of 2 runs, the others are done: seed-1; mend"):
        run_sweep(sweep, location("failing"), say=silent)
    assert Path("failing/seed-2/report.html").exists()
