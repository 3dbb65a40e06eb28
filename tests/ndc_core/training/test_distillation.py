"""Distillation: heads learn a conditional denoiser's output for every class."""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from torch import Tensor

from ndc_core.checkpoints.denoisers import denoiser_digest, load_denoiser, write_checkpoint
from ndc_core.models.class_heads import HeadsDenoiser
from ndc_core.models.denoiser import EDMDenoiser, EveryClass
from ndc_core.models.networks.edm2 import EDM2UNet
from ndc_core.models.networks.edm_song import SongUNet
from ndc_core.models.networks.linear_heads import TRUNKS
from ndc_core.models.networks.small import SmallHeadsUNet
from ndc_core.training.distillation import (
    Answer,
    Answers,
    DistillationSpec,
    asked_in_full_passes,
    distil,
    distillation_loss,
)
from ndc_core.training.fitting import ONE_CPU, TrainingProgress
from ndc_core.training.students import heads_arguments, linear_student, small_student, start_from
from pipeline.cli import main
from tests.support.linear_heads import ARGUMENTS, CLASSES
from tests.support.small_runs import digits, listing_of

SHORT = ("--steps", "1", "--batch", "4")
SPEC = DistillationSpec(steps=300, batch=32, channels=16, learning_rate=5e-3, augment_share=0.0)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Threads wait for each other where cores are busy."""
    torch.set_num_threads(1)


@dataclass
class PointMasses:
    """Exact denoiser of classes with one image each: the class's image, or without a label their posterior mean."""

    images: Tensor  # classes, c, h, w
    rows_asked: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.num_classes = len(self.images)
        self.image_shape = (int(self.images.shape[1]), int(self.images.shape[2]), int(self.images.shape[3]))

    def __call__(self, z: Tensor, sigma_model: Tensor, label: Tensor) -> Tensor:
        self.rows_asked.append(len(z))
        distance = torch.cdist(z.flatten(1), self.images.flatten(1)) ** 2
        posterior = torch.softmax(-distance / (2 * sigma_model[:, None] ** 2), dim=1)
        share = torch.where(label.any(dim=1, keepdim=True), label, posterior)
        return torch.einsum("rk,kchw->rchw", share, self.images)


def distilled(
    teacher: PointMasses, images: Tensor, *, spec: DistillationSpec, knows_no_label: bool = True, **more: Any
) -> HeadsDenoiser:
    student = small_student(teacher, channels=spec.channels, seed=spec.seed)
    return distil(teacher, student, images, knows_no_label=knows_no_label, spec=spec, **more)


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
    student = distilled(teacher, images, spec=SPEC, on_step=seen.append)
    assert seen[-1].loss < 0.2 * seen[0].loss
    assert error_of_differences(teacher, student) < 0.05
    z, sigma = noisy(teacher.images)
    null = torch.zeros(len(z), 3)
    error = student(z, sigma, null) - teacher(z, sigma, null)
    assert error.square().mean() < 0.1 * teacher.images.var()


@torch.no_grad()
def error_of_differences(teacher: PointMasses, student: HeadsDenoiser) -> float:
    """The error of the differences between classes, as a share of the true ones."""
    z, sigma = noisy(teacher.images)
    every, truth = student.every_class(z, sigma), teacher.images.expand(len(z), -1, -1, -1, -1)
    difference, true_difference = (outputs - outputs.mean(dim=1, keepdim=True) for outputs in (every, truth))
    return float((difference - true_difference).square().mean() / true_difference.square().mean())


def test_heads_on_a_network_of_edm_learn_the_differences_of_classes() -> None:
    teacher, images = teacher_and_images()
    sizes = {"img_resolution": 4, "in_channels": 1, "out_channels": 1, "label_dim": 3, "model_channels": 8}
    arguments = {**sizes, "channel_mult": [1], "num_blocks": 1, "attn_resolutions": []}
    torch.manual_seed(0)
    start = EDMDenoiser(SongUNet(**arguments), image_shape=(1, 4, 4), num_classes=3)
    student = linear_student(start, heads_arguments("edm-song", arguments), seed=0)
    assert error_of_differences(teacher, student) == pytest.approx(1.0, abs=1e-3)  # all heads are one
    spec = DistillationSpec(steps=100, batch=16, max_seconds=None, learning_rate=1e-2, augment="none", kept=4)
    learned = distil(teacher, student, images, knows_no_label=True, spec=spec)
    assert error_of_differences(teacher, learned) < 0.1


def test_where_the_teacher_knows_no_null_label_the_last_head_learns_the_mean() -> None:
    teacher, images = teacher_and_images()
    student = distilled(teacher, images, knows_no_label=False, spec=SPEC)
    z, sigma = noisy(teacher.images)
    error = student(z, sigma, torch.zeros(len(z), 3)) - teacher.images.mean(dim=0)
    assert error.square().mean() < 0.1 * teacher.images.var()
    assert student.knows_no_label


def test_the_teacher_is_asked_for_few_of_many_classes_seldom_and_in_full_passes() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (1000, 1, 4, 4), generator=generator).byte()
    teacher = PointMasses(images / 127.5 - 1)
    spec = DistillationSpec(steps=8, batch=4, channels=8, classes=5, reuse=4)
    distilled(teacher, images, spec=spec)
    assert teacher.rows_asked in ([4 * (5 + 1)], [4 * (5 + 1)] * 2)  # the second answer, if a step drew it
    teacher.rows_asked.clear()
    z = torch.zeros(100, 1, 4, 4)
    outputs = asked_in_full_passes(teacher, z, torch.ones(100), torch.eye(1000)[:6])
    assert teacher.rows_asked == [200] * 3
    assert torch.equal(outputs, teacher.images[:6].expand(100, -1, -1, -1, -1))


def test_answers_are_a_function_of_their_number() -> None:
    teacher, images = teacher_and_images()
    spec = DistillationSpec(batch=4, reuse=2, kept=2)

    def answers() -> Answers:
        return Answers(teacher, images, knows_no_label=True, spec=spec, machine=ONE_CPU)

    generator, known, late = torch.Generator().manual_seed(0), answers(), answers()
    for step in range(12):
        before = generator.get_state()
        answer = known.for_step(step, generator)
        if step >= 7:
            generator.set_state(before)
            repeated = late.for_step(step, generator)
            assert torch.equal(answer.z, repeated.z)
            assert torch.equal(answer.outputs, repeated.outputs)
    assert sorted(known.recent) == [4, 5]  # no others are kept


def test_a_teacher_whose_output_is_not_finite_teaches_nothing() -> None:
    teacher, images = teacher_and_images()
    teacher.images[1, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="the teacher's output is not finite"):
        distilled(teacher, images, spec=DistillationSpec(steps=2, batch=4, channels=8))


def test_distillation_is_reproducible() -> None:
    teacher, images = teacher_and_images()
    spec = DistillationSpec(steps=5, batch=4, channels=8)
    first, second = (distilled(teacher, images, spec=spec) for _ in range(2))
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, second.state_dict()[name])


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
    short = ["--steps", "3", "--channels", "8", "--limit", "50", "--tracking", "none"]
    done = ndc("distill", tiny_model, "digits", tmp_path / "heads", *short)
    assert done.exit_code == 0, done.output
    student = load_denoiser(tmp_path / "heads")
    assert isinstance(student, EveryClass)
    assert student.num_classes == 10
    notes = json.loads((tmp_path / "heads/denoiser.json").read_text())["notes"]
    assert notes["teacher_sha256"] == denoiser_digest(tiny_model)
    assert notes["sha256"] == listing_of(digits("train", limit=50)).digest
    assert notes["head_for_no_class"] == "the teacher without a label"
    again = ndc("distill", tiny_model, "digits", tmp_path / "heads")
    assert again.exit_code == 1
    assert "holds a checkpoint already" in again.output


def song_checkpoint(folder: Path, *, classes: int, seed: int = 0) -> Path:
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
    torch.manual_seed(seed)
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
    small = ["--network", "small", "--channels", "8", "--tracking", "none"]
    done = ndc("distill", teacher, data, tmp_path / "heads", "--steps", "2", "--batch", "4", *small)
    assert done.exit_code == 0, done.output
    student = load_denoiser(tmp_path / "heads")
    assert isinstance(student, EveryClass)
    assert student.every_class(torch.zeros(1, 3, 16, 16), torch.ones(1)).shape == (1, 3, 3, 16, 16)
    notes = json.loads((tmp_path / "heads/denoiser.json").read_text())["notes"]
    assert notes["head_for_no_class"] == "the teacher's mean over classes"


def folders_of_classes(folder: Path, classes: int) -> Path:
    for name in range(classes):
        (folder / f"class-{name}").mkdir(parents=True)
        Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(folder / f"class-{name}/image.png")
    return folder


@pytest.mark.parametrize("trunk", ARGUMENTS)
@pytest.mark.parametrize("knows_no_label", [True, False])
def test_a_student_on_its_teachers_network_starts_as_the_teacher_without_a_label(
    trunk: str, knows_no_label: bool
) -> None:
    torch.manual_seed(1)
    network = TRUNKS[trunk](**ARGUMENTS[trunk])
    if isinstance(network, EDM2UNet):
        torch.nn.init.ones_(network.out_gain)
    teacher = EDMDenoiser(network, image_shape=(3, 8, 8), num_classes=CLASSES, knows_no_label=knows_no_label).eval()
    student = linear_student(teacher, heads_arguments(trunk, ARGUMENTS[trunk]), seed=0)
    z, sigma = noisy(torch.zeros(2, 3, 8, 8))
    label = torch.zeros(2, CLASSES) if knows_no_label else torch.full((2, CLASSES), 1 / CLASSES)
    with torch.no_grad():
        expected = teacher.unclipped(z, sigma, label)
        heads = student.unclipped_heads(z, sigma)
    assert expected.std() > 0.01
    torch.testing.assert_close(heads, expected[:, None].expand_as(heads), rtol=0, atol=1e-5)
    distillation_loss(student, Answer(z, sigma, torch.tensor([1, CLASSES]), heads[:, [1, CLASSES]] + 1)).backward()
    gradient = student.network.heads.grad
    assert isinstance(gradient, torch.Tensor)
    assert gradient[1].abs().min() > 0  # of every feature


def test_what_cannot_be_distilled_is_refused_before_any_work(tiny_model: Path, tmp_path: Path) -> None:
    one_class, colour = song_checkpoint(tmp_path / "one", classes=1), song_checkpoint(tmp_path / "colour", classes=10)
    nine = folders_of_classes(tmp_path / "nine", 9)
    odd = shutil.copytree(tiny_model, tmp_path / "odd")
    description = json.loads((odd / "denoiser.json").read_text()) | {"image_shape": [1, 7, 8]}
    (odd / "denoiser.json").write_text(json.dumps(description))
    for arguments, message in [
        ((tmp_path / "nowhere", "digits"), "nowhere is no checkpoint"),
        ((one_class, "digits", *SHORT), "knows 1 classes, and heads tell classes apart"),
        ((odd, "digits"), "which must be even"),
        ((colour, "digits", *SHORT), "is uint8 of shape (3, 8, 8)"),
        ((colour, nine, *SHORT), "names 9 classes, and the teacher knows 10"),
        ((colour, "digits"), "say how long to distil: --steps or --max-seconds"),
        ((colour, "digits", *SHORT, "--channels", "8"), "--channels is for the small network"),
        ((tiny_model, "digits", "--network", "own"), "class heads do not fit the network small"),
        ((tiny_model, "digits", "--limit", "31"), "has 31 images, fewer than a batch of 32"),
        ((tiny_model, "digits", "--augment", "mixup"), "augment 'mixup' is unknown"),
        ((tiny_model, "emnist"), "dataset 'emnist' is unknown"),
        ((tiny_model, "digits", "--channels", "20"), "20 channels make no network; take a multiple of 8"),
        ((tiny_model, "digits", "--device", "cuda"), "sees no CUDA device"),
    ]:
        done = ndc("distill", *arguments[:2], tmp_path / "heads", *arguments[2:])
        assert done.exit_code == 1, done.output
        assert message in " ".join(done.output.split()), done.output
        assert not (tmp_path / "heads").exists()
