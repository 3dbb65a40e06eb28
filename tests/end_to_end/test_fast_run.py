"""Runs with the levers of docs/cost.md: whole, interrupted, verified."""

import shutil
from pathlib import Path

import pytest

from pipeline.driver.certify import certify_run
from pipeline.driver.prepare import prepare
from pipeline.driver.verify import VerificationError, verify_run
from pipeline.locations import location
from pipeline.store.run_store import RunStore
from tests.support.small_runs import computed, fast_config

pytestmark = pytest.mark.usefixtures("workplace_without_ray")

ONE_PATH = ("classifier.name='apndc'", "classifier.one_path=true")
GRADIENT = ("classifier.label_gradient={steps=2, keep=3}",)
FIXED = ("certificate.method='cohen'", "votes.estimation=120")


def certify(model: Path, folder: str, *assignments: str) -> RunStore:
    certify_run(prepare(fast_config(model, *assignments), location(folder)), say=print)
    return RunStore(location(folder))


def votes_of(store: RunStore) -> dict[str, dict[int, int]]:
    evidence = store.all_evidence(fingerprint=store.manifest()["fingerprint"])
    return {str(item.unit): item.votes for item in evidence}


@pytest.mark.parametrize(
    "levers", [(*ONE_PATH, *GRADIENT), (*ONE_PATH, *FIXED), GRADIENT], ids=["path", "fixed", "apart"]
)
def test_an_interrupted_run_ends_with_the_votes_of_an_undisturbed_one(
    tiny_model: Path, levers: tuple[str, ...]
) -> None:
    store = computed(fast_config(tiny_model, *levers), Path("run"))
    whole = votes_of(store)
    for path in store.evidence_files()[::3]:
        path.unlink()
    assert votes_of(certify(tiny_model, "run", *levers)) == whole
    verify_run(location("run"), redraw=4, say=print)


@pytest.fixture(scope="module")
def one_path(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> RunStore:
    """A whole run, only to be read or copied."""
    return computed(fast_config(tiny_model, *ONE_PATH), tmp_path_factory.mktemp("one-path") / "run")


def test_one_level_of_a_path_that_was_lost_is_drawn_again_by_itself(tiny_model: Path, one_path: RunStore) -> None:
    shutil.copytree(str(one_path.folder), "run")
    store = RunStore(Path("run"))
    whole = votes_of(store)
    fingerprint = store.manifest()["fingerprint"]
    lost = [item for item in store.all_evidence(fingerprint=fingerprint) if item.unit.sigma_pixel == 0.25]
    for item in lost:
        store.evidence_path(item.unit.unit_id(fingerprint)).unlink()
    assert votes_of(certify(tiny_model, "run", *ONE_PATH)) == whole


def test_a_level_that_is_decided_is_not_drawn_further(one_path: RunStore) -> None:
    evidence = one_path.all_evidence(fingerprint=one_path.manifest()["fingerprint"])
    drawn: dict[tuple[str, float], int] = {}
    for item in evidence:
        key = item.unit.image_id, item.unit.sigma_pixel
        drawn[key] = max(drawn.get(key, 0), item.unit.draw_stop)
    assert len(drawn) == 4
    images = {image_id for image_id, _ in drawn}
    assert any(len({drawn[image, sigma] for sigma in (0.125, 0.25)}) == 2 for image in images), "levels end apart"


def test_a_vote_moved_from_the_candidate_is_found(tiny_model: Path) -> None:
    store = computed(fast_config(tiny_model, *FIXED), Path("run"))
    fingerprint = store.manifest()["fingerprint"]
    item = next(
        one
        for one in store.all_evidence(fingerprint=fingerprint)
        if one.unit.phase == "estimation" and len(one.votes) > 1
    )
    first, second, *_ = item.votes
    item.votes[first] -= 1
    item.votes[second] += 1
    store.publish(item, fingerprint=fingerprint)
    with pytest.raises(VerificationError, match="the model gives"):
        verify_run(location("run"), redraw=1000, say=print)
