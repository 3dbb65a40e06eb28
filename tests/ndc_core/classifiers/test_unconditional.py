import pytest
import torch

from ndc_core.classifiers.diffusion import DiffusionClassifier
from ndc_core.classifiers.scoring import _BatchScoring
from ndc_core.classifiers.unconditional import UNCONDITIONALS, Unconditional, blended_label, label_mean, null_label
from ndc_core.models.forward_passes import answer
from ndc_core.noise.grid import GridSpec
from tests.support.fakes import two_gaussians


def estimate(unconditional: Unconditional, *, sigma_model: float, rows_per_pass: int = 4) -> torch.Tensor:
    denoiser = two_gaussians()
    z = torch.randn(7, *denoiser.image_shape, generator=torch.Generator().manual_seed(0))
    classifier = DiffusionClassifier(denoiser, "apndc", GridSpec(4, 9.0), unconditional=unconditional)
    scoring = _BatchScoring(classifier, [z.numpy()], (sigma_model,), None)
    (target,) = answer(scoring.estimates(), rows_per_pass=rows_per_pass, device=torch.device("cpu"))
    assert scoring.cost.tolist() == [unconditional.evaluations] * 7
    return target


def test_the_label_mean_is_the_mean_over_labels() -> None:
    denoiser = two_gaussians()
    z = torch.randn(7, *denoiser.image_shape, generator=torch.Generator().manual_seed(0))
    sigma = torch.full((7,), 0.5)
    each = [denoiser(z, sigma, torch.eye(2)[label].expand(7, 2)) for label in (0, 1)]
    torch.testing.assert_close(estimate(label_mean(denoiser), sigma_model=0.5), (each[0] + each[1]) / 2)


@pytest.mark.parametrize("rows_per_pass", [1, 2, 3, 64])
@pytest.mark.parametrize("name", UNCONDITIONALS)
def test_an_estimate_does_not_depend_on_the_rows_of_a_pass(name: str, rows_per_pass: int) -> None:
    unconditional = UNCONDITIONALS[name](two_gaussians())
    reference = estimate(unconditional, sigma_model=0.5, rows_per_pass=14)
    torch.testing.assert_close(estimate(unconditional, sigma_model=0.5, rows_per_pass=rows_per_pass), reference)


def test_label_mean_and_blended_label_become_exact_as_noise_drowns_the_class() -> None:
    denoiser = two_gaussians()
    gaps = {
        sigma: (
            estimate(label_mean(denoiser), sigma_model=sigma) - estimate(null_label(denoiser), sigma_model=sigma)
        ).norm()
        for sigma in (0.5, 5.0, 50.0)
    }
    assert gaps[0.5] > 10 * gaps[5.0] > 100 * gaps[50.0]
    # This denoiser is linear in its label, so that the two are the same.
    blended, mean = (estimate(make(denoiser), sigma_model=0.5) for make in (blended_label, label_mean))
    torch.testing.assert_close(blended, mean)


def test_a_separate_unconditional_model_gives_the_target() -> None:
    class Nothing:
        image_shape, num_classes = (1, 1, 4), 0

        def __call__(self, z: torch.Tensor, sigma_model: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
            assert label.shape == (len(z), 0)
            return torch.zeros_like(z)

    other = null_label(Nothing())
    assert torch.equal(estimate(other, sigma_model=0.5), torch.zeros(7, 1, 1, 4))
    grid = GridSpec(points=4, sigma_model_max=2.0)
    classifier = DiffusionClassifier(two_gaussians(), "apndc", grid=grid, unconditional=other)
    assert classifier.estimator is other
