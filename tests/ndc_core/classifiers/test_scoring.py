"""Votes with every lever, against exact likelihoods and against the same votes without it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import chi2_contingency

from ndc_core.classifiers.diffusion import DiffusionClassifier
from ndc_core.classifiers.losses import NonFiniteScoreError, ask_label_gradients
from ndc_core.classifiers.racing import RaceSpec
from ndc_core.classifiers.scoring import predict, scores
from ndc_core.classifiers.sift import LabelGradientSpec
from ndc_core.classifiers.voter import PathDraws
from ndc_core.models.forward_passes import answer, in_turn
from ndc_core.noise.grid import GridSpec
from ndc_core.noise.streams import DrawNoise
from ndc_core.vote_requests import VoteRequest
from ndc_core.voting import count_votes, stream_votes
from tests.support.fakes import ConstantDenoiser, many_gaussians, two_gaussians

LEVELS = GridSpec(levels=(0.55, 0.7, 0.9, 1.1, 1.4, 1.8, 2.3, 3.0))
RACE = RaceSpec(1.5)


def setting(classes: int = 10, draws: int = 60, **levers) -> tuple[DiffusionClassifier, np.ndarray, DrawNoise]:
    denoiser = many_gaussians(classes, heads=levers.pop("heads", False))
    classifier = DiffusionClassifier(denoiser, "epndc", grid=LEVELS, rows_per_pass=32, **levers)
    z = np.concatenate([denoiser.sample(label, 1, tau_model=0.5, seed=label) for label in np.arange(draws) % classes])
    generator = np.random.default_rng(0)
    refine = generator.standard_normal((draws, LEVELS.steps, *denoiser.image_shape), dtype=np.float32)
    return classifier, z, DrawNoise(z, refine, refine[:, :0])


def test_heads_give_the_votes_of_the_labels_for_one_evaluation_a_step() -> None:
    one_by_one = predict(*setting()[:2], tau_model=0.5, noise=setting()[2])
    classifier, z, noise = setting(heads=True)
    at_once = predict(classifier, z, tau_model=0.5, noise=noise)
    np.testing.assert_array_equal(at_once.winners, one_by_one.winners)
    np.testing.assert_allclose(at_once.scores, one_by_one.scores, rtol=1e-5)
    assert (one_by_one.evaluations, at_once.evaluations) == (60 * 7 * 10, 60 * 7)


def test_a_race_agrees_with_the_full_vote_for_fewer_evaluations() -> None:
    classifier, z, noise = setting(draws=200, race=RACE)
    full = predict(replace(classifier, race=None), z, tau_model=0.5, noise=noise)
    raced = predict(classifier, z, tau_model=0.5, noise=noise)
    assert (raced.winners == full.winners).mean() >= 0.95
    assert raced.evaluations < 0.9 * full.evaluations


def test_the_labels_gradient_orders_classes_as_the_loss_to_first_order() -> None:
    """This denoiser is linear in its label: the derivative at the mean label is 2 share (h - target) . mean_y."""
    classifier, z, noise = setting(draws=4)
    denoiser = classifier.denoiser
    path, _ = classifier.path(torch.from_numpy(z).float(), None, LEVELS, torch.from_numpy(noise.refine), tau_model=0.5)
    draw, step = (ids.ravel() for ids in np.indices((4, LEVELS.steps)))

    def task():
        return (yield ask_label_gradients(denoiser, path, draw, step))

    gradients = answer(task(), rows_per_pass=5, device=torch.device("cpu"))
    sigma2 = torch.as_tensor(path.level[step])[:, None] ** 2
    share = sigma2 / (denoiser.variance + sigma2)
    z_t, level = path.noisy(torch.from_numpy(draw), torch.from_numpy(step))
    h = denoiser(z_t, level, torch.full((len(draw), 10), 0.1)).flatten(1)
    target = torch.lerp(
        z_t, path.anchors[0][draw], torch.as_tensor(path.anchor_share[0][step]).float().view(-1, 1, 1, 1)
    )
    expected = 2 * share * ((h - target.flatten(1)).double() @ denoiser.means.T)
    torch.testing.assert_close(gradients.double(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("classes", [10, 100, 1000])
def test_the_winner_is_among_the_first_of_the_gradient_and_costs_no_more_with_more_classes(classes: int) -> None:
    draws = min(60, 6000 // classes)
    classifier, z, noise = setting(classes, draws, label_gradient=LabelGradientSpec(steps=6, keep=8))
    classifier = replace(classifier, rows_per_pass=512)
    full = predict(replace(classifier, label_gradient=None), z, tau_model=0.5, noise=noise)
    sifted = predict(classifier, z, tau_model=0.5, noise=noise)
    assert (sifted.winners == full.winners).mean() > 0.8
    assert sifted.evaluations == draws * (6 * 2 + 8 * 7), "a forward and a backward pass a step, then eight classes"
    assert (np.isfinite(sifted.scores).sum(1) == 8).all()


def test_a_vote_about_a_beaten_candidate_stops_early_with_the_same_outcome() -> None:
    denoiser = many_gaussians(6)
    image = np.full(denoiser.image_shape, 128, np.uint8)
    classifier = DiffusionClassifier(denoiser, "epndc", grid=LEVELS, race=RACE, rows_per_pass=16)

    def counts(candidate: int):
        request = VoteRequest(image, "x", (0.25,), "integer", 0, "estimation", range(300), candidates=(candidate,))
        waiting = [(None, request)]
        ((_, levels),) = stream_votes(classifier, in_turn(waiting))
        return levels[0]

    whole = counts(-1)
    order = whole.votes.argsort()
    for candidate in (order[-1], order[-2]):
        about = counts(int(candidate))
        assert about.votes[candidate] == whole.votes[candidate]
        assert about.votes.sum() == 300
    assert about.evaluations < whole.evaluations


@pytest.mark.parametrize("name", ["epndc", "apndc"])
@pytest.mark.parametrize("noise", ["integer", "float"])
def test_a_level_on_a_shared_path_votes_as_it_does_alone(name: str, noise: str) -> None:
    """The law of a level's votes is that of a run with this level only: compared over 1,500 draws each."""
    denoiser = many_gaussians(4, dimension=6, seed=3)
    image = np.full(denoiser.image_shape, 128, np.uint8)
    classifier = DiffusionClassifier(denoiser, name, grid=LEVELS, one_path=True, rows_per_pass=512)
    together = shared_votes(classifier, image, (0.25, 0.4, 0.6), noise, range(1500))
    for sigma, shared in zip((0.25, 0.4, 0.6), together, strict=True):
        alone = count_votes(
            classifier,
            image,
            sigma_pixel=sigma,
            noise=noise,
            seed=1,
            image_id="y",
            phase="estimation",
            draws=range(1500),
        )
        assert min(shared.votes.max(), alone.votes.max()) < 1500
        table = np.stack([shared.votes, alone.votes])
        assert chi2_contingency(table[:, table.sum(0) > 10]).pvalue > 1e-4, sigma


def shared_votes(classifier, image, sigmas, noise, draws, **more):
    request = VoteRequest(image, "x", sigmas, noise, 0, "estimation", draws, **more)
    waiting = [(None, request)]
    ((_, counts_of_levels),) = stream_votes(classifier, in_turn(waiting))
    return counts_of_levels


@pytest.mark.parametrize("race", [None, RACE])
def test_a_levels_votes_do_not_depend_on_which_levels_vote_with_it(race: RaceSpec | None) -> None:
    """So that evidence of one level can be computed again by itself, bit for bit."""
    denoiser = many_gaussians(4, dimension=6, seed=3)
    image = np.full(denoiser.image_shape, 128, np.uint8)
    classifier = DiffusionClassifier(denoiser, "apndc", grid=LEVELS, one_path=True, race=race, rows_per_pass=64)
    run = (0.25, 0.4, 0.6)
    together = shared_votes(classifier, image, run, "integer", range(150), all_sigmas=run)
    for some in ((0.25,), (0.4,), (0.6,), (0.25, 0.6), (0.4, 0.6)):
        for sigma, counts in zip(
            some, shared_votes(classifier, image, some, "integer", range(150), all_sigmas=run), strict=True
        ):
            np.testing.assert_array_equal(counts.votes, together[run.index(sigma)].votes)


def test_a_level_looks_at_nothing_before_itself_on_the_path() -> None:
    """Rule S2: with the image at its own level and beyond held fixed, what lies before it changes no vote."""
    denoiser = many_gaussians(5, seed=2)
    classifier = DiffusionClassifier(
        denoiser, "epndc", grid=LEVELS, one_path=True, race=RACE, label_gradient=LabelGradientSpec(2, 4)
    )
    generator = np.random.default_rng(0)
    low, high = generator.normal(size=(2, 40, *denoiser.image_shape))
    later = generator.normal(size=(40, 7, *denoiser.image_shape))
    taus = (0.5, 1.0)

    def votes(low: np.ndarray, later: np.ndarray):
        task = classifier.votes(PathDraws((low, high), later, taus))
        return answer(task, rows_per_pass=32, device=torch.device("cpu"))

    before = votes(low, later)
    changed = later.copy()
    changed[:, :3] = generator.normal(size=changed[:, :3].shape)  # levels up to 1.1, which adds no term at tau 1.0
    after = votes(low + 1, changed)
    np.testing.assert_array_equal(before[1].winners, after[1].winners)
    assert (before[0].winners != after[0].winners).any()


def test_one_path_costs_less_than_its_levels_apart() -> None:
    denoiser = many_gaussians(4)
    image = np.full(denoiser.image_shape, 128, np.uint8)
    classifier = DiffusionClassifier(denoiser, "epndc", grid=LEVELS, one_path=True, rows_per_pass=64)
    together = shared_votes(classifier, image, (0.25, 0.5), "integer", range(10))
    alone = [shared_votes(classifier, image, (sigma,), "integer", range(10))[0] for sigma in (0.25, 0.5)]
    assert sum(counts.evaluations for counts in together) == alone[0].evaluations == 10 * 7 * 4
    assert alone[1].evaluations == 10 * 4 * 4


@pytest.mark.parametrize(
    "levers", [{}, {"race": RACE}, {"label_gradient": LabelGradientSpec(3, 4)}, {"heads": True, "race": RACE}]
)
def test_votes_are_the_same_alone_in_company_and_with_other_rows_a_pass(levers: dict) -> None:
    classifier, z, noise = setting(**levers)
    together = predict(classifier, z, tau_model=0.5, noise=noise)
    other = predict(replace(classifier, rows_per_pass=7), z, tau_model=0.5, noise=noise)
    np.testing.assert_array_equal(together.winners, other.winners)
    assert together.evaluations == other.evaluations
    for draw in range(0, 60, 7):
        row = slice(draw, draw + 1)
        own = DrawNoise(noise.input[row], noise.refine[row], noise.sift[row])
        assert predict(classifier, z[row], tau_model=0.5, noise=own).winners[0] == together.winners[draw]


def test_scores_of_all_classes_use_no_lever() -> None:
    classifier, z, noise = setting(race=RACE, label_gradient=LabelGradientSpec(2, 3))
    assert np.isfinite(scores(classifier, z, tau_model=0.5, noise=noise)).all()


def test_a_gradient_that_is_not_finite_is_an_error_that_names_its_level() -> None:
    class Broken(ConstantDenoiser):
        def __call__(self, z, sigma_model, label):
            return super().__call__(z, sigma_model, label) / (sigma_model < 2)[:, None, None, None]

    classifier = DiffusionClassifier(
        Broken(torch.ones(5, 1, 2, 2)), "dc", grid=GridSpec(9, 3), label_gradient=LabelGradientSpec(7, 2)
    )
    noise = DrawNoise(
        np.zeros((2, 1, 2, 2)), np.ones((2, 7, 1, 2, 2), np.float32), np.zeros((2, 0, 1, 2, 2), np.float32)
    )
    with pytest.raises(NonFiniteScoreError, match=r"sigma_model (2|3)"):
        predict(classifier, np.zeros((2, 1, 2, 2)), tau_model=0.5, noise=noise)


def test_impossible_combinations_are_refused() -> None:
    with pytest.raises(ValueError, match=r"one_path is for epndc and apndc on explicit grid\.levels"):
        DiffusionClassifier(two_gaussians(), "apndc-ensemble", grid=LEVELS, one_path=True)
    with pytest.raises(ValueError, match="one_path is for"):
        DiffusionClassifier(two_gaussians(), "epndc", grid=GridSpec(9, 3), one_path=True)
