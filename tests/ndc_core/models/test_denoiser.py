import pytest
import torch

from ndc_core.models.denoiser import EDMDenoiser, clip_to_image_range
from ndc_core.models.networks.small import SmallUNet, noise_embedding


def small(**arguments) -> EDMDenoiser:
    torch.manual_seed(0)
    network = SmallUNet(**({"image_channels": 3, "num_classes": 4, "channels": 8} | arguments))
    for parameter in network.parameters():  # a new network's last layer is zero: it would hide everything
        torch.nn.init.normal_(parameter, std=0.2)
    return EDMDenoiser(network, image_shape=(3, 8, 8), num_classes=4)


def inputs(rows: int = 5):
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(rows, 3, 8, 8, generator=generator)
    return z, torch.rand(rows, generator=generator) + 0.1, torch.eye(4)[torch.arange(rows) % 4]


def test_output_is_clipped_to_the_image_range() -> None:
    denoiser = small()
    z, sigma, label = inputs()
    unclipped, clipped = denoiser.unclipped(10 * z, sigma, label), denoiser(10 * z, sigma, label)
    assert unclipped.abs().max() > 1
    assert torch.equal(clipped, unclipped.clamp(-1, 1))


def test_clipping_never_hides_what_is_not_finite() -> None:
    values = torch.tensor([0.5, 2.0, float("inf"), -float("inf"), float("nan")])
    clipped = clip_to_image_range(values)
    assert clipped[:2].tolist() == [0.5, 1.0]
    assert clipped[2:].isnan().all()


def test_without_noise_the_denoiser_returns_its_input() -> None:
    denoiser = small()
    z, _, label = inputs()
    z = z.clamp(-1, 1)
    torch.testing.assert_close(denoiser(z, torch.full((5,), 1e-6), label), z, atol=1e-4, rtol=0)


def test_preconditioning_is_edms() -> None:
    class Ones(torch.nn.Module):
        def forward(self, x, c_noise, label):
            self.seen = x, c_noise
            return torch.ones_like(x)

    denoiser = EDMDenoiser(Ones(), image_shape=(3, 8, 8), num_classes=4)
    z, _, label = inputs(1)
    output = denoiser.unclipped(z, torch.tensor([2.0]), label)
    torch.testing.assert_close(output, z * 0.25 / 4.25 + 2 * 0.5 / 4.25**0.5)
    torch.testing.assert_close(denoiser.network.seen[0], z / 4.25**0.5)
    torch.testing.assert_close(denoiser.network.seen[1], torch.log(torch.tensor([2.0])) / 4)


def test_label_and_noise_level_reach_every_output() -> None:
    denoiser = small()
    z, sigma, label = inputs()
    base = denoiser.unclipped(z, sigma, label)
    assert (denoiser.unclipped(z, sigma, label.roll(1, dims=1)) != base).flatten(1).any(1).all()
    assert (denoiser.unclipped(z, sigma, torch.zeros_like(label)) != base).flatten(1).any(1).all()
    assert (denoiser.unclipped(z, sigma * 1.1, label) != base).flatten(1).any(1).all()


def test_the_label_is_continuous() -> None:
    denoiser = small()
    z, sigma, label = inputs()
    label = label.clone().requires_grad_()
    denoiser.unclipped(z, sigma, label).square().sum().backward()
    assert label.grad is not None
    assert label.grad.abs().sum() > 0


@pytest.mark.parametrize("channels", [8, 32])
def test_noise_embedding_tells_close_levels_apart(channels: int) -> None:
    embedding = noise_embedding(torch.tensor([0.1, 0.11]), channels=channels)
    assert embedding.shape == (2, channels)
    assert (embedding[0] - embedding[1]).norm() > 0.1
