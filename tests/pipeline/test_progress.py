import time

from pipeline import progress
from pipeline.progress import VoteProgress, duration
from pipeline.workers.rows import Receipt


def receipt(error: str = "") -> Receipt:
    return Receipt("id", "unit", "image", 0.25, 50, 4000, 1.0, "host", error, False)


def test_durations_are_short_and_whole() -> None:
    assert [duration(seconds) for seconds in (0.4, 61, 3725)] == ["0:00", "1:01", "1:02:05"]


def test_away_from_a_terminal_a_line_appears_every_few_seconds(capsys, monkeypatch) -> None:
    clock = iter(range(0, 1000, 2))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    with VoteProgress(votes=1000, votes_done_before=500) as bar:
        for _ in range(5):
            bar.add(receipt())
        bar.add(receipt(error="NaN"))
    lines = capsys.readouterr().err.splitlines()
    assert 1 <= len(lines) < 5
    assert all(line.startswith("votes ") for line in lines)
    assert "of 1,000" in lines[0]
    assert "evaluations/s" in lines[0]
    assert bar.votes_done == 750
    assert bar.failed == 1
    assert "1 units failed" in bar.rate()


def test_rate_and_time_left_count_only_what_happened_here_since_the_first_unit_began(monkeypatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    bar = VoteProgress(votes=1000, votes_done_before=800)
    now[0] = 30.0  # Ray took 29 s to start, the first unit 1 s
    bar.add(receipt())
    now[0] = 39.0
    bar.add(receipt())
    assert bar.rate() == "800 evaluations/s, 0:10 left"
