"""A network is run before it is kept."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ndc_core.checkpoints.denoisers import write_checkpoint
from ndc_core.conversion.convert import ConversionError, convert
from ndc_core.conversion.trial import MOST_NOISE_LEFT, TrialError, try_out
from ndc_core.models.denoiser import EDMDenoiser
from tests.ndc_core.models.test_networks import GOLDEN


class Network(nn.Module):
    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor) -> Tensor:
        return self.function(x, c_noise)


def tried(function: Callable[[Tensor, Tensor], Tensor]) -> float:
    return try_out(EDMDenoiser(Network(function), image_shape=(1, 8, 8), num_classes=0))


def of_grey(x: Tensor, c_noise: Tensor) -> Tensor:
    """The output of a perfect denoiser of grey images: their noise, and nothing else."""
    sigma = (4 * c_noise).exp().view(-1, 1, 1, 1)
    return -x * 0.5 / sigma


def test_a_network_that_knows_noise_is_told_from_one_that_does_not() -> None:
    assert tried(of_grey) < 0.01
    assert tried(lambda x, c_noise: torch.zeros_like(x)) > MOST_NOISE_LEFT
    assert tried(lambda x, c_noise: -of_grey(x, c_noise)) > MOST_NOISE_LEFT
    assert tried(lambda x, c_noise: of_grey(x, c_noise + 0.5)) > MOST_NOISE_LEFT  # a schedule that is not its own


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x, c_noise: x / (c_noise > 0).view(-1, 1, 1, 1), r"not finite at noise sigma_model 0\.1, 0\.002"),
        (lambda x, c_noise: x * float("nan"), r"not finite at noise sigma_model 0\.1, 0\.002, 80"),
        (lambda x, c_noise: x.view(-1, 3, 5), "does not run on images of shape"),
    ],
)
def test_unusable_outputs_are_refused(function: Callable[[Tensor, Tensor], Tensor], message: str) -> None:
    with pytest.raises(TrialError, match=message):
        tried(function)


def test_damaged_weights_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    weights = load_file(GOLDEN / "edm-song-ddpmpp-cond.weights.safetensors")
    name = next(name for name in weights if name.endswith("aux_conv.bias"))
    weights[name][0] = float("nan")
    save_file(weights, tmp_path / "a.safetensors")
    with pytest.raises(ConversionError, match=r"a\.safetensors: its outputs are not finite .*damaged weights"):
        convert(tmp_path / "a.safetensors", tmp_path / "new/out")
    assert not (tmp_path / "new").exists()


def test_a_write_that_fails_leaves_nothing_of_it_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = GOLDEN / "edm-song-ddpmpp-uncond.weights.safetensors"

    def fail(path: Path) -> str:
        assert (tmp_path / "out/denoiser.safetensors.partial").is_file()
        raise OSError("disk full")

    monkeypatch.setattr("ndc_core.checkpoints.denoisers.file_sha256", fail)
    with pytest.raises(OSError, match="disk full"):
        convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("kept")
    with pytest.raises(OSError, match="disk full"):
        convert(source, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]
    with pytest.raises(ConversionError, match="is a file; choose another name"):
        convert(source, tmp_path / "out/mine.txt")


def test_a_checkpoint_is_not_converted_again(tmp_path: Path) -> None:
    write_checkpoint(
        tmp_path / "a",
        {"a": torch.zeros(1)},
        network="small",
        arguments={},
        image_shape=(1, 8, 8),
        num_classes=10,
        sigma_data=0.5,
        knows_no_label=True,
        notes={},
    )
    with pytest.raises(ConversionError, match="it is a checkpoint of ndc already"):
        convert(tmp_path / "a", tmp_path / "b")
