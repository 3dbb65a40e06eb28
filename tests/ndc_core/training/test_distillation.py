"""Distillation: heads learn what a conditional denoiser says of every class."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from torch import Tensor

from ndc_core.checkpoints.denoisers import denoiser_digest, load_denoiser, write_checkpoint
from ndc_core.models.class_heads import HeadsDenoiser
from ndc_core.models.denoiser import EveryClass
from ndc_core.models.networks.edm_song import SongUNet
from ndc_core.models.networks.small import SmallHeadsUNet
from ndc_core.training.distillation import DistillationSpec, distil, start_from
from ndc_core.training.fitting import TrainingProgress
from pipeline.cli import main
from tests.support.small_runs import digits, listing_of

SPEC = DistillationSpec(steps=300, batch=32, channels=16, learning_rate=5e-3, augment_share=0.0)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Threads wait for each other where cores are busy."""
    torch.set_num_threads(1)


@dataclass
class PointMasses:
    """Exact denoiser of classes with one image each: the class's image, or without a label their posterior mean."""

    images: Tensor  # classes, c, h, w
    asked: int = 0

    def __post_init__(self) -> None:
        self.num_classes = len(self.images)
        self.image_shape = (int(self.images.shape[1]), int(self.images.shape[2]), int(self.images.shape[3]))

    def __call__(self, z: Tensor, sigma_model: Tensor, label: Tensor) -> Tensor:
        self.asked += 1
        distance = torch.cdist(z.flatten(1), self.images.flatten(1)) ** 2
        posterior = torch.softmax(-distance / (2 * sigma_model[:, None] ** 2), dim=1)
        return torch.einsum("rk,kchw->rchw", label if label.any() else posterior, self.images)


def teacher_and_images() -> tuple[PointMasses, Tensor]:
    """Three classes, each one shade of grey."""
    images = torch.tensor([30, 128, 220]).byte().view(3, 1, 1, 1).repeat(1, 1, 4, 4)
    return PointMasses(images / 127.5 - 1), images


def noisy(images: Tensor) -> tuple[Tensor, Tensor]:
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    return images + 0.5 * noise, torch.full((len(images),), 0.5)


def test_a_known_teacher_is_learned_with_the_differences_of_its_classes() -> None:
    teacher, images = teacher_and_images()
    seen: list[TrainingProgress] = []
    student = distil(teacher, images, knows_no_label=True, spec=SPEC, on_step=seen.append)
    assert seen[-1].loss < 0.2 * seen[0].loss
    z, sigma = noisy(teacher.images)
    every = student.every_class(z, sigma)
    truth = teacher.images.expand(len(z), -1, -1, -1, -1)
    difference, true_difference = (outputs - outputs.mean(dim=1, keepdim=True) for outputs in (every, truth))
    assert (difference - true_difference).square().mean() < 0.05 * true_difference.square().mean()
    null = torch.zeros(len(z), 3)
    error = student(z, sigma, null) - teacher(z, sigma, null)
    assert error.square().mean() < 0.1 * teacher.images.var()


def test_where_the_teacher_knows_no_null_label_the_last_head_learns_the_mean() -> None:
    teacher, images = teacher_and_images()
    student = distil(teacher, images, knows_no_label=False, spec=SPEC)
    z, sigma = noisy(teacher.images)
    error = student(z, sigma, torch.zeros(len(z), 3)) - teacher.images.mean(dim=0)
    assert error.square().mean() < 0.1 * teacher.images.var()
    assert student.knows_no_label


def test_the_teacher_is_asked_for_few_of_many_classes_and_seldom() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (1000, 1, 4, 4), generator=generator).byte()
    teacher = PointMasses(images / 127.5 - 1)
    spec = DistillationSpec(steps=8, batch=4, channels=8, classes=5, reuse=4)
    distil(teacher, images, knows_no_label=True, spec=spec)
    assert teacher.asked == 2 * (5 + 1)


def test_a_teacher_whose_output_is_not_finite_teaches_nothing() -> None:
    teacher, images = teacher_and_images()
    teacher.images[1, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="the teacher's output is not finite"):
        distil(teacher, images, knows_no_label=True, spec=DistillationSpec(steps=2, batch=4, channels=8))


def test_distillation_is_reproducible() -> None:
    teacher, images = teacher_and_images()
    spec = DistillationSpec(steps=5, batch=4, channels=8)
    one, two = (distil(teacher, images, knows_no_label=True, spec=spec) for _ in range(2))
    for name, weight in one.state_dict().items():
        assert torch.equal(weight, two.state_dict()[name])


def test_a_student_of_its_own_kind_starts_as_the_teacher_without_a_label(tiny_model: Path) -> None:
    teacher = load_denoiser(tiny_model)
    network = SmallHeadsUNet(image_channels=1, num_classes=10, channels=8)
    start_from(network, teacher.network)
    student = HeadsDenoiser(network, image_shape=(1, 8, 8), num_classes=10)
    z, sigma = noisy(torch.zeros(2, 1, 8, 8))
    null = torch.zeros(2, 10)
    assert torch.equal(student(z, sigma, null), teacher(z, sigma, null))
    torch.testing.assert_close(student.every_class(z, sigma)[:, 3], teacher(z, sigma, null))
    wider = SmallHeadsUNet(image_channels=1, num_classes=10, channels=16)
    before = wider.conv_in.weight.clone()
    for other in (teacher.network, network):
        start_from(wider, other)
        assert torch.equal(wider.conv_in.weight, before)


def ndc(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_a_checkpoint_is_distilled_from_the_command_line(tiny_model: Path, tmp_path: Path) -> None:
    done = ndc("distill", tiny_model, tmp_path / "heads", "--steps", "3", "--channels", "8", "--limit", "50")
    assert done.exit_code == 0, done.output
    student = load_denoiser(tmp_path / "heads")
    assert isinstance(student, EveryClass)
    assert student.num_classes == 10
    notes = json.loads((tmp_path / "heads/denoiser.json").read_text())["notes"]
    assert notes["teacher_sha256"] == denoiser_digest(tiny_model)
    assert notes["sha256"] == listing_of(digits("train", limit=50)).digest
    assert notes["head_for_no_class"] == "the teacher without a label"
    again = ndc("distill", tiny_model, tmp_path / "heads")
    assert again.exit_code == 1
    assert "holds a checkpoint already" in again.output


def song_checkpoint(folder: Path, *, classes: int) -> Path:
    arguments = {
        "img_resolution": 16,
        "in_channels": 3,
        "out_channels": 3,
        "label_dim": classes,
        "model_channels": 8,
        "channel_mult": [1],
        "num_blocks": 1,
        "attn_resolutions": [],
    }
    torch.manual_seed(0)
    write_checkpoint(
        folder,
        SongUNet(**arguments).state_dict(),
        network="edm-song",
        arguments=arguments,
        image_shape=(3, 16, 16),
        num_classes=classes,
        sigma_data=0.5,
        knows_no_label=False,
        notes={},
    )
    return folder


def test_a_teacher_of_another_kind_is_distilled_on_files(tmp_path: Path) -> None:
    teacher = song_checkpoint(tmp_path / "song", classes=3)
    images = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images=images, labels=np.full(20, 7))
    data = tmp_path / "images.npz"
    done = ndc("distill", teacher, tmp_path / "heads", "--data", data, "--steps", "2", "--channels", "8")
    assert done.exit_code == 0, done.output
    student = load_denoiser(tmp_path / "heads")
    assert isinstance(student, EveryClass)
    assert student.every_class(torch.zeros(1, 3, 16, 16), torch.ones(1)).shape == (1, 3, 3, 16, 16)
    notes = json.loads((tmp_path / "heads/denoiser.json").read_text())["notes"]
    assert notes["head_for_no_class"] == "the teacher's mean over classes"


def test_what_cannot_be_distilled_is_refused_before_any_work(tiny_model: Path, tmp_path: Path) -> None:
    one_class, colour = song_checkpoint(tmp_path / "one", classes=1), song_checkpoint(tmp_path / "colour", classes=3)
    odd = shutil.copytree(tiny_model, tmp_path / "odd")
    description = json.loads((odd / "denoiser.json").read_text()) | {"image_shape": [1, 7, 8]}
    (odd / "denoiser.json").write_text(json.dumps(description))
    for arguments, message in [
        ((tmp_path / "nowhere",), "nowhere is no checkpoint"),
        ((one_class,), "knows 1 classes, and heads tell classes apart"),
        ((odd,), "which must be even"),
        ((colour,), r"is uint8 of shape (3, 8, 8)"),
        ((tiny_model, "--data", "emnist"), "dataset 'emnist' is unknown"),
        ((tiny_model, "--channels", "20"), "20 channels make no network; take a multiple of 8"),
    ]:
        done = ndc("distill", arguments[0], tmp_path / "heads", *arguments[1:])
        assert done.exit_code == 1, done.output
        assert message in done.output
        assert not (tmp_path / "heads").exists()
