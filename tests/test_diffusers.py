"""Models of diffusers give what diffusers gives."""

from pathlib import Path

import pytest
import torch

from ndc_core.checkpoints import load_denoiser
from ndc_core.conversion import convert
from ndc_core.networks.diffusers_unet import DiffusersError

diffusers = pytest.importorskip("diffusers")

SMALL = {
    "sample_size": 16,
    "in_channels": 3,
    "out_channels": 3,
    "layers_per_block": 1,
    "block_out_channels": (32, 64),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}


def saved(folder: Path, *, prediction_type: str = "epsilon", **changes: object):
    torch.manual_seed(0)
    model = diffusers.UNet2DModel(**{**SMALL, **changes}).eval()
    model.save_pretrained(folder)
    scheduler = diffusers.DDPMScheduler(prediction_type=prediction_type)
    scheduler.save_pretrained(folder / "scheduler")
    return model, scheduler.alphas_cumprod


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@torch.no_grad()
def test_the_clean_image_is_the_one_that_diffusers_predicts(prediction_type: str, tmp_path: Path) -> None:
    model, kept = saved(tmp_path / "unet", prediction_type=prediction_type, num_class_embeds=10)
    convert(tmp_path / "unet", tmp_path / "out")
    denoiser = load_denoiser(tmp_path / "out")
    assert (denoiser.image_shape, denoiser.num_classes, denoiser.knows_no_label) == ((3, 16, 16), 10, False)
    step, label = torch.tensor([100, 300, 500, 700]), torch.tensor([1, 2, 3, 9])
    noisy = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))  # as diffusers sees it
    signal = kept[step].sqrt().view(-1, 1, 1, 1)
    noise = (1 - kept[step]).sqrt().view(-1, 1, 1, 1)
    predicted = model(noisy, step, class_labels=label).sample
    expected = {
        "epsilon": (noisy - noise * predicted) / signal,
        "v_prediction": signal * noisy - noise * predicted,
        "sample": predicted,
    }[prediction_type]
    sigma = ((1 - kept[step]) / kept[step]).sqrt()
    found = denoiser.unclipped(noisy / signal, sigma, torch.eye(10)[label])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_labels_are_mixed_and_an_unconditional_model_needs_none(tmp_path: Path) -> None:
    saved(tmp_path / "unet", num_class_embeds=10)
    convert(tmp_path / "unet", tmp_path / "out")
    denoiser = load_denoiser(tmp_path / "out")
    z, sigma = torch.randn(2, 3, 16, 16), torch.ones(2)
    halves = torch.zeros(2, 10)
    halves[:, :2] = 0.5
    assert not torch.allclose(denoiser(z, sigma, halves), denoiser(z, sigma, torch.eye(10)[:2]))
    saved(tmp_path / "plain")
    found = convert(tmp_path / "plain", tmp_path / "plain-out")
    assert (found["num_classes"], found["knows_no_label"]) == (0, True)
    assert load_denoiser(tmp_path / "plain-out")(z, sigma, torch.zeros(2, 0)).shape == z.shape


def test_other_folders_are_refused(tmp_path: Path) -> None:
    saved(tmp_path / "unet")
    (tmp_path / "unet/scheduler/scheduler_config.json").unlink()
    with pytest.raises(DiffusersError, match=r"has no scheduler_config\.json"):
        convert(tmp_path / "unet", tmp_path / "out")
    saved(tmp_path / "latent", in_channels=4, out_channels=4)
    with pytest.raises(DiffusersError, match="a model of latents"):
        convert(tmp_path / "latent", tmp_path / "out")
    config = tmp_path / "latent/config.json"
    config.write_text(config.read_text().replace("UNet2DModel", "UNet2DConditionModel"))
    with pytest.raises(DiffusersError, match="holds a UNet2DConditionModel, not a UNet2DModel"):
        convert(tmp_path / "latent", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_diffusers_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path / "unet")

    def absent(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr("importlib.import_module", absent)
    with pytest.raises(DiffusersError, match=r"pip install 'ndc\[diffusers\]'"):
        convert(tmp_path / "unet", tmp_path / "out")
