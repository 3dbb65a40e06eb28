"""The estimate of the work that is left: exact where all images cost alike, calibrated where they do not."""

import time

import numpy as np
import pytest

from pipeline.certificates.remaining import Left, RemainingWork
from pipeline.certificates.stopping import cells_of
from pipeline.driver.prepare import prepare
from pipeline.locations import location
from pipeline.store.run_store import RunStore
from pipeline.workers.vote_actor import SequentialVoteActor
from tests.pipeline.workers.test_vote_actor import batch_of, declared, receipts_of, settings_of
from tests.support.small_runs import small_config

SIGMA = 0.25


def work_of(draws: list[tuple[int, bool]], *, cells: int, most: int = 1000, early: bool = True) -> RemainingWork:
    work = RemainingWork({SIGMA: cells}, most_draws=most, stops_early=early)
    for number, (count, decided) in enumerate(draws):
        work.add((SIGMA, str(number)), draws=count, evaluations=3 * count, decided=decided)
    return work


def test_without_early_stops_what_is_left_is_what_is_not_drawn() -> None:
    work = work_of([(1000, False), (400, False)], cells=4, early=False)
    assert work.evaluations_left() == Left(3 * 2600, 3 * 2600, 3 * 2600, True)
    assert (work.decided, work.cells) == (1, 4)


def test_before_images_are_decided_it_is_at_most_all_that_may_come() -> None:
    left = work_of([(100, True), (100, False)], cells=4).evaluations_left()
    assert left == Left(3 * 2900, 3 * 2900, 3 * 2900, False)
    assert left.text() == "at most 2:25:00 left"


def test_images_that_all_took_the_same_tell_what_the_others_take() -> None:
    left = work_of([(200, True)] * 10, cells=30).evaluations_left()
    assert (left.expected, left.low, left.high) == pytest.approx((3 * 20 * 200,) * 3)
    assert left.text() == "3:20:00 left"


def test_an_image_under_way_needs_more_than_it_has() -> None:
    """Half of the decided took 100 draws, half 500: one with 100 draws and no decision is in the second half."""
    left = work_of([(100, True), (500, True)] * 50 + [(100, False)], cells=101).evaluations_left()
    assert left.expected == pytest.approx(3 * 400)


def test_an_image_with_more_draws_than_any_decided_one_may_need_none_or_all() -> None:
    left = work_of([(100, True)] * 10 + [(300, False)], cells=11).evaluations_left()
    assert (left.low, left.expected, left.high) == pytest.approx((0, 3 * 350, 3 * 700))


def test_a_level_that_has_not_begun_costs_as_much_a_draw_as_the_others() -> None:
    work = RemainingWork({0.25: 10, 0.5: 1}, most_draws=100, stops_early=True)
    for number in range(10):
        work.add((0.25, str(number)), draws=50, evaluations=100, decided=True)
    assert work.evaluations_left() == Left(200, 200, 200, False)
    assert RemainingWork({0.25: 1}, most_draws=10, stops_early=True).evaluations_left().expected == 10
    assert RemainingWork({}, most_draws=10, stops_early=True).evaluations_left() == Left(0, 0, 0, True)


@pytest.mark.parametrize("done", [0.1, 0.5, 0.9])
def test_nine_ranges_in_ten_hold_what_a_run_then_takes(done: float) -> None:
    """Eight images at a time, of a law that is far from normal: those that take long are under way more often."""
    rng = np.random.default_rng(3)
    held, ratios = 0, []
    for _ in range(100):
        takes = np.where(rng.random(200) < 0.2, 1000, 100 * rng.geometric(0.4, 200).clip(max=9))
        drawn = np.zeros(200, dtype=int)
        while (drawn == takes).sum() < 200 * done:
            drawn[rng.choice(np.flatnonzero(drawn < takes)[:8])] += 100
        work = RemainingWork({SIGMA: 200}, most_draws=1000, stops_early=True)
        for number in np.flatnonzero(drawn):
            draws = int(drawn[number])
            work.add((SIGMA, str(number)), draws=draws, evaluations=draws, decided=draws == takes[number])
        left, truth = work.evaluations_left(), (takes - drawn).sum()
        held += left.low <= truth <= left.high
        ratios.append(left.expected / truth)
    assert held >= 0.8 * 100
    assert np.mean(ratios) == pytest.approx(1, abs=0.1)


def test_large_runs_take_no_time() -> None:
    rng = np.random.default_rng(0)
    work = RemainingWork({SIGMA: 150_000}, most_draws=10_000, stops_early=True)
    for number in range(50_000):
        work.add((SIGMA, str(number)), draws=int(rng.integers(1, 10_000)), evaluations=1, decided=number % 50 != 0)
    began = time.process_time()
    work.evaluations_left()
    assert time.process_time() - began < 2


def test_receipts_and_evidence_say_the_same(tiny_model, tmp_path) -> None:
    changes = ["certificate.method=sequential", "certificate.radii=[0.0, 0.1]", "votes.estimation=200"]
    config = small_config(tiny_model, "dataset.limit=3", "votes.per_unit=50", *changes)
    run = declared(config, tmp_path / "run")
    first = {unit.cell: unit for unit in run.units.values() if unit.phase == "selection" and not unit.draw_start}
    store = RunStore(location(tmp_path / "run"))

    def work_now() -> RemainingWork:
        evidence = store.all_evidence(fingerprint=run.fingerprint)
        cells = cells_of(run.declaration, run.records, evidence, num_classes=run.num_classes)
        return RemainingWork.of_evidence(cells, evidence, stops_early=True)

    live = work_now()
    assert live.decided == 0
    actor = SequentialVoteActor(settings_of(run, tmp_path / "run"))
    for receipt in receipts_of(actor, batch_of(run, first.values())):
        live.add(
            (receipt["sigma_pixel"], receipt["image_id"]),
            draws=receipt["draws"],
            evaluations=receipt["evaluations"],
            decided=receipt["decided"],
        )
    after = work_now()
    assert live.begun == after.begun
    assert live.decided == after.decided == after.cells > 0
    assert after.evaluations_left() == Left(0, 0, 0, True)
    assert prepare(config, location(tmp_path / "run")).fingerprint == run.fingerprint
