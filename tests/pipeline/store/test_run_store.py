from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.data.datasets import Example
from pipeline.declaration.units import WorkUnit
from pipeline.store.evidence import Evidence
from pipeline.store.run_store import RunStore, StoreError, spread

LAW = "a" * 64


def unit_at(start: int) -> WorkUnit:
    return WorkUnit("img", 2, 0.25, "estimation", start, start + 10)


def evidence_at(start: int) -> Evidence:
    return Evidence(unit_at(start), {2: 7, 5: 3}, 810, 0.5, 1000.0, "cpu")


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    store = RunStore(tmp_path / "run")
    for start in (0, 10, 20):
        store.publish(evidence_at(start), fingerprint=LAW)
    return store


def path_of(store: RunStore, start: int) -> Path:
    return store.evidence_path(unit_at(start).unit_id(LAW))


def planned(*starts: int) -> set[str]:
    return {unit_at(start).unit_id(LAW) for start in starts}


def test_evidence_comes_back_as_it_was_published(store: RunStore) -> None:
    evidence = sorted(store.all_evidence(fingerprint=LAW), key=lambda item: item.unit.draw_start)
    assert evidence == [evidence_at(start) for start in (0, 10, 20)]
    assert store.has_evidence(unit_at(0).unit_id(LAW), fingerprint=LAW)
    assert not store.has_evidence(unit_at(30).unit_id(LAW), fingerprint=LAW)


def test_counts_that_do_not_add_up_are_no_evidence() -> None:
    with pytest.raises(ValueError, match="9 votes counted of 10 draws"):
        Evidence(unit_at(0), {2: 9}, 810, 0.5, 1000.0, "cpu")


def torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[content.index(b"estimation") + 2] ^= 1
    path.write_bytes(content)


def foreign(path: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), path)


def renamed(path: Path) -> None:
    other = path.parent.parent / unit_at(10).unit_id(LAW)[:2] / f"{unit_at(10).unit_id(LAW)}.parquet"
    path.write_bytes(other.read_bytes())


def edited(path: Path) -> None:
    table = pq.read_table(path)
    changed = table.set_column(
        table.schema.get_field_index("votes"), table.schema.field("votes"), pa.array([[8, 3]], pa.list_(pa.int64()))
    )
    pq.write_table(changed, path)


@pytest.mark.parametrize("damage", [torn, empty, flipped, foreign, renamed, edited])
def test_what_is_no_evidence_is_named_and_set_aside(store: RunStore, damage) -> None:
    damage(path_of(store, 0))
    with pytest.raises(StoreError, match=path_of(store, 0).name):
        store.all_evidence(fingerprint=LAW)
    _, moved = store.sort_out_evidence(fingerprint=LAW, planned=planned(0, 10, 20))
    assert len(moved) == 1
    assert moved[0][0].is_file()
    assert not path_of(store, 0).exists()
    assert len(store.all_evidence(fingerprint=LAW)) == 2


def test_evidence_of_another_run_or_plan_is_set_aside(store: RunStore) -> None:
    _, moved = store.sort_out_evidence(fingerprint=LAW, planned=planned(0, 10))
    assert [problem for _, problem in moved] == ["evidence of a unit that this run does not plan"]
    _, moved = store.sort_out_evidence(fingerprint="b" * 64, planned=planned(0, 10))
    assert [problem for _, problem in moved] == ["evidence of another run"] * 2


def test_half_written_files_are_swept_up(store: RunStore) -> None:
    partial = path_of(store, 0).with_name("x.parquet.123.partial")
    partial.write_bytes(b"PAR1")
    assert not store.sort_out_evidence(fingerprint=LAW, planned=planned(0, 10, 20))[1]
    assert not partial.exists()


def test_failures_are_listed_until_the_unit_succeeds(store: RunStore) -> None:
    store.record_failure(unit_at(30), "NaN", fingerprint=LAW)
    assert [failure["error"] for failure in store.failures()] == ["NaN"]
    store.publish(evidence_at(30), fingerprint=LAW)
    assert not list(store.failures())


def test_a_spread_is_even_and_all_where_all_may_be_taken() -> None:
    assert spread(3, 5) == [0, 1, 2]
    assert spread(10, 4) == [0, 2, 5, 7]
    assert spread(10, 0) == spread(0, 10) == []
    assert len(set(spread(50_000, 500))) == 500


def test_images_are_kept_with_pixels_for_the_gallery(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    examples = [Example(str(i), np.full((1, 2, 3), i, np.uint8), i) for i in range(6)]
    assert not store.is_declared()
    records = [example.record(index) for index, example in enumerate(examples)]
    manifest = {"law": {}, "fingerprint": LAW, "plan": {}}
    store.declare(manifest, config_toml="", records=records, examples=examples)
    assert store.is_declared()
    images = store.images(shown=3)
    assert [image.image_id for image in images] == [example.image_id for example in examples]
    assert [image.pixels is None for image in images] == [False, True, False, True, False, True]
    np.testing.assert_array_equal(images[4].pixels, examples[4].image)
    assert all(image.pixels is None for image in store.images())


def test_a_folder_without_run_or_with_a_damaged_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="holds no run"):
        RunStore(tmp_path).manifest()
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(StoreError, match=r"run.json is damaged"):
        RunStore(tmp_path).manifest()
