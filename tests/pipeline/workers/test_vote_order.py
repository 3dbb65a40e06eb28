"""The order in which an actor takes its images; neither the store nor the last image keeps it waiting."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ndc_core.models import forward_passes as passes
from pipeline.driver.prepare import PreparedRun
from pipeline.locations import location
from pipeline.store.run_store import RunStore
from pipeline.workers import vote_actor
from pipeline.workers.rows import Receipt
from pipeline.workers.vote_actor import SequentialVoteActor
from tests.pipeline.workers.test_vote_actor import declared, settings_of
from tests.support.small_runs import small_config

SEQUENTIAL = ("certificate.method=sequential", "votes.selection=10", "votes.estimation=100", "compute.rows_per_pass=32")


def run_of(model: Path, folder: Any, *, images: int) -> PreparedRun:
    return declared(small_config(model, *SEQUENTIAL, f"dataset.limit={images}", "dataset.every=1"), folder)


def receipts_of(run: PreparedRun, folder: Any) -> Iterator[Receipt]:
    """The receipts of all images and noise levels, from one call of an actor."""
    record_of = {record.image_id: record for record in run.records}
    first = {unit.cell: unit for unit in reversed(list(run.units.values()))}
    rows = sorted(first.values(), key=lambda unit: [*record_of].index(unit.image_id))
    return SequentialVoteActor(settings_of(run, folder)).receipts((unit, record_of[unit.image_id]) for unit in rows)


@pytest.fixture
def rows_of_passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each pass has, without those that pad it."""
    rows, own = list[int](), passes._Gatherer._evaluate

    def evaluate(gatherer: Any, parts: Any) -> Any:
        rows.append(sum(window.stop - window.start for _, window in parts))
        return own(gatherer, parts)

    monkeypatch.setattr(passes._Gatherer, "_evaluate", evaluate)
    return rows


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadPoolExecutor]:
    """The store's work is done beside the votes, as on a GPU."""
    with ThreadPoolExecutor(8) as pool:
        monkeypatch.setattr(vote_actor, "store_work", lambda device: (pool, 16))
        yield pool


def test_images_are_finished_one_after_the_other_and_passes_are_full_until_the_last(
    tiny_model: Path, tmp_path: Path, rows_of_passes: list[int]
) -> None:
    run = run_of(tiny_model, tmp_path, images=16)
    decided = [receipt.image_id for receipt in receipts_of(run, tmp_path) if receipt.decided]
    order = [record.image_id for record in run.records]
    assert sorted(decided) == sorted(order)
    displaced = [abs(place - order.index(image_id)) for place, image_id in enumerate(decided)]
    assert sum(displaced) / len(displaced) < len(order) / 8, "an image waited for others that began after it"
    half = rows_of_passes[: len(rows_of_passes) // 2]
    assert sum(half) > 0.97 * 32 * len(half), "passes were padded while images waited"


def test_votes_are_the_same_wherever_the_stores_work_is_done(
    tiny_model: Path, tmp_path: Path, s3: str, request: pytest.FixtureRequest
) -> None:
    votes_of_runs = []
    for name, folder in (("at once", tmp_path), ("in threads", tmp_path / "t"), ("on a bucket", location(f"{s3}/run"))):
        if name == "in threads":
            folder.mkdir()
            request.getfixturevalue("threads")
        run = run_of(tiny_model, folder, images=4)
        receipts = list(receipts_of(run, folder))
        store = RunStore(folder)
        votes_of_runs.append({str(item.unit): item.votes for item in store.all_evidence(fingerprint=run.fingerprint)})
        assert sorted(votes_of_runs[-1]) == sorted(receipt.unit for receipt in receipts), name
        assert not run.missing(store.all_evidence(fingerprint=run.fingerprint)), name
        again = list(receipts_of(run, folder))
        assert sorted(votes_of_runs[-1]) == sorted(receipt.unit for receipt in again), name
        assert not any(receipt.evaluations or receipt.error for receipt in again), f"{name}: drawn again"
    assert votes_of_runs[0] == votes_of_runs[1] == votes_of_runs[2]


def test_votes_go_on_while_the_store_writes(
    tiny_model: Path, tmp_path: Path, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first write ends only when other images' units are being written: an actor that waits for it never ends."""
    run, published, first = run_of(tiny_model, tmp_path, images=4), RunStore.publish, list[str]()
    others = threading.Event()

    def publish(store: RunStore, item: Any, *, fingerprint: str) -> None:
        first.append(item.unit.image_id)
        if len(first) == 1:
            assert others.wait(60), "nothing was voted on while the store wrote"
        elif item.unit.image_id != first[0]:
            others.set()
        published(store, item, fingerprint=fingerprint)

    monkeypatch.setattr(RunStore, "publish", publish)
    assert not any(receipt.error for receipt in receipts_of(run, tmp_path))


def test_a_unit_that_cannot_be_written_has_no_receipt_but_an_error_and_the_others_go_on(
    tiny_model: Path, tmp_path: Path, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, published = run_of(tiny_model, tmp_path, images=4), RunStore.publish
    lost = run.records[1].image_id

    def publish(store: RunStore, item: Any, *, fingerprint: str) -> None:
        if item.unit.image_id == lost and item.unit.phase == "selection":
            raise OSError("the disk says no")
        published(store, item, fingerprint=fingerprint)

    monkeypatch.setattr(RunStore, "publish", publish)
    failed = [receipt for receipt in receipts_of(run, tmp_path) if receipt.error]
    assert [(receipt.image_id, "the disk says no" in receipt.error) for receipt in failed] == [(lost, True)]
    missing = run.missing(RunStore(tmp_path).all_evidence(fingerprint=run.fingerprint)).values()
    assert {unit.image_id for unit in missing} == {lost}
