from collections import deque
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ndc_core.certificates.cohen import Cohen
from ndc_core.certificates.sequential import Sequential
from ndc_core.voting import count_votes
from pipeline.certificates.stopping import cells_of
from pipeline.declaration.config import RunConfig
from pipeline.declaration.declaration import Declaration
from pipeline.declaration.units import draw_ranges
from pipeline.driver.prepare import PreparedRun, prepare
from pipeline.locations import LocationError, location
from pipeline.store.run_store import RunStore
from pipeline.workers.compute import pick_device
from pipeline.workers.rows import RECEIPT_COLUMNS, rows_of, unit_row
from pipeline.workers.unit_groups import ImageSchedule
from pipeline.workers.vote_actor import SequentialVoteActor, VoteActor, VoterSettings
from tests.pipeline.certificates.test_stopping import LAW, TERMS, cell, item
from tests.support.small_runs import digits, small_config


def settings_of(run, folder: Path) -> VoterSettings:
    return VoterSettings(run.config, str(folder), run.declaration, run.fingerprint, num_classes=run.num_classes)


def declared(config: RunConfig, folder: Path) -> PreparedRun:
    """A prepared run whose folder has its images."""
    run = prepare(config, location(folder))
    RunStore(folder).pictures.write(digits("test", limit=config.dataset.limit), expected=run.records)
    return run


def actor_for(model: Path, folder: Path):
    run = declared(small_config(model), folder)
    return run, VoteActor(settings_of(run, folder))


def batch_of(run, units) -> dict[str, np.ndarray]:
    record_of = {record.image_id: record for record in run.records}
    rows = [unit_row(unit, record_of[unit.image_id]) for unit in units]
    return {name: np.array([row[name] for row in rows], dtype=object) for name in rows[0]}


def receipts_of(actor: VoteActor, batch: dict[str, np.ndarray]) -> list[dict]:
    return [row for columns in actor(batch) for row in rows_of(columns)]


def test_a_units_evidence_is_the_votes_of_its_draws(tiny_model: Path, tmp_path: Path) -> None:
    run, actor = actor_for(tiny_model, tmp_path)
    unit_id, unit = list(run.units.items())[2]
    (columns,) = actor(batch_of(run, [unit]))
    assert set(columns) == set(RECEIPT_COLUMNS)
    receipt = next(rows_of(columns))
    evidence = list(RunStore(tmp_path).all_evidence(fingerprint=run.fingerprint))
    direct = count_votes(
        actor.classifier,
        digits("test")[0].image,
        sigma_pixel=0.25,
        noise="integer",
        seed=0,
        image_id=unit.image_id,
        phase="estimation",
        draws=range(unit.draw_start, unit.draw_stop),
    )
    assert [item.unit for item in evidence] == [unit]
    assert evidence[0].votes == {c: v for c, v in enumerate(direct.votes.tolist()) if v}
    assert evidence[0].evaluations == direct.evaluations == receipt["evaluations"]
    assert receipt["unit_id"] == unit_id
    assert not receipt["error"]


def test_what_is_published_is_not_computed_again(tiny_model: Path, tmp_path: Path, monkeypatch) -> None:
    run, actor = actor_for(tiny_model, tmp_path)
    batch = batch_of(run, list(run.units.values())[:2])
    receipts_of(actor, batch)
    monkeypatch.setattr(actor, "_publish", lambda *_, **__: pytest.fail("computed again"))
    again = receipts_of(actor, batch)
    assert [receipt["evaluations"] for receipt in again] == [0, 0]
    assert not any(receipt["error"] for receipt in again)


def test_waves_are_followed_to_the_decision_and_taken_up_again(tiny_model: Path, tmp_path: Path) -> None:
    settings = ("certificate.method=sequential", "votes.estimation=400", "votes.per_unit=60", "dataset.limit=1")
    run = declared(small_config(tiny_model, *settings), tmp_path)
    first = next(iter(run.units.values()))
    receipts = receipts_of(SequentialVoteActor(settings_of(run, tmp_path)), batch_of(run, [first]))
    store = RunStore(tmp_path)
    known = {str(item.unit): item for item in store.all_evidence(fingerprint=run.fingerprint)}
    assert len(receipts) == len(known) >= 3
    (cell,) = cells_of(run.declaration, run.records, known.values(), num_classes=10).values()
    assert cell.state().decided
    assert not run.missing(store.all_evidence(fingerprint=run.fingerprint))

    kept, *lost = known.values()
    for evidence in lost:
        store.evidence_path(evidence.unit.unit_id(run.fingerprint)).unlink()
    again = receipts_of(SequentialVoteActor(settings_of(run, tmp_path)), batch_of(run, [first]))
    assert [row["unit"] for row in again] == [row["unit"] for row in receipts]
    assert sum(row["evaluations"] == 0 for row in again) == 1, "what was published is not computed again"
    recomputed = {str(item.unit): item for item in store.all_evidence(fingerprint=run.fingerprint)}
    assert {name: item.votes for name, item in recomputed.items()} == {n: item.votes for n, item in known.items()}
    assert recomputed[str(kept.unit)] == kept


def units_of(schedule: ImageSchedule) -> list[str]:
    return [
        f"{unit.sigma_pixel} {unit.phase} {unit.draw_start}" for group in schedule.next_groups() for unit in group.units
    ]


def test_all_units_up_to_the_next_look_are_drawn_at_once_and_none_beyond_it() -> None:
    schedule = ImageSchedule(1, None, [cell()], deque(draw_ranges(LAW, 0.25)))  # type: ignore[arg-type]
    assert units_of(schedule) == ["0.25 selection 0"]
    assert units_of(schedule) == [], "which class estimation is about is not known yet"
    schedule.take(item("selection", 0, 10))
    assert units_of(schedule) == ["0.25 estimation 0", "0.25 estimation 60"], "the first look is at 100 draws"
    schedule.take(item("estimation", 60, 100))
    assert units_of(schedule) == []
    schedule.take(item("estimation", 0, 60))
    assert units_of(schedule) == ["0.25 estimation 100"]


def test_levels_of_a_path_go_on_together_when_the_look_of_each_is_known() -> None:
    early, late = Cohen(replace(TERMS, votes=100)), Sequential(TERMS)
    cells = [cell(method=early), replace(cell(method=late), sigma_pixel=0.5)]
    pieces = deque([("selection", 0, 10), ("estimation", 0, 100), ("estimation", 100, 150)])
    schedule = ImageSchedule(1, None, cells, pieces)  # type: ignore[arg-type]
    assert units_of(schedule) == ["0.25 selection 0", "0.5 selection 0"]
    of_late = {
        0.5: lambda evidence: replace(evidence, unit=replace(evidence.unit, sigma_pixel=0.5)),
        0.25: lambda evidence: evidence,
    }
    for at in of_late.values():
        schedule.take(at(item("selection", 0, 10)))
    assert units_of(schedule) == ["0.25 estimation 0", "0.5 estimation 0"]
    schedule.take(of_late[0.25](item("estimation", 0, 100)))
    assert units_of(schedule) == [], "the other level may or may not need what comes next"
    schedule.take(of_late[0.5](item("estimation", 0, 100)))
    assert units_of(schedule) == ["0.5 estimation 100"]


def test_a_unit_with_nan_fails_by_name_and_the_next_one_goes_on(tiny_model: Path, tmp_path: Path) -> None:
    run, actor = actor_for(tiny_model, tmp_path)
    good = actor.classifier.denoiser
    bad_unit, good_unit = list(run.units.values())[:2]
    rows = []

    class NanOnOneRow:
        """NaN for the first row that it ever sees, which is the bad unit's, whenever that row comes again."""

        image_shape, num_classes = good.image_shape, good.num_classes

        def __call__(self, z, sigma_model, label):
            rows.extend([] if rows else [z[0]])
            bad = (z == rows[0]).flatten(1).all(1)
            return torch.where(bad[:, None, None, None], float("nan"), good(z, sigma_model, label))

    object.__setattr__(actor.classifier, "denoiser", NanOnOneRow())
    failed, done = receipts_of(actor, batch_of(run, [bad_unit, good_unit]))
    assert "NonFiniteScoreError" in failed["error"]
    assert f"image {bad_unit.image_id}, sigma_pixel 0.25, selection draw" in failed["error"]
    assert not done["error"]
    store = RunStore(tmp_path)
    assert [item.unit for item in store.all_evidence(fingerprint=run.fingerprint)] == [good_unit]
    assert [failure["unit"] for failure in store.failures()] == [str(bad_unit)]


def test_a_store_that_is_away_fails_the_unit_and_not_the_actor(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, actor = actor_for(tiny_model, tmp_path)
    units = list(run.units.values())[:2]
    receipts_of(actor, batch_of(run, units[:1]))

    def away(*arguments: object) -> None:
        raise LocationError("s3://bucket does not answer")

    for names in (("publish", "publish_patiently"), ("publish", "exists")):
        with monkeypatch.context() as patch:
            for name in names:
                patch.setattr(f"pipeline.store.run_store.{name}", away)
            (receipt,) = receipts_of(actor, batch_of(run, units[1:]))
        assert receipt["error"] == "LocationError: s3://bucket does not answer"
    receipts = receipts_of(actor, batch_of(run, units))
    assert not any(receipt["error"] for receipt in receipts)


def test_an_actor_refuses_another_model_than_the_runs(tiny_model: Path, tmp_path: Path) -> None:
    run, _ = actor_for(tiny_model, tmp_path)
    with pytest.raises(ValueError, match="not the one this run was started with"):
        VoteActor(
            replace(
                settings_of(run, tmp_path),
                declaration=Declaration({**run.declaration.recorded, "model_sha256": "0" * 64}),
            )
        )


def test_gpus_that_are_not_there_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert pick_device("cpu") == pick_device("auto") == "cpu"
    with pytest.raises(ValueError, match=r"compute.device is 'cuda', but torch .* sees no CUDA device; .* 'cpu'"):
        pick_device("cuda")


def test_actors_that_share_a_gpu_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    shares: list[float] = []
    monkeypatch.setattr("pipeline.workers.compute.why_no_cuda", lambda: "")
    monkeypatch.setattr("torch.cuda.set_per_process_memory_fraction", shares.append)
    assert pick_device("auto", share=1.0) == pick_device("cuda", share=0.5) == "cuda"
    assert shares == [0.5]
