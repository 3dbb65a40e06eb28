"""The checks of a network before it votes: each fault is named with its remedy, and sound networks pass."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ndc_core.analysis.contract import TOLERANCE, ContractError, check_classifier, check_denoiser, check_rows
from ndc_core.checkpoints.denoisers import load_denoiser
from ndc_core.models.denoiser import ClippedDenoiser, Denoiser
from ndc_core.models.precision import Precision
from tests.support.fakes import many_gaussians, two_gaussians
from tests.support.linear_heads import saved


def check(denoiser: object, *, precision: Precision = "float32") -> None:
    check_denoiser(denoiser, name="mine", device="cpu", precision=precision)


@dataclass
class Shrinking:
    """A sound denoiser whose outputs `spoil` changes, given z and the outputs."""

    spoil: Callable[[Tensor, Tensor], Tensor]
    image_shape: tuple[int, int, int] = (1, 2, 3)
    num_classes: int = 3
    bounded: bool = False

    def __call__(self, z: Tensor, sigma_model: Tensor, label: Tensor) -> Tensor:
        return self.spoil(z, z / (1 + sigma_model**2)[:, None, None, None])


def test_sound_networks_pass(tiny_model: Path, tmp_path: Path) -> None:
    check(load_denoiser(tiny_model))
    check(load_denoiser(saved(tmp_path / "linear")))  # not clipped, and it does not say that it is
    check(ClippedDenoiser(two_gaussians(), knows_no_label=True))
    check(many_gaussians(3, heads=True))
    check(Shrinking(lambda z, outputs: outputs, num_classes=0))


FAULTS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], str]] = {
    "shape": (
        lambda z, outputs: outputs[..., :2],
        r"gives \(4, 1, 2, 2\) for .* of 4 rows; it must give \(4, 1",
    ),
    "rows": (lambda z, outputs: outputs[:1], r"gives \(1, 1, 2, 3\)"),
    "no tensor": (lambda z, outputs: outputs.numpy(), "gives ndarray for"),
    "dtype": (lambda z, outputs: outputs.double(), "gives torch.float64 .* return single precision"),
    "NaN": (lambda z, outputs: outputs / 0, "gives NaN or infinity .*sigma_model 0.01 to 80"),
    "NaN in little noise": (lambda z, outputs: torch.where(z.abs() > 20, torch.nan, outputs), "gives NaN or infinity"),
    "scale": (lambda z, outputs: (outputs + 1) * 127.5, r"another scale; return images in \[-1, 1\]"),
    "raises": (
        lambda z, outputs: outputs.view(7, -1),
        r"fails on images, .* \(4, 1, 2, 3\), \(4,\), \(4, 3\): Runt",
    ),
    "batch": (lambda z, outputs: outputs - outputs.mean(0), r"moves with the other rows .*rule S1.*normalisation over"),
    "place": (lambda z, outputs: outputs + torch.arange(len(z)).view(-1, 1, 1, 1) / 9, "moves with a row's place"),
    "chance": (lambda z, outputs: nn.functional.dropout(outputs), "moves when a pass is repeated.*draw nothing at ran"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_with_its_remedy(fault: str) -> None:
    spoil, message = FAULTS[fault]
    with pytest.raises(ContractError, match=f"mine.*{message}"):
        check(Shrinking(spoil))


def test_what_calls_itself_bounded_must_be() -> None:
    far = Shrinking(lambda z, outputs: outputs * 1.5, bounded=True)
    with pytest.raises(ContractError, match=r"says that it is bounded, and gives .*clip its outputs to \[-1, 1\]"):
        check(far)
    check(ClippedDenoiser(far, knows_no_label=False))


@pytest.mark.parametrize("missing", [nn.Identity(), "no network", Shrinking(lambda z, outputs: outputs, (2, 3))])
def test_a_network_must_say_what_it_takes(missing: object) -> None:
    with pytest.raises(ContractError, match=r"mine is a \w+ with image_shape .*; it must be callable"):
        check(missing)


def test_normalisation_over_the_batch_is_noticed_in_training_mode_only() -> None:
    class Normalised(nn.Module):
        image_shape, num_classes = (1, 4, 4), 2

        def __init__(self) -> None:
            super().__init__()
            self.normal = nn.BatchNorm2d(1)

        def forward(self, z: Tensor, sigma_model: Tensor, label: Tensor) -> Tensor:
            return self.normal(z) / 9

    with pytest.raises(ContractError, match="moves with the other rows"):
        check(Normalised())
    check(Normalised().eval())


def test_coarser_arithmetic_may_round_more() -> None:
    def rounding(z: Tensor, outputs: Tensor) -> Tensor:
        return outputs * (1 + 20 * TOLERANCE["float32"] * torch.arange(len(z)).view(-1, 1, 1, 1) / len(z))

    with pytest.raises(ContractError, match="moves with a row's place"):
        check(Shrinking(rounding))
    check(Shrinking(rounding), precision="bfloat16")


def test_a_label_without_a_gradient_is_noticed_where_it_is_asked_for() -> None:
    class Hard(Shrinking):
        def __call__(self, z: Tensor, sigma_model: Tensor, label: Tensor) -> Tensor:
            return z * label.argmax(dim=1).view(-1, 1, 1, 1) / 9

    with pytest.raises(ContractError, match="mine fails where the gradient of the label is asked for"):
        check_rows("label_gradient", Hard(torch.add), name="mine", device="cpu", precision="float32")
    soft: Denoiser = many_gaussians(3)
    check_rows("label_gradient", soft, name="mine", device="cpu", precision="float32")


def test_an_image_classifier_gives_a_score_for_each_class() -> None:
    class Scores(nn.Module):
        image_shape, num_classes = (1, 2, 2), 2

        def forward(self, z: Tensor) -> Tensor:
            return z.flatten(1)[:, : self.num_classes]

    check_classifier(Scores(), name="mine", device="cpu", precision="float32")
    more = Scores()
    more.num_classes = 5
    with pytest.raises(ContractError, match=r"gives \(4, 4\) for images of 4 rows; it must give \(4, 5\)"):
        check_classifier(more, name="mine", device="cpu", precision="float32")
    more.num_classes = 1
    with pytest.raises(ContractError, match="num_classes of at least 2"):
        check_classifier(more, name="mine", device="cpu", precision="float32")
