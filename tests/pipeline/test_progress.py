from pipeline.progress import duration


def test_durations_are_short_and_whole() -> None:
    assert [duration(seconds) for seconds in (0.4, 61, 3725)] == ["0:00", "1:01", "1:02:05"]
