"""Whatever fails beside the votes, a terminal, a log, a metric, MLflow, the run goes on, and says so once."""

import json
import string
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.driver import certify as run_module
from pipeline.driver import tracked_votes, vote_progress
from pipeline.driver.certify import certify_run
from pipeline.driver.prepare import PreparedRun, prepare
from pipeline.driver.tracked_votes import TrackedVotes
from pipeline.driver.vote_progress import VoteProgress
from pipeline.locations import location
from pipeline.report.provenance import NOTHING_KNOWN
from pipeline.side_channel import Listeners, SideChannel, in_time, safely
from pipeline.store import event_log as run_log
from pipeline.store import lease as lease_module
from pipeline.store.evidence import EvidenceTable
from pipeline.store.run_store import RunStore
from pipeline.workers.ray_pool import MOST_OF_A_LABEL, Metrics, label_of
from pipeline.workers.rows import Receipt
from tests.support.in_process import replace_ray, rows_through_an_actor
from tests.support.small_runs import small_config


class Panic(BaseException):
    """What a library may raise, not even an Exception."""


def panic(*_: object, **__: object) -> None:
    raise Panic("broken\nwith many\nlines")


def quiet(*_: object, **__: object) -> None:
    pass


def test_a_side_channel_says_its_first_failure_in_one_line_and_lets_ctrl_c_through() -> None:
    said: list[str] = []
    channel = SideChannel("the log", said.append)
    for _ in range(3):
        with channel:
            panic()
    assert said == ["the log failed, and the run goes on without: Panic: broken"]
    with pytest.raises(KeyboardInterrupt), channel:
        raise KeyboardInterrupt
    with SideChannel("the log", panic):
        panic()
    safely(panic)("a line")


def test_a_listener_that_cannot_even_start_is_left_out_and_the_others_are_told() -> None:
    heard: list[str] = []

    class Hears:
        def __enter__(self) -> None:
            heard.append("start")

        def __exit__(self, *_: object) -> None:
            heard.append("end")
            panic()

        def add(self, message: str) -> None:
            heard.append(message)
            panic()

    said: list[str] = []
    with Listeners[str]({"a": panic, "b": Hears}, say=said.append) as listeners:
        for message in ("1", "2"):
            listeners.add(message)
    assert heard == ["start", "1", "2", "end"]
    assert [line.partition(" failed")[0] for line in said] == ["a", "b"]


def test_what_takes_too_long_to_tell_is_not_waited_for() -> None:
    began = time.monotonic()
    with pytest.raises(TimeoutError, match=r"no answer in 0\.1 s"):
        in_time(threading.Event().wait, seconds=0.1)
    assert time.monotonic() - began < 2
    with pytest.raises(Panic):
        in_time(panic)
    in_time(quiet)


NAMES = ["runs/größe", "a\nb", "a\tb\x01", "x" * 255, f"{'x' * 255}y", "r\udcff", "ru%C3", "日本/run"]


def test_every_run_folder_has_a_metrics_label_of_its_own_that_ray_takes() -> None:
    labels = [label_of(name) for name in NAMES]
    assert len(set(labels)) == len(NAMES)
    assert all(len(label) <= MOST_OF_A_LABEL and set(label) <= set(string.printable[:95]) for label in labels)
    for usual in ("runs/fast", "s3://bucket/runs/my run_2", "/tmp/a=b,c"):
        assert label_of(usual) == usual
    assert Metrics("runs/größe").tags == {"run": "runs/gr%C3%B6%C3%9Fe"}


class StubTracker:
    """An MLflow tracker that remembers, or fails."""

    link, how_to_open = "http://link", None

    def __init__(self, *, fails: str = "") -> None:
        self.told: list[str] = []
        self.fails = fails

    def _tell(self, what: str) -> None:
        self.told.append(what)
        if self.fails == what:
            panic()

    def progress(self, metrics: dict[str, int], *, step: int) -> None:
        self.metrics, self.step = metrics, step
        self._tell("progress")

    def stopped(self, *, failed: bool) -> None:
        self._tell("failed" if failed else "stopped")

    def finish(self, report: object, artifacts: list[object]) -> None:
        self._tell("finish")


@pytest.fixture
def run(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PreparedRun:
    """1 image, 3 units, 50 votes, drawn in this process."""
    monkeypatch.chdir(tmp_path)
    replace_ray(monkeypatch)
    monkeypatch.setattr(run_module, "tracker_of", lambda run: StubTracker())
    monkeypatch.setattr(run_module, "reduce_and_report", units_kept)
    return prepare(small_config(tiny_model, "dataset.limit=1"), location(tmp_path / "größe\n1"))


def units_kept(store: RunStore, **_: object) -> SimpleNamespace:
    units = len(store.all_evidence(fingerprint=store.manifest()["fingerprint"]))
    return SimpleNamespace(units=units, provenance=NOTHING_KNOWN)


def fail_with_mlflow(when: str) -> Callable[[pytest.MonkeyPatch], None]:
    return lambda patch: patch.setattr(run_module, "tracker_of", lambda run: StubTracker(fails=when))


def fail_with_the_lease(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(lease_module, "RENEWED_EVERY_SECONDS", 0.001)
    patch.setattr(lease_module.Lease, "renew", panic)


def fail_at(place: object, *names: str) -> Callable[[pytest.MonkeyPatch], None]:
    def break_it(patch: pytest.MonkeyPatch) -> None:
        for name in names:
            patch.setattr(place, name, panic)

    return break_it


BREAKS: dict[str, tuple[str, Callable[[pytest.MonkeyPatch], None]]] = {
    "metrics": ("Ray's metrics", fail_at(Metrics, "add")),
    "no progress display": ("the progress display", fail_at(VoteProgress, "__enter__")),
    "progress display": ("the progress display", fail_at(VoteProgress, "add", "__exit__")),
    "a log that cannot be written": ("the run's log", fail_at(run_log, "publish")),
    "a line that cannot be made": ("the run's log", fail_at(run_log, "line")),
    "no MLflow": ("MLflow", fail_at(run_module, "tracker_of")),
    "MLflow while it votes": ("progress in MLflow", fail_with_mlflow("progress")),
    "MLflow at the end": ("MLflow", fail_with_mlflow("finish")),
    "the lease": ("the renewal of the run's lease", fail_with_the_lease),
    "letting go": ("letting go of the run", fail_at(lease_module, "remove")),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_side_channel_that_fails_is_said_once_and_the_run_ends_as_it_would(
    run: PreparedRun, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    what, break_it = BREAKS[name]
    break_it(monkeypatch)
    said: list[str] = []
    assert certify_run(run, say=said.append)[0].units == 3
    assert said == [f"{what} failed, and the run goes on without: Panic: broken"]


def test_a_run_goes_on_without_a_terminal(run: PreparedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone:
        def isatty(self) -> bool:
            return False

        write = flush = panic

    monkeypatch.setattr(vote_progress, "SECONDS_BETWEEN_LINES", -1)
    with monkeypatch.context() as patch:
        patch.setattr("sys.stderr", Gone())
        assert certify_run(run, say=panic)[0].units == 3


def test_the_failure_of_a_run_is_what_is_raised_whatever_else_fails(
    run: PreparedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    fail_with_mlflow("stopped")(monkeypatch)
    monkeypatch.setattr(run_module, "map_over_actors", stop)
    said: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        certify_run(run, say=said.append)
    assert said == ["MLflow failed, and the run goes on without: Panic: broken"]


def receipt(image_id: str, *, draws: int = 20, error: str = "", seconds: float = 1.0) -> Receipt:
    return Receipt("id", "unit", image_id, 0.25, draws, 10 * draws, seconds, "host", error, False)


def test_mlflow_is_told_how_far_a_run_came_when_it_is_stopped() -> None:
    tracker, said = StubTracker(), []
    with TrackedVotes(tracker, EvidenceTable([]), say=said.append) as tracked:
        for message in (receipt("a"), receipt("a"), receipt("b"), receipt("c", error="x"), receipt("d", seconds=0.0)):
            tracked.add(message)
    assert (tracker.told, tracker.step, said) == (["progress"], 60, [])
    assert tracker.metrics == {
        "progress/units": 3,
        "progress/votes": 60,
        "progress/evaluations": 600,
        "progress/images_begun": 2,
        "progress/units_failed": 1,
    }


def test_mlflow_is_told_what_the_complete_images_prove_while_votes_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracked_votes, "SECONDS_BETWEEN_POINTS", 0.01)
    monkeypatch.setattr(tracked_votes, "SECONDS_BETWEEN_RESULTS", 0.0)
    told: list[dict[str, float]] = []
    both = threading.Event()

    class Told(StubTracker):
        def progress(self, metrics: Mapping[str, float], *, step: int) -> None:
            told.append(dict(metrics))
            if len(told) > 1:
                both.set()

    with TrackedVotes(Told(), EvidenceTable([]), results=lambda: {"partial/images": 1.0}, say=quiet) as tracked:
        tracked.add(receipt("a"))
        assert both.wait(30)
    assert "progress/votes" in told[0]
    assert told[1] == {"partial/images": 1.0}


def test_a_stopped_run_tells_mlflow_what_it_has_and_that_it_was_stopped(
    run: PreparedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = StubTracker()
    monkeypatch.setattr(run_module, "tracker_of", lambda run: tracker)

    def stopped(*arguments: object, **options: object):
        for number, row in enumerate(rows_through_an_actor(*arguments, **options)):
            if number == 1:
                raise KeyboardInterrupt
            yield row

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "map_over_actors", stopped)
        with pytest.raises(KeyboardInterrupt):
            certify_run(run, say=quiet)
    assert (tracker.told, tracker.step) == (["progress", "stopped"], 20)
    certify_run(run, say=quiet)
    assert tracker.told[2:] == ["progress", "finish"]
    assert tracker.step == 50
    logged = [
        json.loads(line) for path in sorted((run.folder / "logs").glob("*")) for line in path.read_text().splitlines()
    ]
    assert [line["event"] for line in logged] == ["start", "unit", "end", "note", "start", "unit", "end"]


def test_a_slow_mlflow_slows_no_votes() -> None:
    class Slow(StubTracker):
        def progress(self, metrics: dict[str, int], *, step: int) -> None:
            threading.Event().wait()

    began = time.monotonic()
    with TrackedVotes(Slow(), EvidenceTable([]), say=quiet) as tracked:
        tracked.add(receipt("a"))
    assert time.monotonic() - began < 5
