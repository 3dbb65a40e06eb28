import time

from pipeline.certificates.remaining import RemainingWork
from pipeline.driver.vote_progress import VoteProgress
from pipeline.workers.rows import Receipt


def receipt(image: str = "image", *, draws: int = 50, error: str = "", decided: bool = False) -> Receipt:
    return Receipt("id", "unit", image, 0.25, draws, 80 * draws, 1.0, "host", error, False, decided)


def work(cells: int = 20, *, early: bool = False) -> RemainingWork:
    return RemainingWork({0.25: cells}, most_draws=50, stops_early=early)


def test_away_from_a_terminal_a_line_appears_every_few_seconds(capsys, monkeypatch) -> None:
    clock = iter(range(0, 1000, 2))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    with VoteProgress(work()) as bar:
        for number in range(5):
            bar.add(receipt(str(number)))
        bar.add(receipt(error="NaN"))
    lines = capsys.readouterr().err.splitlines()
    assert 1 <= len(lines) < 6
    assert lines[0].partition(",")[0] in (
        "1 of 20 images and noise levels decided",
        "2 of 20 images and noise levels decided",
    )
    assert "evaluations/s" in lines[0]
    assert bar.failed == 1
    assert "1 units failed" in bar.rate()


def test_rate_and_time_left_count_only_what_happened_here_since_the_first_unit_began(monkeypatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    before = work(20)
    for number in range(16):
        before.add((0.25, f"before-{number}"), draws=50, evaluations=4000, decided=False)
    bar = VoteProgress(before)
    assert bar.rate() == "starting"
    now[0] = 30.0  # Ray took 29 s to start, the first unit 1 s
    bar.add(receipt("a"))
    now[0] = 39.0
    bar.add(receipt("b"))
    assert bar.rate() == "800 evaluations/s, 0:10 left"


def test_where_certificates_may_stop_early_the_time_left_has_a_range_once_images_are_decided(monkeypatch) -> None:
    now = [1.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    bar = VoteProgress(work(100, early=True))
    bar.add(receipt("0", draws=10, decided=True))
    assert bar.rate() == "800 evaluations/s, at most 8:15 left"
    for number in range(1, 20):
        now[0] += 1
        bar.add(receipt(str(number), draws=10 + number % 2 * 30, decided=True))
    assert "at most" not in bar.rate()
    assert " left (" in bar.rate()
    assert bar.work.decided == 20


def test_with_a_budget_the_time_left_is_the_rest_of_it_unless_the_work_ends_before(monkeypatch) -> None:
    now = [1.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "time", lambda: 1e9 + now[0])

    def left(budget: float) -> str:
        now[0] = 1.0
        bar = VoteProgress(work(20), begin_until=1e9 + budget)
        bar.add(receipt("a"))
        now[0] = 9.0
        bar.add(receipt("b"))
        return bar.rate()

    assert left(10_000.0) == "889 evaluations/s, 1:21 left"
    assert left(69.0) == "889 evaluations/s, 1:00 of the budget left"
    assert left(8.0) == "889 evaluations/s, finishing images that are begun"
