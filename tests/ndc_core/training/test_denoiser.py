from dataclasses import replace

import numpy as np
import pytest
import torch

from ndc_core.classifiers.diffusion import DiffusionClassifier
from ndc_core.noise.grid import GridSpec
from ndc_core.training.augmentation import flip_and_shift, jitter
from ndc_core.training.denoiser import TrainingSpec, train_denoiser
from ndc_core.training.fitting import TrainingProgress
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
    first, second = (train_denoiser(images, labels, num_classes=2, spec=spec) for _ in range(2))
    other = train_denoiser(images, labels, num_classes=2, spec=TrainingSpec(steps=10, batch=16, channels=8, seed=1))
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, second.state_dict()[name])
    assert any(not torch.equal(weight, other.state_dict()[name]) for name, weight in first.state_dict().items())


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


def test_flips_and_shifts_move_whole_pixels_and_reflect_borders() -> None:
    image = torch.arange(64.0).view(1, 1, 8, 8)
    moved = flip_and_shift(image.repeat(300, 1, 1, 1), torch.Generator().manual_seed(0), share=0.5)
    padded = torch.nn.functional.pad(image, (1, 1, 1, 1), mode="reflect")[0, 0]
    crops = [padded[down : down + 8, right : right + 8] for down in range(3) for right in range(3)]
    possible = {tuple(variant.flatten().tolist()) for crop in crops for variant in (crop, crop.flip(1))}
    seen = [tuple(sample.flatten().tolist()) for sample in moved]
    assert set(seen) == possible
    mirrored = sum(row[0] > row[7] for row in seen) / 300
    unshifted = sum(min(row[0], row[7]) == 0 and max(row[0], row[7]) == 7 for row in seen) / 300
    assert 0.4 < mirrored < 0.6
    assert 0.45 < unshifted < 0.67  # half of them, and a ninth of the shifted ones


def test_time_left_is_that_of_the_nearer_end() -> None:
    images, labels = stripes()
    for spec, end in ((replace(SHORT, steps=20), 0.0), (replace(SHORT, steps=10**9, max_seconds=2.0), 2.0)):
        seen: list[TrainingProgress] = []
        train_denoiser(images, labels, num_classes=2, spec=spec, on_step=seen.append)
        assert seen[-1].seconds_left == 0.0
        if end:
            halfway = seen[len(seen) // 2]
            assert halfway.seconds + halfway.seconds_left == pytest.approx(end, abs=0.01)
