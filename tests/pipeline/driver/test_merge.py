"""Runs that were made separately merge into one that equals a single run, or are refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.declaration.declaration import DeclarationChangedError
from pipeline.driver import merge as merge_module
from pipeline.driver.merge import MergeError, merge_runs
from pipeline.driver.prepare import prepare
from pipeline.driver.verify import verify_run
from pipeline.locations import location
from pipeline.store.evidence import evidence_content
from pipeline.store.run_store import RunStore
from tests.support.commands import ndc
from tests.support.small_runs import computed, declared, small_config, voted

SEQUENTIAL = ("certificate.method=sequential", "votes.estimation=60")


def part(model: Path, folder: Path, *settings: str) -> Path:
    return Path(str(computed(small_config(model, *settings), folder).folder))


def merged(folders: list[Path], out: Path) -> RunStore:
    merge_runs([location(folder) for folder in folders], location(out), say=lambda line: None)
    return RunStore(location(out))


def votes_of(store: RunStore) -> dict:
    return {item.unit: item.votes for item in store.all_evidence(fingerprint=store.manifest()["fingerprint"])}


@pytest.fixture(scope="module")
def parts(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The even and the odd images of six, and one that both the first and the third have."""
    base = tmp_path_factory.mktemp("parts")
    chosen = [("dataset.every=2", "dataset.limit=3"), ("dataset.every=2", "dataset.offset=1", "dataset.limit=3")]
    chosen += [("dataset.offset=2", "dataset.limit=1")]
    return [part(tiny_model, base / str(index), *SEQUENTIAL, *some) for index, some in enumerate(chosen)]


def copied(folder: Path, where: Path) -> Path:
    return Path(shutil.copytree(folder, where))


def test_a_merged_run_is_the_run_of_all_images(tiny_model: Path, tmp_path: Path, parts: list[Path]) -> None:
    whole = part(tiny_model, tmp_path / "whole", *SEQUENTIAL, "dataset.limit=6")
    done = ndc("merge", *parts, "-o", tmp_path / "merged")
    assert done.returncode == 0, done.stderr
    assert "6 images, " in done.stderr
    store = RunStore(tmp_path / "merged")
    assert votes_of(store) == votes_of(RunStore(whole))
    assert (store.folder / "table.md").read_bytes() == (whole / "table.md").read_bytes()
    assert store.records() == RunStore(whole).records()
    verify_run(location(store.folder), redraw=3, say=lambda line: None)
    assert [one["folder"] for one in store.manifest()["merged"]] == list(map(str, parts))


def test_a_merged_run_of_incomplete_ones_goes_on_and_grows(tiny_model: Path, tmp_path: Path) -> None:
    first, second = ("dataset.limit=2",), ("dataset.offset=2", "dataset.limit=2")
    voted(declared(small_config(tiny_model, *first), tmp_path / "a"), most_units=2)
    part(tiny_model, tmp_path / "b", *second)
    store = merged([tmp_path / "a", tmp_path / "b"], tmp_path / "c")
    assert not (store.folder / "report.html").exists()
    config = small_config(tiny_model, "dataset.limit=5")
    drawn = voted(declared(config, store.folder))
    assert len(votes_of(store)) == 5 * 3
    assert len(drawn) == 5 * 3 - 2 - 2 * 3


def test_a_merge_that_is_interrupted_goes_on(tmp_path: Path, parts: list[Path], monkeypatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(merge_module, "reduce_and_report", lambda *_, **__: pytest.fail("not reached"))
        patch.setattr(merge_module, "copy_evidence", lambda part, *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            merged(parts[:2], tmp_path)
    store = merged(parts[:2], tmp_path)
    assert len(store.records()) == 6
    assert votes_of(merged(parts[:2], tmp_path)) == votes_of(store), "a second time it changes nothing"


@pytest.mark.parametrize(
    ("setting", "why"),
    [
        ("seed=1", r"seed: 0 -> 1"),
        ("votes.estimation=40", r"votes.estimation: 60 -> 40"),
        ("sigma_pixel=[0.25, 0.5]", r"sigma_pixel: \[0.25\] -> \[0.25, 0.5\]"),
        ("classifier.grid.points=5", r"classifier.grid.points: 4 -> 5"),
    ],
)
def test_runs_of_other_declarations_are_refused(
    tiny_model: Path, tmp_path: Path, parts: list[Path], setting: str, why: str
) -> None:
    declared(small_config(tiny_model, *SEQUENTIAL, setting), tmp_path / "other")
    with pytest.raises(MergeError, match=rf"declare different things \(.*{why}"):
        merged([parts[0], tmp_path / "other"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        (("law", "model_sha256"), "other", r"model_sha256: \w+ -> other"),
        (("law", "vote_version"), 6, r"vote_version: \d+ -> 6"),
        (("data", "classes"), ["a", "b"], r"data.classes: "),
    ],
)
def test_runs_of_another_model_version_or_order_of_classes_are_refused(
    tmp_path: Path, parts: list[Path], key: tuple[str, str], value: object, why: str
) -> None:
    other = copied(parts[1], tmp_path / "other")
    manifest = json.loads((other / "run.json").read_text())
    manifest[key[0]][key[1]] = value
    (other / "run.json").write_text(json.dumps(manifest))
    with pytest.raises(MergeError, match=why):
        merged([parts[0], other], tmp_path / "out")


def test_overlaps_that_differ_are_refused(tmp_path: Path, parts: list[Path]) -> None:
    other = copied(parts[2], tmp_path / "other")
    store = RunStore(other)
    fingerprint = store.manifest()["fingerprint"]
    item = next(iter(store.all_evidence(fingerprint=fingerprint)))
    (class_id, votes), *others = item.votes.items()
    fewer = {class_id: votes - 1, **dict(others)} if votes > 1 else dict(others)
    changed = replace(item, votes={**fewer, 9 - class_id: fewer.get(9 - class_id, 0) + 1})
    path = store.evidence_path(item.unit.unit_id(fingerprint))
    path.write_bytes(evidence_content(changed, fingerprint=fingerprint))
    with pytest.raises(MergeError, match=r"selection draws 0 to 9: .* must agree"):
        merged([parts[0], other], tmp_path / "out")


def test_images_of_one_name_that_differ_are_refused(tmp_path: Path, parts: list[Path]) -> None:
    other = copied(parts[2], tmp_path / "other")
    store = RunStore(other)
    (record,) = store.records()
    for changed, why in (({"label": 9 - record.label}, "labels"), ({"sha256": "0" * 64}, "pixels")):
        store.pictures.list_records([replace(record, **changed)])
        with pytest.raises(MergeError, match=rf"image {record.image_id} has other {why}"):
            merged([parts[0], other], tmp_path / "out")


def test_a_folder_is_named_once_and_holds_no_other_run(tiny_model: Path, tmp_path: Path, parts: list[Path]) -> None:
    for folders, out in (([parts[0], parts[0]], tmp_path / "out"), (parts[:2], parts[0])):
        with pytest.raises(MergeError, match="are the same folder"):
            merged(folders, out)
    with pytest.raises(DeclarationChangedError, match="holds another run; give another folder with -o"):
        merged(parts[:2], copied(parts[2], tmp_path / "other"))
    assert prepare(small_config(tiny_model, *SEQUENTIAL, "dataset.offset=2", "dataset.limit=1"), location(parts[2]))
