"""Evidence of single units goes into shards: each unit counts once whatever happens on the way."""

import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.certificates.reduce import certify_images
from pipeline.declaration.declaration import declare
from pipeline.declaration.units import WorkUnit, plan_units
from pipeline.locations import LocationError, location
from pipeline.store import run_store as store_module
from pipeline.store.evidence import Evidence
from pipeline.store.run_store import RunStore, StoredImage
from tests.support.small_runs import digits, listing_of, small_config

LAW = "a" * 64


def evidence_at(start: int) -> Evidence:
    unit = WorkUnit("img", 2, 0.25, "estimation", start, start + 10)
    return Evidence(unit, {2: 7, 5: 3}, 810 + start, 0.5, 1000.0, "cpu")


STARTS = range(0, 400, 10)
IDS = {start: evidence_at(start).unit.unit_id(LAW) for start in STARTS}


def filled(folder: Path, starts=STARTS) -> RunStore:
    store = RunStore(folder)
    for start in starts:
        store.publish(evidence_at(start), fingerprint=LAW)
    return store


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> RunStore:
    where = tmp_path / "run" if request.param == "local" else f"{request.getfixturevalue('s3')}/run"
    return filled(location(where))


def starts_of(store: RunStore) -> list[int]:
    return [item.unit.draw_start for item in store.all_evidence(fingerprint=LAW)]


def test_all_is_there_as_before_in_fewer_files(store: RunStore) -> None:
    before = list(store.all_evidence(fingerprint=LAW))
    digest = store.all_evidence(fingerprint=LAW).digest
    store.compact(fingerprint=LAW, at_least=1)
    assert store.evidence_files() == []
    assert len(store.shard_files()) == len({unit_id[:2] for unit_id in IDS.values()})
    assert list(store.all_evidence(fingerprint=LAW)) == before == [evidence_at(start) for start in STARTS]
    assert store.all_evidence(fingerprint=LAW).digest == digest
    for start in STARTS[::7]:
        assert store.has_evidence(IDS[start], fingerprint=LAW)
        assert store.read_evidence(IDS[start], fingerprint=LAW) == evidence_at(start)
    assert not store.has_evidence(evidence_at(1000).unit.unit_id(LAW), fingerprint=LAW)


def test_a_few_files_stay_as_they_are(tmp_path: Path) -> None:
    store = filled(tmp_path)
    store.compact(fingerprint=LAW)
    assert len(store.evidence_files()) == len(STARTS)


@pytest.mark.parametrize("step", ["publish_patiently", "remove"])
@pytest.mark.parametrize("at", [0, 1, 5])
def test_an_interruption_loses_nothing_and_counts_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, at: int
) -> None:
    store, calls = filled(tmp_path), iter(range(1000))
    whole = getattr(store_module, step)

    def interrupted(*arguments):
        if next(calls) == at:
            raise KeyboardInterrupt
        return whole(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(store_module, step, interrupted)
        with pytest.raises(KeyboardInterrupt):
            store.compact(fingerprint=LAW, at_least=1)
    assert starts_of(store) == list(STARTS)
    store.compact(fingerprint=LAW, at_least=1)
    assert starts_of(store) == list(STARTS)
    assert store.evidence_files() == []


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(["compact", "publish", "publish again"]), max_size=8), st.randoms())
def test_whatever_is_published_and_compacted_in_turn_counts_once(tmp_path_factory, turns, random) -> None:
    store, published = RunStore(tmp_path_factory.mktemp("run")), set()
    for turn in turns:
        if turn == "compact":
            store.compact(fingerprint=LAW, at_least=1)
            continue
        choices = sorted(published) if turn == "publish again" and published else list(STARTS)
        for start in random.sample(choices, min(5, len(choices))):
            store.publish(evidence_at(start), fingerprint=LAW)
            published.add(start)
    assert starts_of(store) == sorted(published)


def test_a_torn_file_stays_out_of_the_shard_and_is_named_at_the_next_start(tmp_path: Path) -> None:
    store = filled(tmp_path)
    torn = store.evidence_path(IDS[50])
    torn.write_bytes(torn.read_bytes()[:-20])
    store.compact(fingerprint=LAW, at_least=1)
    assert store.evidence_files() == [torn]
    evidence, moved = store.sort_out_evidence(fingerprint=LAW, planned=set(IDS.values()))
    assert len(evidence) == len(STARTS) - 1
    assert [path.name.startswith(torn.name) for path, _ in moved] == [True]


def test_a_damaged_shard_is_set_aside_and_its_units_are_missing(tmp_path: Path) -> None:
    store = filled(tmp_path)
    store.compact(fingerprint=LAW, at_least=1)
    shard = store.shard_files()[0]
    content = bytearray(shard.read_bytes())
    content[content.index(b"estimation") + 2] ^= 1
    shard.write_bytes(bytes(content))
    with pytest.raises(store_module.StoreError, match=rf"{shard.name}: not a readable Parquet file"):
        store.all_evidence(fingerprint=LAW)
    lost = [start for start in STARTS if IDS[start].startswith(shard.stem)]
    assert not store.has_evidence(IDS[lost[0]], fingerprint=LAW)
    evidence, moved = store.sort_out_evidence(fingerprint=LAW, planned=set(IDS.values()))
    assert len(evidence) == len(STARTS) - len(lost)
    assert len(moved) == 1
    assert moved[0][0].parent.name == "set-aside"


def test_evidence_that_goes_into_a_shard_while_it_is_read_is_found_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, done = filled(tmp_path), []
    list_shards = store.shard_files

    def compacted_just_after():
        listed = list_shards()
        if not done:
            done.append(True)
            store.compact(fingerprint=LAW, at_least=1)
        return listed

    monkeypatch.setattr(store, "shard_files", compacted_just_after)
    assert starts_of(store) == list(STARTS)


def test_a_store_that_is_away_is_not_taken_for_missing_evidence(tmp_path: Path, monkeypatch) -> None:
    store = filled(tmp_path)

    def away(path):
        raise LocationError("does not answer")

    monkeypatch.setattr(store_module, "read", away)
    with pytest.raises(LocationError):
        store.has_evidence(evidence_at(1000).unit.unit_id(LAW), fingerprint=LAW)


def test_certificates_are_the_same_from_single_files_and_from_shards(tiny_model: Path, tmp_path: Path) -> None:
    config = small_config(tiny_model, "dataset.limit=10")
    listing = listing_of(digits("test", limit=10))
    law = declare(config, listing, models={"model_sha256": "m", "unconditional": "null_label"})
    fingerprint, rng = law.fingerprint, np.random.default_rng(0)
    store = RunStore(tmp_path / "a")
    for unit in plan_units(law, listing.records):
        wins = int(rng.integers(unit.draws // 2, unit.draws + 1))
        votes = {unit.label: wins} | ({(unit.label + 1) % 10: unit.draws - wins} if wins < unit.draws else {})
        store.publish(Evidence(unit, votes, 10, 0.5, 1.0, "cpu"), fingerprint=fingerprint)
    images = [StoredImage(record.image_id, record.label, None) for record in listing.records]

    def certified():
        evidence = store.all_evidence(fingerprint=fingerprint)
        return certify_images(evidence, images, declaration=law, num_classes=10, alpha=None, resume_with="")

    before = certified()
    store.compact(fingerprint=fingerprint, at_least=1)
    assert store.evidence_files() == []
    assert certified() == before


def test_a_plan_of_a_hundred_thousand_units_takes_seconds(tiny_model: Path) -> None:
    config = small_config(tiny_model, "votes.estimation=10000", "votes.per_unit=2")
    listing = listing_of(digits("test", limit=20))
    law = declare(config, listing, models={"model_sha256": "m", "unconditional": "null_label"})
    fingerprint, started = law.fingerprint, time.perf_counter()
    units = {unit.unit_id(fingerprint): unit for unit in plan_units(law, listing.records)}
    assert len(units) == 20 * (5000 + 5)
    assert time.perf_counter() - started < 20


def test_a_folder_copied_while_compacting_is_whole(tmp_path: Path) -> None:
    """A shard and a unit's own file side by side, as an interruption leaves them."""
    store = filled(tmp_path / "run")
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    store.compact(fingerprint=LAW, at_least=1)
    for shard in store.shard_files():
        shutil.copy(shard, tmp_path / "copy" / "evidence" / shard.name)
    assert starts_of(RunStore(tmp_path / "copy")) == list(STARTS)
