import numpy as np
import pytest
import torch

from ndc_core import vote_requests
from ndc_core.certificates.cohen import cohen
from ndc_core.certification import certify
from ndc_core.checkpoints.denoisers import load_denoiser
from ndc_core.classifiers.diffusion import DiffusionClassifier
from ndc_core.classifiers.losses import NonFiniteScoreError
from ndc_core.classifiers.racing import RaceSpec
from ndc_core.classifiers.sift import SiftSpec
from ndc_core.image_votes import name_of
from ndc_core.models.forward_passes import in_turn
from ndc_core.noise.grid import GridSpec
from ndc_core.noise.smoothing import FloatNoise
from ndc_core.vote_requests import VoteRequest
from ndc_core.voting import count_votes, stream_votes
from tests.support.fakes import ConstantDenoiser

GRID = GridSpec(points=5, sigma_model_max=1.5, spacing="log")
SIFT = SiftSpec(GridSpec(points=4, sigma_model_max=1.5, spacing="log"), threshold_per_dim=0.02, keep=2)


@pytest.fixture(scope="module")
def classifier(tiny_model) -> DiffusionClassifier:
    torch.set_num_threads(1)
    return DiffusionClassifier(
        load_denoiser(tiny_model), "apndc-ensemble", grid=GRID, weight="edm", sift=SIFT, rows_per_pass=64
    )


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    from tests.support.small_runs import digits

    return digits("test")[0].image


def votes_of(classifier, image, draws: range, **changes) -> np.ndarray:
    named = {"sigma_pixel": 0.25, "noise": "integer", "seed": 0, "image_id": "x", "phase": "estimation"} | changes
    return count_votes(classifier, image, draws=draws, **named).votes


def test_noise_is_added_in_pixel_space_and_becomes_model_space_once() -> None:
    image, noise = np.array([[[0, 51, 255]]], dtype=np.uint8), np.array([[[[1.0, -1.0, 0.5]]]])
    z = FloatNoise.add(image, 0.25 * noise)
    np.testing.assert_allclose(z, [[[[2 * 0.25 - 1, 2 * (0.2 - 0.25) - 1, 2 * 1.125 - 1]]]])


def test_any_split_of_the_draws_gives_the_same_votes(classifier, image) -> None:
    whole = votes_of(classifier, image, range(60))
    parts = [range(0, 1), range(1, 30), range(30, 47), range(47, 60)]
    assert whole.sum() == 60
    np.testing.assert_array_equal(sum(votes_of(classifier, image, part) for part in parts), whole)


def test_memory_limit_does_not_change_the_votes(classifier, image, monkeypatch: pytest.MonkeyPatch) -> None:
    request = VoteRequest(image, "x", (0.25,), "integer", 0, "estimation", range(40))
    assert vote_requests.draws_of_a_batch(classifier, request) == 64
    whole = votes_of(classifier, image, range(40))
    monkeypatch.setattr(vote_requests, "MEMORY_BYTES", 100_000)
    assert vote_requests.draws_of_a_batch(classifier, request) < 6
    np.testing.assert_array_equal(votes_of(classifier, image, range(40)), whole)


def test_votes_depend_on_seed_image_id_and_phase(classifier, image) -> None:
    base = votes_of(classifier, image, range(80))
    for change in ({"seed": 1}, {"image_id": "y"}, {"phase": "selection"}):
        assert (votes_of(classifier, image, range(80), **change) != base).any()


def test_certify_is_cohens_certificate_of_the_counted_votes(classifier, image) -> None:
    certificate = certify(classifier, image, sigma_pixel=0.25, alpha=0.05, selection_votes=20, estimation_votes=50)
    selection = votes_of(classifier, image, range(20), phase="selection", image_id=name_of(image))
    estimation = votes_of(classifier, image, range(50), image_id=name_of(image))
    expected = cohen(selection.tolist(), estimation.tolist(), sigma_pixel=0.25, alpha=0.05)
    assert (certificate.predicted, certificate.votes_top) == (expected.predicted, expected.votes_top)
    assert 0 < expected.p_lower - certificate.p_lower < 1e-13, "lowered by the distance of the drawn noise from its law"
    assert certificate.scope == "8-bit images"


def test_an_image_of_another_shape_is_refused(classifier) -> None:
    with pytest.raises(ValueError, match=r"shape \(3, 8, 8\), the model takes \(1, 8, 8\)"):
        votes_of(classifier, np.zeros((3, 8, 8), np.uint8), range(1))


def test_a_broken_denoiser_is_named_with_image_draw_sigma_and_class() -> None:
    class BreaksOnce(ConstantDenoiser):
        def __call__(self, z, sigma_model, label):
            output = super().__call__(z, sigma_model, label)
            broken = (z - self.target).flatten(1).abs().sum(1) < 1e-3
            output[broken & (label[:, 1] > 0)] = float("inf")
            return output - output + output

    denoiser = BreaksOnce(torch.zeros(3, 1, 2, 2))
    image = np.zeros((1, 2, 2), np.uint8)
    classifier = DiffusionClassifier(denoiser, "dc", grid=GridSpec(4, 1.0, sigma_model_min=0.5))
    z, noise = vote_requests.noisy_inputs(
        classifier, [(VoteRequest(image, "x", (0.25,), "integer", 0, "estimation", range(1)), [12])]
    )
    level = GridSpec(4, 1.0, sigma_model_min=0.5)
    assert level.steps == 2
    denoiser.target = torch.from_numpy(z + 1.0 * noise.refine.all().numpy()[:, 1]).float()
    with pytest.raises(NonFiniteScoreError, match=r"image x, sigma_pixel 0.25, estimation draw 12, .*class 1"):
        votes_of(classifier, image, range(10, 20))


def votes_of_small_requests(
    classifier, image, requests: int, draws: int, **changes
) -> dict[int, np.ndarray | Exception]:
    """Each has its own draws; together they are those of one large request."""
    waiting = [
        (
            number,
            VoteRequest(image, "x", (0.25,), "integer", 0, "estimation", range(number * draws, (number + 1) * draws)),
        )
        for number in range(requests)
    ]
    waiting = [(number, changes.get(f"x{number}", request)) for number, request in waiting]
    answers = stream_votes(classifier, in_turn(waiting))
    return {number: counts if isinstance(counts, Exception) else counts[0].votes for number, counts in answers}


def test_small_requests_share_passes_and_vote_as_one_large_one_does(image) -> None:
    denoiser = ConstantDenoiser(torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1)
    racing = DiffusionClassifier(denoiser, "apndc-ensemble", GRID, race=RaceSpec(1.2), rows_per_pass=64)
    whole = votes_of(racing, image, range(400))
    alone = len(denoiser.rows_seen)
    small = votes_of_small_requests(racing, image, 200, 2)
    assert {votes.sum() for votes in small.values()} == {2}
    np.testing.assert_array_equal(sum(small.values()), whole)
    assert len(denoiser.rows_seen) - alone <= alone + 2


def test_a_request_that_cannot_be_voted_on_fails_by_itself(classifier, image) -> None:
    wrong = VoteRequest(np.zeros((3, 8, 8), np.uint8), "wrong", (0.25,), "integer", 0, "estimation", range(2))
    votes = votes_of_small_requests(classifier, image, 10, 2, x3=wrong)
    assert isinstance(votes.pop(3), ValueError)
    others = [draw for draw in range(20) if draw not in (6, 7)]
    np.testing.assert_array_equal(
        sum(votes.values()), sum(votes_of(classifier, image, range(d, d + 1)) for d in others)
    )
