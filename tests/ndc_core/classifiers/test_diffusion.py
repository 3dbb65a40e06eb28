"""The classifiers against closed forms: class-conditional Gaussians and their exact denoiser."""

import numpy as np
import pytest
import torch

from ndc_core.checkpoints.denoisers import load_denoiser
from ndc_core.classifiers.diffusion import DiffusionClassifier
from ndc_core.classifiers.formulas import CLASSIFIERS
from ndc_core.classifiers.losses import NonFiniteScoreError
from ndc_core.classifiers.scoring import predict, scores
from ndc_core.classifiers.sift import SiftSpec
from ndc_core.noise.grid import GridSpec, build_grid
from ndc_core.noise.streams import DrawNoise
from tests.support.fakes import ConstantDenoiser, GaussianDenoiser, two_gaussians


def gaussian_noise(shape, *, draws: int, refine: int, sift: int = 0, seed: int = 0) -> DrawNoise:
    generator = np.random.default_rng(seed)
    return DrawNoise(
        input=generator.standard_normal((draws, *shape)),
        refine=generator.standard_normal((draws, refine, *shape), dtype=np.float32),
        sift=generator.standard_normal((draws, sift, *shape), dtype=np.float32),
    )


def mean_difference(classifier: DiffusionClassifier, z: np.ndarray, *, tau_model: float, draws: int) -> float:
    """Score of class 0 minus that of class 1 for one z, averaged over the classifier's own noise."""
    noise = gaussian_noise(z.shape, draws=draws, refine=classifier.grid.steps)
    scores_of_draws = scores(classifier, np.repeat(z[None], draws, axis=0), tau_model=tau_model, noise=noise)
    return float((scores_of_draws[:, 0] - scores_of_draws[:, 1]).mean())


@pytest.mark.parametrize(("name", "tau_model"), [("dc", 0.0), ("epndc", 0.0), ("epndc", 0.25), ("epndc", 0.5)])
def test_score_differences_converge_to_the_exact_log_likelihood_ratio(name: str, tau_model: float) -> None:
    """Within 3 % on a log grid of 1,602 points up to sigma_model 80 with 400 draws, for three images each.

    The grid starts at tau, or at 0.002 for tau = 0. EPNDC's error falls with ln(n) / n: its weights rise near tau.
    """
    denoiser = two_gaussians()
    spec = GridSpec(points=1602, sigma_model_max=80, spacing="log", sigma_model_min=0.002 if tau_model == 0 else 0.0)
    classifier = DiffusionClassifier(denoiser, name, grid=spec, rows_per_pass=8192)
    images = denoiser.sample(0, 40, tau_model=tau_model, seed=3)
    exact = denoiser.log_likelihood_ratio(images, tau_model=tau_model)
    for index in np.argsort(-np.abs(exact))[[0, 8, 16]]:
        difference = mean_difference(classifier, images[index], tau_model=tau_model, draws=400)
        assert difference == pytest.approx(exact[index], rel=0.03)


@pytest.mark.parametrize(("name", "tau_model"), [("dc", 0.0), ("epndc", 0.5), ("apndc", 0.5), ("apndc-ensemble", 0.5)])
def test_error_of_a_vote_is_near_the_bayes_error(name: str, tau_model: float) -> None:
    """DC and EPNDC tend to the exact ratio, so to the Bayes error; the approximate ones stay near it."""
    denoiser, count = two_gaussians(distance=1.2), 2000
    grid = GridSpec(points=66, sigma_model_max=20, spacing="log", sigma_model_min=0.01 if tau_model == 0 else 0.0)
    classifier = DiffusionClassifier(denoiser, name, grid=grid, rows_per_pass=8192)
    wrong = 0
    for label in (0, 1):
        z = denoiser.sample(label, count, tau_model=tau_model, seed=label)
        noise = gaussian_noise(denoiser.image_shape, draws=count, refine=grid.steps, seed=label)
        wrong += int((predict(classifier, z, tau_model=tau_model, noise=noise).winners != label).sum())
    error, bayes = wrong / (2 * count), denoiser.bayes_error(tau_model=tau_model)
    standard_error = np.sqrt(bayes * (1 - bayes) / (2 * count))
    assert error >= bayes - 3 * standard_error, "no classifier beats the Bayes error"
    assert error <= bayes + 3 * standard_error + 0.03


def test_bayes_error_is_approached_with_more_draws_of_the_classifiers_own_noise() -> None:
    denoiser, count, repeats = two_gaussians(distance=1.2), 1000, 8
    classifier = DiffusionClassifier(denoiser, "epndc", grid=GridSpec(66, 20, "log"), rows_per_pass=8192)
    wrong = 0
    for label in (0, 1):
        z = denoiser.sample(label, count, tau_model=0.5, seed=10 + label)
        total = sum(
            scores(
                classifier,
                z,
                tau_model=0.5,
                noise=gaussian_noise(denoiser.image_shape, draws=count, refine=64, seed=seed),
            )
            for seed in range(repeats)
        )
        wrong += int((total.argmax(1) != label).sum())
    bayes = denoiser.bayes_error(tau_model=0.5)
    assert wrong / (2 * count) == pytest.approx(bayes, abs=4 * np.sqrt(bayes / (2 * count)))


def direct_scores(denoiser, name: str, z: np.ndarray, spec: GridSpec, weight, *, tau: float, noise) -> np.ndarray:
    """The table of docs/mathematics.md written out naively: one class, one step at a time."""
    grid = build_grid(spec, tau_model=0.0 if name == "dc" else tau)
    z_tau, no_label = torch.from_numpy(z).float(), torch.zeros(len(z), denoiser.num_classes)
    estimate = denoiser(z_tau, torch.full((len(z),), tau), no_label)
    scores = torch.zeros(len(z), denoiser.num_classes, dtype=torch.float64)
    for t, sigma in enumerate(grid.level.astype(np.float32)):
        e = torch.from_numpy(noise.refine[:, t])
        s = np.sqrt(max(0.0, float(sigma) ** 2 - tau**2))
        if name == "dc":
            z_t, target = z_tau + sigma * e, z_tau
        elif name == "epndc":
            z_t = z_tau + s * e
            target = z_t + (z_tau - z_t) * (float(sigma) ** 2 / s**2)
        elif name == "apndc":
            z_t, target = z_tau + s * e, estimate
        else:
            z_t, target = estimate + sigma * e, estimate
        for y in range(denoiser.num_classes):
            label = torch.eye(denoiser.num_classes)[[y] * len(z)]
            h = denoiser(z_t, torch.full((len(z),), float(sigma)), label)
            scores[:, y] -= weight(grid)[t] * ((h - target).double() ** 2).flatten(1).sum(1)
    return scores.numpy()


@pytest.mark.parametrize("name", CLASSIFIERS)
@pytest.mark.parametrize("weight", ["elbo", "edm", "paper"])
def test_scores_equal_the_formulas_written_out(name: str, weight: str) -> None:
    from ndc_core.noise.grid import WEIGHTS, tau_correction

    denoiser = GaussianDenoiser(torch.randn(3, 6, generator=torch.Generator().manual_seed(0)), 0.2)
    spec = GridSpec(points=7, sigma_model_max=3, sigma_model_min=0.1)
    z = np.random.default_rng(0).standard_normal((5, *denoiser.image_shape))
    noise = gaussian_noise(denoiser.image_shape, draws=5, refine=5)
    classifier = DiffusionClassifier(denoiser, name, grid=spec, weight=weight, rows_per_pass=4)

    def named_weight(grid):
        return WEIGHTS[weight](grid) * (tau_correction(grid) if name == "epndc" else 1)

    expected = direct_scores(denoiser, name, z, spec, named_weight, tau=0.5, noise=noise)
    np.testing.assert_allclose(scores(classifier, z, tau_model=0.5, noise=noise), expected, rtol=2e-4, atol=1e-5)


def test_every_forward_pass_has_the_same_number_of_rows() -> None:
    denoiser = ConstantDenoiser(torch.randn(5, 1, 2, 2, generator=torch.Generator().manual_seed(1)))
    sift = SiftSpec(GridSpec(6, 3), threshold_per_dim=1e-3, keep=2)
    classifier = DiffusionClassifier(denoiser, "apndc-ensemble", grid=GridSpec(9, 3), sift=sift, rows_per_pass=16)
    z = np.random.default_rng(0).standard_normal((13, 1, 2, 2))
    predict(classifier, z, tau_model=0.5, noise=gaussian_noise((1, 2, 2), draws=13, refine=7, sift=4))
    assert set(denoiser.rows_seen) == {16}


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_vote_is_the_same_alone_and_in_company(name: str) -> None:
    denoiser = two_gaussians(distance=0.4)
    sift = SiftSpec(GridSpec(6, 3, "log", 0.1), threshold_per_dim=0.01, keep=1)
    grid = GridSpec(9, 3, "log", 0.1)
    z = np.random.default_rng(0).standard_normal((12, *denoiser.image_shape))
    noise = gaussian_noise(denoiser.image_shape, draws=12, refine=grid.steps, sift=sift.grid.steps)
    together = DiffusionClassifier(denoiser, name, grid=grid, sift=sift, rows_per_pass=64)
    winners = predict(together, z, tau_model=0.5, noise=noise).winners
    assert len(set(winners)) == 2
    for index in range(12):
        own = DrawNoise(*(part[index : index + 1] for part in (noise.input, noise.refine, noise.sift)))
        alone = predict(together, z[index : index + 1], tau_model=0.5, noise=own)
        assert alone.winners[0] == winners[index]


def test_evaluations_are_counted_without_padding() -> None:
    denoiser = ConstantDenoiser(torch.zeros(10, 1, 2, 2))
    z = np.zeros((3, 1, 2, 2))
    noise = gaussian_noise((1, 2, 2), draws=3, refine=124)
    expected = {"dc": 1240, "epndc": 1240, "apndc": 1241, "apndc-ensemble": 1241}
    for name, evaluations in expected.items():
        classifier = DiffusionClassifier(denoiser, name, grid=GridSpec(126, 3), rows_per_pass=100)
        assert predict(classifier, z, tau_model=0.5, noise=noise).evaluations == 3 * evaluations


def test_a_value_that_is_not_finite_is_an_error_that_names_its_place() -> None:
    class Broken(ConstantDenoiser):
        def __call__(self, z, sigma_model, label):
            output = super().__call__(z, sigma_model, label)
            output[(label[:, 3] > 0) & (sigma_model > 2.9)] = float("nan")
            return output

    classifier = DiffusionClassifier(Broken(torch.zeros(5, 1, 2, 2)), "dc", grid=GridSpec(9, 3), rows_per_pass=8)
    with pytest.raises(NonFiniteScoreError, match=r"sigma_model 3, class 3") as caught:
        predict(classifier, np.zeros((2, 1, 2, 2)), tau_model=0.5, noise=gaussian_noise((1, 2, 2), draws=2, refine=7))
    assert caught.value.row == 0


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    denoiser = ConstantDenoiser(torch.zeros(2, 1, 2, 2))
    with pytest.raises(ValueError, match="unknown classifier 'dcc'; there are: dc, epndc, apndc, apndc-ensemble"):
        DiffusionClassifier(denoiser, "dcc", grid=GridSpec(9, 3))
    with pytest.raises(ValueError, match="unknown weight"):
        DiffusionClassifier(denoiser, "dc", grid=GridSpec(9, 3), weight="none")


def test_rows_of_a_pass_do_not_touch_each_other(tiny_model) -> None:
    """With one shape, a row's loss is the same bit for bit at any place and among any others (S1)."""
    denoiser = load_denoiser(tiny_model)
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    z, sigma = torch.randn(64, 1, 8, 8, generator=generator), torch.rand(64, generator=generator) + 0.3
    label = torch.eye(10)[torch.randint(0, 10, (64,), generator=generator)]
    order = torch.randperm(64, generator=generator)
    with torch.inference_mode():
        straight, shuffled = denoiser(z, sigma, label), denoiser(z[order], sigma[order], label[order])
    assert torch.equal(straight[order], shuffled)
