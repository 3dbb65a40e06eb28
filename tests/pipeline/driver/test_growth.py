"""A run that grows draws what is new, and ends as if it had been declared so from the beginning."""

import json
from pathlib import Path

import pytest

from pipeline.certificates.files import read_certificates
from pipeline.certificates.reuse import reuse_votes
from pipeline.declaration.config import RunConfig
from pipeline.declaration.declaration import DeclarationChangedError
from pipeline.driver.prepare import PreparedRun, prepare
from pipeline.driver.status import status_of
from pipeline.driver.verify import VerificationError, verify_run
from pipeline.locations import location
from pipeline.report.report import reduce_and_report
from pipeline.store import run_store
from pipeline.store.run_store import RunStore
from tests.support.small_runs import computed, declared, fast_config, small_config, voted

SEQUENTIAL = ("certificate.method=sequential", "votes.estimation=60", "votes.per_unit=20")


def votes_of(store: RunStore) -> dict:
    """Votes by unit, independent of the run's fingerprint."""
    evidence = store.all_evidence(fingerprint=store.manifest()["fingerprint"])
    return {item.unit: item.votes for item in evidence}


def test_growth_from_20_to_40_digits_draws_only_the_new_ones(tiny_model: Path, tmp_path: Path) -> None:
    votes = ("votes.selection=4", "votes.estimation=12", "votes.per_unit=6", "certificate.radii=[0.0]")
    few, many = (small_config(tiny_model, f"dataset.limit={limit}", *votes) for limit in (20, 40))
    computed(few, tmp_path / "run")
    before = votes_of(RunStore(tmp_path / "run"))
    drawn = voted(declared(many, tmp_path / "run"))
    after = votes_of(RunStore(tmp_path / "run"))
    assert len(before) == len(drawn) == 20 * 3
    assert len(after) == 40 * 3
    assert before.items() <= after.items()
    assert {receipt.image_id for receipt in drawn}.isdisjoint(unit.image_id for unit in before)


@pytest.mark.parametrize("settings", [(), SEQUENTIAL], ids=["cohen", "sequential"])
def test_a_run_that_grew_twice_ends_as_one_that_never_had_to(tiny_model: Path, tmp_path: Path, settings) -> None:
    def config(*more: str) -> RunConfig:
        return small_config(tiny_model, *settings, *more)

    last = ["dataset.every=3", "dataset.limit=4", "sigma_pixel=[0.125, 0.25]"]
    stages = [["dataset.every=6", "dataset.limit=2"], ["dataset.every=3", "dataset.limit=3"], last]
    run = declared(config(*stages[0]), tmp_path / "grown")
    voted(run, most_units=2)  # it is stopped, and grows before it is complete
    for stage in stages[1:]:
        computed(config(*stage), tmp_path / "grown")
    store, whole = RunStore(tmp_path / "grown"), computed(config(*last), tmp_path / "whole")
    assert votes_of(store) == votes_of(whole)
    assert [record.image_id for record in store.records()] == [record.image_id for record in whole.records()]
    for name in ("certificates.tsv", "table.md"):
        columns = [
            [line.split("\t")[:5] for line in (folder / name).read_text().splitlines()]
            for folder in (store.folder, whole.folder)
        ]
        assert columns[0] == columns[1], name
    assert status_of(store.folder).complete
    page = (store.folder / "report.html").read_text()
    assert "<li>3 images at sigma_pixel 0.25: declared 20" in page
    said: list[str] = []
    verify_run(store.folder, redraw=4, say=said.append)
    assert "ok       run.json, images.parquet: 3 declarations, each the growth of the one before" in said
    assert any("equal bit for bit" in line for line in said)


def test_the_history_of_declarations_is_kept(tiny_model: Path, tmp_path: Path) -> None:
    runs = [declared(small_config(tiny_model, f"dataset.limit={limit}"), tmp_path) for limit in (2, 3, 4)]
    manifest = RunStore(tmp_path).manifest()
    assert [law["law"]["dataset"]["images"] for law in manifest["earlier"]] == [2, 3]
    assert [law["law"] for law in manifest["earlier"]] == [run.declaration.recorded for run in runs[:2]]
    assert all(law["declared"].endswith("+00:00") for law in [*manifest["earlier"], manifest])
    assert manifest["law"] == runs[2].declaration.recorded
    assert manifest["fingerprint"] == runs[0].declaration.fingerprint
    assert {run.fingerprint for run in runs} == {manifest["fingerprint"]}
    assert manifest["plan"]["units"] == 12


def test_growth_that_is_interrupted_leaves_the_run_as_it_was(tiny_model: Path, tmp_path: Path, monkeypatch) -> None:
    few, many = (small_config(tiny_model, f"dataset.limit={limit}") for limit in (2, 4))
    computed(few, tmp_path)
    real = run_store.publish

    def killed(path, content: bytes) -> None:
        if path.name == "run.json":
            raise KeyboardInterrupt
        real(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(run_store, "publish", killed)
        with pytest.raises(KeyboardInterrupt):
            declared(many, tmp_path)
    store = RunStore(tmp_path)
    assert status_of(store.folder).complete
    reduce_and_report(store, alpha=None, radii=(0.0,), folder=store.folder)
    computed(many, tmp_path)
    assert len(store.records()) == 4
    verify_run(store.folder, redraw=0, say=lambda line: None)


def test_a_grown_run_does_not_shrink_again(tiny_model: Path, tmp_path: Path) -> None:
    few, many = (small_config(tiny_model, f"dataset.limit={limit}") for limit in (2, 4))
    declared(few, tmp_path)
    declared(many, tmp_path)
    with pytest.raises(DeclarationChangedError, match=r"2 of them, such as .* are not among the 2 chosen now"):
        prepare(few, location(tmp_path))


def test_a_run_from_before_runs_could_grow_grows(tiny_model: Path, tmp_path: Path) -> None:
    computed(small_config(tiny_model, "dataset.limit=2"), tmp_path)
    path = tmp_path / "run.json"
    recorded = json.loads(path.read_text())
    path.write_text(json.dumps({key: recorded[key] for key in ("fingerprint", "law", "plan", "data")}, indent=2))
    assert len(voted(declared(small_config(tiny_model), tmp_path))) == 2 * 3
    assert RunStore(tmp_path).manifest()["earlier"][0]["declared"] == ""


def test_a_raced_sequential_run_grows_by_images_and_levels(tiny_model: Path, tmp_path: Path) -> None:
    first = fast_config(tiny_model, "dataset.limit=1", "sigma_pixel=[0.25]")
    computed(first, tmp_path / "grown")
    store, whole = (computed(fast_config(tiny_model), tmp_path / name) for name in ("grown", "whole"))
    assert votes_of(store) == votes_of(whole)
    verify_run(store.folder, redraw=3, say=lambda line: None)


def test_runs_that_have_grown_share_votes_as_others_do(tiny_model: Path, tmp_path: Path) -> None:
    def lent(receiver: PreparedRun) -> int:
        store = RunStore(receiver.folder)
        evidence = store.all_evidence(fingerprint=receiver.fingerprint)
        records, donor = receiver.records, location(tmp_path / "donor")
        return reuse_votes(store, receiver.declaration, evidence, records, num_classes=10, donor=donor)[0]

    for limit in (2, 4):
        computed(small_config(tiny_model, f"dataset.limit={limit}"), tmp_path / "donor")
    few, many = (small_config(tiny_model, "votes.estimation=20", f"dataset.limit={limit}") for limit in (3, 4))
    assert lent(declared(few, tmp_path / "run")) == 0, "runs of other images share none"
    run = declared(many, tmp_path / "run")
    assert lent(run) == 4 * 30
    assert voted(run) == []
    assert votes_of(RunStore(run.folder)).items() <= votes_of(RunStore(tmp_path / "donor")).items()


def test_a_law_that_no_run_can_have_grown_from_is_named(tiny_model: Path, tmp_path: Path) -> None:
    for limit in (2, 4):
        computed(small_config(tiny_model, f"dataset.limit={limit}"), tmp_path)
    path = tmp_path / "run.json"
    manifest = json.loads(path.read_text())
    manifest["earlier"][0]["law"]["votes"]["estimation"] = 30
    path.write_text(json.dumps(manifest))
    with pytest.raises(VerificationError, match=r"can have grown from: .*votes.estimation: 30 -> 40"):
        verify_run(location(tmp_path), redraw=0, say=lambda line: None)


def test_certificates_keep_the_order_of_the_data(tiny_model: Path, tmp_path: Path) -> None:
    computed(small_config(tiny_model, "dataset.every=2", "dataset.limit=2"), tmp_path)
    store = computed(small_config(tiny_model, "dataset.limit=4"), tmp_path)
    rows, _ = read_certificates(store.folder / "certificates.parquet")
    assert [row["image_id"] for row in rows] == [record.image_id for record in store.records()]
    assert [record.index for record in store.records()] == [0, 256, 1, 257]
