import io
import sys
import time

import pytest

from pipeline.progress import counting, duration


def test_durations_are_short_and_whole() -> None:
    assert [duration(seconds) for seconds in (0.4, 61, 3725)] == ["0:00", "1:01", "1:02:05"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Gone(Terminal):
    def write(self, text: str) -> int:
        raise OSError("the terminal is gone")


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_of_work_that_ends_soon_nothing_is_shown(capsys, seconds: list[float]) -> None:
    with counting("certificates", 40) as count:
        for _ in range(40):
            seconds[0] += 0.1
            count()
    assert capsys.readouterr().err == ""


def test_away_from_a_terminal_long_work_has_a_line_every_few_seconds(capsys, seconds: list[float]) -> None:
    with counting("certificates", 40) as count:
        for _ in range(40):
            seconds[0] += 0.5
            count()
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"certificates {done} of 40, 0:{(40 - done) // 2:02} left" for done in (10, 20, 30, 40)]


def test_on_a_terminal_long_work_has_a_bar_that_goes_with_it(monkeypatch, seconds: list[float]) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with counting("certificates", 40) as count:
        for _ in range(20):
            seconds[0] += 0.5
            count()
    assert "certificates" in terminal.getvalue()
    assert "20 of 40, 0:10 left" in terminal.getvalue()


@pytest.mark.parametrize("terminal", [Gone(), None])
def test_a_terminal_that_is_gone_does_not_end_the_work(monkeypatch, seconds: list[float], terminal: object) -> None:
    monkeypatch.setattr(sys, "stderr", terminal)
    done = 0
    with counting("certificates", 40) as count:
        for _ in range(40):
            seconds[0] += 2.0
            count()
            done += 1
    assert done == 40
