"""Every noise law, with every choice of requested levels: each level has its own noise, and the same votes."""

from dataclasses import dataclass, field
from itertools import chain, combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import ndtri
from torch import Tensor

from ndc_core.certificates.cohen import cohen
from ndc_core.classifiers.diffusion import DiffusionClassifier
from ndc_core.classifiers.racing import RaceSpec
from ndc_core.classifiers.voter import NO_CLASS
from ndc_core.models.forward_passes import in_turn
from ndc_core.noise.grid import GridSpec, path_levels
from ndc_core.vote_requests import VoteRequest
from ndc_core.voting import VoteCounts, stream_votes
from pipeline.certificates.stopping import cells_of
from pipeline.store.run_store import RunStore
from pipeline.workers.vote_actor import SequentialVoteActor, votes_of_unit
from tests.pipeline.workers.test_vote_actor import batch_of, declared, receipts_of, settings_of
from tests.support.fakes import many_gaussians
from tests.support.small_runs import digits, fast_config

RUN = (0.25, 0.4, 0.6)
SUBSETS = list(chain.from_iterable(combinations(RUN, size) for size in (1, 2, 3)))
LEVELS = GridSpec(levels=(0.55, 0.7, 0.9, 1.1, 1.4, 1.8, 2.3, 3.0))
NOISE_LAWS = ("integer", "float")


def counts_of(
    classifier: DiffusionClassifier, image: np.ndarray, sigmas: tuple[float, ...], noise: str, draws: range
) -> list[VoteCounts]:
    """Votes of levels that are requested together, in a run that has all levels."""
    together = [sigmas] if classifier.one_path else [(sigma,) for sigma in sigmas]
    waiting = [
        (sigma, VoteRequest(image, "x", sigma, noise, 0, "estimation", draws, all_sigmas=RUN))
        for sigma in reversed(together)
    ]
    counts_by_request = dict(stream_votes(classifier, in_turn(waiting)))
    return [counts for sigma in together for counts in counts_by_request[sigma]]


@dataclass
class Recorder:
    """Records its inputs by level; without a label the input is the noisy image itself."""

    image_shape: tuple[int, int, int] = (1, 4, 8)
    num_classes: int = 2
    seen: dict[float, list[Tensor]] = field(default_factory=dict)

    def __call__(self, z: Tensor, sigma_model: Tensor, label: Tensor) -> Tensor:
        for level in sigma_model.unique():
            self.seen.setdefault(round(float(level), 5), []).append(z[sigma_model == level])
        return torch.zeros_like(z)


@pytest.mark.parametrize("sigmas", SUBSETS, ids=str)
@pytest.mark.parametrize("one_path", [True, False], ids=["path", "apart"])
@pytest.mark.parametrize("noise", NOISE_LAWS)
def test_the_noise_of_each_level_has_its_own_sigma_for_any_choice_of_levels(
    noise: str, one_path: bool, sigmas: tuple[float, ...]
) -> None:
    recorder, draws = Recorder(), 600
    classifier = DiffusionClassifier(recorder, "apndc", grid=LEVELS, one_path=one_path, rows_per_pass=300)
    image = np.full(recorder.image_shape, 128, np.uint8)
    counts_of(classifier, image, sigmas, noise, range(draws))
    beyond = set(path_levels(LEVELS, taus_model=tuple(2 * sigma for sigma in sigmas)))
    assert {2 * sigma for sigma in sigmas} <= set(recorder.seen)
    for level in {2 * sigma for sigma in sigmas} | (beyond if one_path else set()):
        seen = np.unique(torch.cat(recorder.seen[level]).flatten(1).numpy(), axis=0)
        added = seen - (2 * 128 / 255 - 1)
        tolerance = 5 / np.sqrt(2 * added.size)  # five standard errors of a standard deviation, relative
        assert len(seen) == draws
        assert added.std() == pytest.approx(level, rel=tolerance + 1e-4), level


@pytest.mark.parametrize("race", [None, RaceSpec(1.5)], ids=["all", "raced"])
@pytest.mark.parametrize("one_path", [True, False], ids=["path", "apart"])
@pytest.mark.parametrize("noise", NOISE_LAWS)
def test_a_level_has_the_same_votes_with_any_other_levels(noise: str, one_path: bool, race: RaceSpec | None) -> None:
    denoiser = many_gaussians(4, dimension=6, seed=3)
    classifier = DiffusionClassifier(
        denoiser, "epndc", grid=LEVELS, one_path=one_path, race=race, rows_per_pass=64, weight="edm"
    )
    image = np.full(denoiser.image_shape, 128, np.uint8)
    together = dict(zip(RUN, counts_of(classifier, image, RUN, noise, range(80)), strict=True))
    assert len({tuple(counts.votes) for counts in together.values()}) == 3, "levels differ, so a mix-up would show"
    for sigmas in SUBSETS:
        for sigma, subset_counts in zip(sigmas, counts_of(classifier, image, sigmas, noise, range(80)), strict=True):
            np.testing.assert_array_equal(subset_counts.votes, together[sigma].votes, err_msg=f"{sigma} of {sigmas}")
    parts = [counts_of(classifier, image, (0.6,), noise, part)[0].votes for part in (range(33), range(33, 80))]
    np.testing.assert_array_equal(sum(parts), together[0.6].votes)


@dataclass
class FarFromGrey:
    """A vote for class 0 where the one pixel of the noisy image is further from grey than `reach`."""

    reach: float
    image_shape: tuple[int, int, int] = (1, 1, 1)
    num_classes: int = 2

    def __call__(self, z: Tensor, sigma_model: Tensor, label: Tensor) -> Tensor:
        far = torch.where(z.abs() > self.reach, 1.0, -1.0)
        named = (label[:, 0] - label[:, 1]).view(-1, 1, 1, 1)
        return torch.where(label.any(dim=1).view(-1, 1, 1, 1), named, far)


@pytest.mark.parametrize("noise", NOISE_LAWS)
def test_a_class_with_less_than_half_of_the_votes_is_not_certified_when_the_other_levels_are_done(noise: str) -> None:
    """Level 0.6 is requested alone after the others: with their noise, its share of 0.47 was certified at 0.16."""
    share = 0.47
    denoiser = FarFromGrey(reach=-2 * 0.6 * float(ndtri(share / 2)))
    classifier = DiffusionClassifier(denoiser, "apndc", grid=LEVELS, one_path=True, rows_per_pass=256)
    (counts,) = counts_of(classifier, np.full((1, 1, 1), 128, np.uint8), (0.6,), noise, range(3000))
    assert counts.votes[0] / 3000 == pytest.approx(share, abs=5 * 0.5 / np.sqrt(3000))
    certificate = cohen([1, 0], counts.votes.tolist(), sigma_pixel=0.6, alpha=0.001)
    assert certificate.predicted is None
    assert certificate.radius == 0


@dataclass
class BySum:
    """A vote for class 0 where the sum of the noisy image's pixels is above `edge`, for class 1 elsewhere."""

    edge: float
    image_shape: tuple[int, int, int] = (1, 8, 8)
    num_classes: int = 10

    def __call__(self, z: Tensor, sigma_model: Tensor, label: Tensor) -> Tensor:
        above = torch.where(z.sum(dim=(1, 2, 3)) > self.edge, 1.0, -1.0)
        shade = torch.where(label.any(dim=1), label[:, 0] - label[:, 1], above)
        return shade.view(-1, 1, 1, 1).expand_as(z)


@pytest.mark.parametrize("one_path", [True, False], ids=["path", "apart"])
@pytest.mark.parametrize("noise", NOISE_LAWS)
def test_resumed_and_redrawn_units_have_the_votes_of_the_undisturbed_run(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, noise: str, one_path: bool
) -> None:
    """A sequential run whose levels end at different looks, and that loses some of its units each time."""
    path = [f"classifier.one_path={'true' if one_path else 'false'}", "classifier.name=apndc"]
    levels = ["sigma_pixel=[0.0625, 0.125, 0.25]", "classifier.grid={levels=[0.15, 0.3, 0.4, 0.6, 0.8, 1.1]}"]
    config = fast_config(tiny_model, f"noise={noise}", "dataset.limit=1", *path, *levels)
    run = declared(config, tmp_path)
    edge = float((digits("test", limit=1)[0].image / 127.5 - 1).sum()) - 2.4  # the shares are 0.99, 0.88 and 0.73
    classifier = DiffusionClassifier(
        BySum(edge), "apndc", grid=config.classifier.grid, one_path=one_path, race=RaceSpec(1.7), rows_per_pass=64
    )
    monkeypatch.setattr("pipeline.workers.vote_actor.load_voter", lambda settings: classifier)
    store, fingerprint = RunStore(tmp_path), run.fingerprint
    first = [next(unit for unit in run.units.values() if unit.sigma_pixel == sigma) for sigma in config.sigma_pixel]
    batch = batch_of(run, first[:1] if one_path else first)
    actor = SequentialVoteActor(settings_of(run, tmp_path))

    def evidence() -> dict[str, dict[int, int]]:
        receipts = receipts_of(actor, batch)
        assert not any(receipt["error"] for receipt in receipts)
        return {str(item.unit): item.votes for item in store.all_evidence(fingerprint=fingerprint)}

    whole = evidence()
    items = list(store.all_evidence(fingerprint=fingerprint))
    cells = cells_of(run.declaration, run.records, items, num_classes=10)
    assert len({cell.state().needed for cell in cells.values()}) > 1, "a level is left before another"
    for lost in items[::2], items[1::2], [item for item in items if item.unit.sigma_pixel == 0.25]:
        for item in lost:
            store.evidence_path(item.unit.unit_id(fingerprint)).unlink()
        assert evidence() == whole
    pixels = store.pictures.pixels(run.records[0])
    for item in items:
        candidate = cells[item.unit.cell].candidate if item.unit.phase == "estimation" else NO_CLASS
        again = votes_of_unit(actor.classifier, config, item.unit, run.records[0], pixels, candidate=candidate)
        assert {c: v for c, v in enumerate(again.votes.tolist()) if v} == item.votes, str(item.unit)
