"""A run with a budget: images in a random order, of which the complete ones are always the first."""

import itertools
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cli import main
from pipeline.declaration.config import RunConfig
from pipeline.declaration.order import are_a_sample, in_order
from pipeline.driver import certify
from pipeline.driver.certify import certify_run
from pipeline.driver.prepare import prepare
from pipeline.locations import location
from pipeline.report.report import Report
from pipeline.store.run_store import RunStore, StoredImage
from pipeline.workers import vote_actor
from tests.support.in_process import replace_ray
from tests.support.small_runs import small_config

IMAGES = 12
SETTINGS = ("tracking=none", f"dataset.limit={IMAGES}", "dataset.every=1", "votes.selection=10")
KINDS = {
    "votes until radii are decided": ("certificate.method=sequential", "votes.estimation=60"),
    "as many votes for all": ("certificate.method=cohen", "votes.estimation=30", "votes.per_unit=10"),
}


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    replace_ray(monkeypatch)


@pytest.fixture
def ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time advances by a second each time it is read."""
    clock = itertools.count(1_700_000_000)
    fake = SimpleNamespace(time=lambda: float(next(clock)), perf_counter=time.perf_counter)
    for module in (certify, vote_actor):
        monkeypatch.setattr(module, "time", fake)


def certified(config: RunConfig, folder: Path, **budget: float) -> tuple[Report | None, list[str]]:
    said: list[str] = []
    report, _ = certify_run(prepare(config, location(folder)), say=said.append, **budget)
    return report, said


def votes_in(folder: Path) -> dict[str, dict[int, int]]:
    store = RunStore(location(folder))
    return {str(item.unit): item.votes for item in store.all_evidence(fingerprint=store.manifest()["fingerprint"])}


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_budget_leaves_complete_is_a_sample_and_the_run_goes_on_to_the_same_end(
    kind: str, tiny_model: Path, tmp_path: Path, ticks: None
) -> None:
    config = small_config(tiny_model, *SETTINGS, *KINDS[kind])
    random = config.model_copy(update={"order": "random"})
    report, said = certified(random, tmp_path / "run", budget_seconds=12)
    assert report is not None
    assert any(line.startswith("no image is begun after 2023-11-1") for line in said)
    assert any(line.startswith("the budget is used; the same command takes more images") for line in said)
    complete = {item.image_id for items in report.levels.values() for item in items}
    records = RunStore(location(tmp_path / "run")).records()
    assert 0 < len(complete) < IMAGES
    assert complete == {record.image_id for record in in_order(records, "random", seed=0)[: len(complete)]}
    assert complete != {record.image_id for record in records[: len(complete)]}
    assert "are a random sample of all, the first of an order that was drawn" in report.summary.warnings[0]

    again, _ = certified(config, tmp_path / "run", budget_seconds=6)
    assert again is not None
    assert complete < {item.image_id for items in again.levels.values() for item in items}, "whatever the file says"
    whole, _ = certified(config, tmp_path / "run")
    assert whole is not None
    assert not whole.summary.missing
    certified(config, tmp_path / "other")
    assert votes_in(tmp_path / "run") == votes_in(tmp_path / "other"), "the order decides no vote"


def test_mlflow_shows_that_a_run_with_a_budget_has_ended(
    tiny_model: Path, workplace_without_ray: Path, ticks: None
) -> None:
    from mlflow import MlflowClient

    config = small_config(tiny_model, *SETTINGS[1:], *KINDS["as many votes for all"]).model_copy(
        update={"order": "random"}
    )
    certified(config, workplace_without_ray / "run", budget_seconds=12)
    client = MlflowClient(f"sqlite:///{workplace_without_ray}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("ndc").experiment_id])
    assert run.info.status == "KILLED", "as one that was stopped: the next driver goes on with it"


def test_a_run_that_was_begun_without_a_budget_takes_none(tiny_model: Path, tmp_path: Path) -> None:
    config = small_config(tiny_model, "tracking=none", "dataset.limit=2")
    certified(config, tmp_path / "run")
    with pytest.raises(ValueError, match="in the order of the data, and the first ones are not a sample"):
        certified(config.model_copy(update={"order": "random"}), tmp_path / "run", budget_seconds=1)


def test_a_budget_is_for_a_whole_run(tmp_path: Path) -> None:
    for other in (["--shard", "1/2"], ["--retry-failed"]):
        result = CliRunner().invoke(main, ["certify", "demo", "--run", str(tmp_path), "--budget-hours", "1", *other])
        assert result.exit_code == 2
        assert "--budget-hours is for a whole run" in result.output


@given(st.sets(st.text(max_size=5), min_size=1, max_size=20), st.integers(0, 3), st.data())
def test_the_place_of_an_image_does_not_depend_on_the_others(names: set[str], seed: int, data: st.DataObject) -> None:
    images = [StoredImage(name, 0, None) for name in sorted(names)]
    some = data.draw(st.lists(st.sampled_from(images), unique=True))
    order = in_order(images, "random", seed=seed)
    assert [image for image in order if image in some] == in_order(some, "random", seed=seed)
    assert sorted(image.image_id for image in order) == sorted(names)
    for count in range(len(order) + 1):
        first = {image.image_id for image in order[:count]}
        assert are_a_sample(first, first, images, "random", seed=seed)
        assert not are_a_sample(first, first, images, "data", seed=seed)
        if 0 < count < len(order):
            skipped = first - {order[0].image_id} | {order[count].image_id}
            assert not are_a_sample(skipped, skipped, images, "random", seed=seed)
            assert not are_a_sample(first, first | {order[count].image_id}, images, "random", seed=seed), "in work"
