import numpy as np
import torch

from ndc_core.classifiers.diffusion import DiffusionClassifier
from ndc_core.noise.grid import GridSpec
from ndc_core.training.denoiser import TrainingProgress, TrainingSpec, jitter, train_denoiser
from ndc_core.voting import count_votes


def stripes() -> tuple[torch.Tensor, torch.Tensor]:
    """Two classes that are easily told apart: horizontal and vertical stripes."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 2, (200,), generator=generator)
    horizontal = torch.zeros(8, 8)
    horizontal[::2] = 200
    images = torch.where(labels[:, None, None].bool(), horizontal, horizontal.T)
    noise = torch.randint(0, 50, images.shape, generator=generator)
    return (images + noise).byte()[:, None], labels


SHORT = TrainingSpec(steps=300, batch=32, channels=8, augment_share=0.0)


def test_a_trained_denoiser_classifies_what_it_was_trained_on() -> None:
    images, labels = stripes()
    seen: list[TrainingProgress] = []
    denoiser = train_denoiser(images, labels, num_classes=2, spec=SHORT, on_step=seen.append)
    assert len(seen) == SHORT.steps
    assert seen[-1].loss < 0.5 * seen[0].loss
    assert seen[-1].share_done == 1
    classifier = DiffusionClassifier(denoiser, "apndc-ensemble", grid=GridSpec(8, 2, "log"), weight="edm")
    for index in range(6):
        counts = count_votes(
            classifier,
            images[index].numpy(),
            sigma_pixel=0.25,
            noise="integer",
            seed=0,
            image_id=str(index),
            phase="selection",
            draws=range(40),
        )
        assert counts.votes.argmax() == labels[index]
        assert counts.votes.max() > 30


def test_training_is_reproducible_and_depends_on_its_seed() -> None:
    images, labels = stripes()
    spec = TrainingSpec(steps=10, batch=16, channels=8)
    one, two = (train_denoiser(images, labels, num_classes=2, spec=spec) for _ in range(2))
    other = train_denoiser(images, labels, num_classes=2, spec=TrainingSpec(steps=10, batch=16, channels=8, seed=1))
    for name, weight in one.state_dict().items():
        assert torch.equal(weight, two.state_dict()[name])
    assert any(not torch.equal(weight, other.state_dict()[name]) for name, weight in one.state_dict().items())


def test_training_ends_at_its_time_limit() -> None:
    images, labels = stripes()
    seen: list[TrainingProgress] = []
    spec = TrainingSpec(steps=10**6, max_seconds=1.0, batch=16, channels=8)
    train_denoiser(images, labels, num_classes=2, spec=spec, on_step=seen.append)
    assert 1.0 <= seen[-1].seconds < 5.0


def test_jitter_moves_the_chosen_share_and_keeps_the_range() -> None:
    images = torch.rand(400, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    moved = jitter(images, torch.Generator().manual_seed(1), share=0.5)
    changed = (moved != images).flatten(1).any(1).float().mean()
    assert 0.4 < changed < 0.6
    assert moved.min() >= -1 - 1e-6
    assert moved.max() <= 1 + 1e-6
    assert np.isfinite(moved.numpy()).all()
