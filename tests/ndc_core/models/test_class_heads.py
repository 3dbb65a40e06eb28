"""Class heads: one forward pass for every class, equal to one call for each."""

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from ndc_core.checkpoints.denoisers import load_denoiser
from ndc_core.models.class_heads import HeadsDenoiser
from ndc_core.models.denoiser import Denoiser, EveryClass
from ndc_core.models.execution import Execution
from ndc_core.models.networks.small import SmallHeadsUNet
from ndc_core.training.denoiser import TrainingSpec, save_trained, train_denoiser
from ndc_core.training.fitting import TrainingProgress
from pipeline.cli import main
from tests.ndc_core.training.test_denoiser import SHORT, stripes

CLASSES = 4


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Threads wait for each other where cores are busy."""
    torch.set_num_threads(1)


def random_heads() -> HeadsDenoiser:
    torch.manual_seed(0)
    network = SmallHeadsUNet(image_channels=3, num_classes=CLASSES, channels=8)
    for parameter in network.parameters():  # a new network's last layer is zero: it would hide everything
        torch.nn.init.normal_(parameter, std=0.15)
    network.requires_grad_(False)
    return HeadsDenoiser(network, image_shape=(3, 8, 8), num_classes=CLASSES)


def inputs(rows: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows, 3, 8, 8, generator=generator), torch.rand(rows, generator=generator) + 0.1


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    spec = TrainingSpec(channels=8)
    save_trained(tmp_path / "heads", random_heads(), spec=spec, notes={}, network="small-heads")
    return tmp_path / "heads"


def test_every_class_is_what_the_labels_give_one_by_one() -> None:
    denoiser = random_heads()
    z, sigma = inputs()
    every = denoiser.every_class(z, sigma)
    assert every.shape == (5, CLASSES, 3, 8, 8)
    assert 0 < (every.abs() == 1).float().mean() < 1  # clipped in part
    for k in range(CLASSES):
        label = torch.eye(CLASSES)[k].expand(5, -1)
        torch.testing.assert_close(every[:, k], denoiser(z, sigma, label), rtol=0, atol=1e-6)
    assert (every[:, 0] != every[:, 1]).any()


def test_blended_labels_blend_heads_and_what_they_lack_is_the_head_for_no_class() -> None:
    denoiser = random_heads()
    z, sigma = inputs()
    heads = denoiser.unclipped_heads(z, sigma)
    none = torch.zeros(5, CLASSES)
    torch.testing.assert_close(denoiser.unclipped(z, sigma, none), heads[:, -1])
    label = torch.tensor([0.5, 0.0, 0.2, 0.0]).expand(5, -1)
    expected = 0.5 * heads[:, 0] + 0.2 * heads[:, 2] + 0.3 * heads[:, -1]
    torch.testing.assert_close(denoiser.unclipped(z, sigma, label), expected)
    torch.testing.assert_close(denoiser(z, sigma, label), expected.clamp(-1, 1))


def test_chosen_heads_are_those_of_a_full_pass() -> None:
    denoiser = random_heads()
    z, sigma = inputs()
    chosen = torch.tensor([3, 0, CLASSES])
    expected = denoiser.unclipped_heads(z, sigma)[:, chosen]
    torch.testing.assert_close(denoiser.unclipped_heads(z, sigma, chosen), expected)


def test_a_head_that_is_not_finite_comes_out_as_nan() -> None:
    denoiser = random_heads()
    denoiser.network.conv_out.bias[3 * 2].fill_(float("inf"))
    z, sigma = inputs()
    every = denoiser.every_class(z, sigma)
    assert every[:, 2, 0].isnan().all()
    assert every[:, [0, 1, 3]].isfinite().all()
    assert denoiser(z, sigma, torch.eye(CLASSES)[2].expand(5, -1))[:, 0].isnan().all()


def test_a_saved_model_with_heads_is_loaded_as_one(checkpoint: Path, tiny_model: Path) -> None:
    loaded = load_denoiser(checkpoint)
    assert isinstance(loaded, EveryClass)
    assert isinstance(loaded, Denoiser)
    assert not isinstance(load_denoiser(tiny_model), EveryClass)
    z, sigma = inputs()
    assert torch.equal(loaded.every_class(z, sigma), random_heads().every_class(z, sigma))


@pytest.mark.parametrize(
    ("execution", "tolerance"),
    [(Execution(channels_last=True), 1e-5), (Execution(precision="bfloat16", channels_last=True), 0.1)],
)
def test_heads_run_in_other_precisions_and_layouts(checkpoint: Path, execution: Execution, tolerance: float) -> None:
    z, sigma = inputs()
    expected = load_denoiser(checkpoint).every_class(z, sigma)
    images = load_denoiser(checkpoint, execution=execution).every_class(z, sigma)
    assert images.dtype == torch.float32
    torch.testing.assert_close(images, expected, rtol=0, atol=tolerance)


@pytest.mark.slow
def test_compiled_heads_give_the_same(checkpoint: Path) -> None:
    z, sigma = inputs()
    images = load_denoiser(checkpoint, execution=Execution(compile=True)).every_class(z, sigma)
    torch.testing.assert_close(images, load_denoiser(checkpoint).every_class(z, sigma), rtol=0, atol=1e-5)


def test_heads_trained_from_scratch_tell_classes_apart() -> None:
    images, labels = stripes()
    seen: list[TrainingProgress] = []
    denoiser = train_denoiser(images, labels, num_classes=2, spec=SHORT, network="small-heads", on_step=seen.append)
    assert seen[-1].loss < 0.5 * seen[0].loss
    clean = images[:8] / 127.5 - 1
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    every = denoiser.every_class(clean + noise, torch.ones(8))
    loss = (every - clean[:, None]).square().flatten(2).sum(2)
    assert torch.equal(loss.argmin(dim=1), labels[:8])


def test_heads_are_trained_from_the_command_line(tmp_path: Path) -> None:
    arguments = ["train", "--dataset", "digits", "--steps", "2", "--out", str(tmp_path / "heads"), "--heads"]
    refused = CliRunner().invoke(main, [*arguments, "pixels"])
    assert refused.exit_code == 2
    assert "'pixels' is not 'classes'" in refused.output
    done = CliRunner().invoke(main, [*arguments, "classes"])
    assert done.exit_code == 0, done.output
    loaded = load_denoiser(tmp_path / "heads")
    assert isinstance(loaded, EveryClass)
    assert loaded.num_classes == 10
