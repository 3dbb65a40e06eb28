"""The resources that actors use: sampled rarely, summed over actors, and never delaying a vote."""

import threading
import time
from collections.abc import Mapping

import pytest

from pipeline.driver import tracked_votes
from pipeline.driver.tracked_votes import TrackedVotes
from pipeline.store.evidence import EvidenceTable
from pipeline.workers import usage as usage_module
from pipeline.workers.rows import Receipt
from pipeline.workers.usage import ActorsUsage, Usage, UsageMeter, usage


def test_a_process_knows_its_usage() -> None:
    before = usage("cpu")
    ended = time.process_time() + 0.2
    while time.process_time() < ended:
        pass
    after = usage("cpu")
    assert 0.1 < after.cpu_seconds - before.cpu_seconds < 10
    assert 1e7 < after.memory_bytes < 1e11
    assert after.gpu_memory_bytes is None
    assert Usage.parse(after.text()) == after


def test_samples_are_rare_and_a_system_that_reports_nothing_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    meter = UsageMeter("cpu")
    assert meter.text()
    assert meter.text() == ""

    def broken(device: str) -> Usage:
        raise RuntimeError("no /proc")

    monkeypatch.setattr(usage_module, "usage", broken)
    assert UsageMeter("cpu").text() == ""


def sample(process: str, unix: float, cpu: float, **gpu: float) -> str:
    return Usage(process, unix, cpu, 2_000_000_000, **gpu).text()


def test_actors_are_summed_by_their_last_samples_and_forgotten_when_they_are_silent() -> None:
    actors = ActorsUsage()
    assert actors.metrics(now_unix=0) == {}
    for text in (
        sample("a", 0, 5),
        sample("a", 10, 20),
        sample("b", 0, 0, gpu_memory_bytes=3_000_000_000, gpu_percent=80.0),
        sample("b", 10, 5, gpu_memory_bytes=4_000_000_000, gpu_percent=90.0),
    ):
        actors.add(text)
    assert actors.metrics(now_unix=20) == {
        "system/actors": 2,
        "system/memory_gb": 4.0,
        "system/cpu_cores": 2.0,
        "system/gpu_memory_gb": 4.0,
        "system/gpu_percent": 90.0,
    }
    assert actors.metrics(now_unix=10_000) == {}


def test_mlflow_gets_the_usage_of_actors_while_they_vote(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracked_votes, "SECONDS_BETWEEN_POINTS", 0.01)
    logged, heard = dict[str, float](), threading.Event()

    class Tracker:
        def progress(self, metrics: Mapping[str, float], *, step: int) -> None:
            logged.update(metrics)
            heard.set()

    said: list[str] = []
    with TrackedVotes(Tracker(), EvidenceTable([]), say=said.append) as tracked:
        now = time.time()
        receipt = Receipt("id", "unit", "a", 0.25, 20, 200, 1.0, "host", "", False, usage=sample("host:1", now, 1.0))
        tracked.add(receipt)
        assert heard.wait(30)
    assert (logged["system/actors"], logged["system/memory_gb"], logged["progress/votes"], said) == (1, 2.0, 20, [])
