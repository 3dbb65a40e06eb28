from pathlib import Path

import numpy as np
import pytest

from pipeline.data.datasets import Example
from pipeline.declaration.units import WorkUnit
from pipeline.driver.status import status_lines, status_of
from pipeline.store.evidence import Evidence
from pipeline.store.run_store import RunStore

LAW = "a" * 64


def publish(store: RunStore, start: int, finished: float) -> None:
    unit = WorkUnit("img", 2, 0.25, "estimation", start, start + 10)
    store.publish(Evidence(unit, {2: 10}, 800, 2.0, finished, "cpu"), fingerprint=LAW)


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    store = RunStore(tmp_path / "run")
    plan = {"units": 5, "votes": 42, "classes": 10, "stops_early": False}
    law = {
        "sigma_pixel": [0.25],
        "noise": "integer",
        "votes": {"selection": 2, "estimation": 40},
        "dataset": {"image_shape": [1, 2, 2]},
        "classifier": {"grid": {"points": 4, "sigma_model_max": 1.5}, "weight": "edm", "loss_cap": None},
        "certificate": {"method": "cohen", "alpha": 0.001, "maximum_over_sigmas": False},
    }
    example = Example("img", np.zeros((1, 2, 2), np.uint8), 2)
    manifest = {"law": law, "fingerprint": LAW, "plan": plan}
    store.declare(manifest, config_toml="", records=[example.record(0)], examples=[example])
    selection = WorkUnit("img", 2, 0.25, "selection", 0, 2)
    store.publish(Evidence(selection, {2: 2}, 0, 0.0, 100.0, "cpu"), fingerprint=LAW)
    return store


def test_status_counts_units_votes_rate_and_time_left(store: RunStore) -> None:
    publish(store, 0, finished=1002.0)
    publish(store, 10, finished=1004.0)
    store.record_failure(WorkUnit("img", 2, 0.25, "estimation", 20, 30), "NaN at draw 20", fingerprint=LAW)
    status = status_of(store.folder, now_unix=1010.0)
    assert (status.units_done, status.votes_done, status.evaluations) == (3, 22, 1600)
    assert status.evaluations_per_second == pytest.approx(160)
    assert status.seconds_left.expected == pytest.approx(20 * (1600 / 22) / 160)  # the selection's draws cost nothing
    assert status.as_json()["seconds_left"] == status.seconds_left.expected
    lines = status_lines(status)
    assert "0 of 1 images and noise levels decided; 3 of 5 units, 22 of 42 votes" in lines[0]
    assert lines[1] == "160 evaluations/s, 0:09 left"
    assert [failure["error"] for failure in status.failures] == ["NaN at draw 20"]


def test_a_node_whose_clock_is_a_minute_ahead_makes_no_rate_absurd(store: RunStore) -> None:
    publish(store, 0, finished=1062.0)
    publish(store, 10, finished=1064.0)
    status = status_of(store.folder, now_unix=1004.0)
    assert status.evaluations_per_second == pytest.approx(1600 / 4)


def test_a_run_that_stands_still_says_how_to_go_on(store: RunStore) -> None:
    publish(store, 0, finished=1000.0)
    assert f"`ndc certify {store.folder}` goes on" in status_lines(status_of(store.folder, now_unix=9000.0))[1]


def test_a_complete_run_says_so(store: RunStore) -> None:
    for start in range(0, 40, 10):
        publish(store, start, finished=1000.0)
    assert status_lines(status_of(store.folder, now_unix=1001.0))[1] == "complete"
