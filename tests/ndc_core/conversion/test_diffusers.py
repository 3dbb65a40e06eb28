"""Models of diffusers give what diffusers gives."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ndc_core.checkpoints.denoisers import load_denoiser
from ndc_core.conversion.convert import ConversionError, convert
from ndc_core.models.networks.diffusers_unet import DiffusersError

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


def saved(folder: Path, *, prediction_type: str = "epsilon", scheduler: Any = None, **changes: object):
    torch.manual_seed(0)
    model = diffusers.UNet2DModel(**{**SMALL, **changes}).eval()
    model.save_pretrained(folder)
    scheduler = scheduler or diffusers.DDPMScheduler(prediction_type=prediction_type)
    scheduler.save_pretrained(folder / "scheduler")
    return model, getattr(scheduler, "alphas_cumprod", None)


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def check_clean_image(folder: Path, model: Any, kept: torch.Tensor, *, shape: tuple[int, ...] = (3, 16, 16)) -> None:
    """The checkpoint predicts the same clean images as diffusers, for a network that predicts noise."""
    denoiser = load_denoiser(folder)
    step = torch.tensor([100, 300, 500, 700]) * len(kept) // 1000
    noisy = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0))
    signal, noise = (part.sqrt().view(-1, 1, 1, 1) for part in (kept[step], 1 - kept[step]))
    with torch.no_grad():
        expected = (noisy - noise * model(noisy, step).sample) / signal
        denoised = denoiser.unclipped(noisy / signal, ((1 - kept[step]) / kept[step]).sqrt(), torch.zeros(4, 0))
    torch.testing.assert_close(denoised, expected, rtol=1e-3, atol=1e-3)


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
    denoised = denoiser.unclipped(noisy / signal, sigma, torch.eye(10)[label])
    torch.testing.assert_close(denoised, expected, rtol=1e-4, atol=1e-4)


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
    description = convert(tmp_path / "plain", tmp_path / "plain-out")
    assert (description["num_classes"], description["knows_no_label"]) == (0, True)
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


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("DDPMScheduler", {"beta_schedule": "squaredcos_cap_v2"}),
        ("DDPMScheduler", {"rescale_betas_zero_snr": True}),
        (
            "DDPMScheduler",
            {"trained_betas": [0.001 + 0.0004 * step for step in range(100)], "num_train_timesteps": 100},
        ),
        ("DDIMScheduler", {"beta_schedule": "scaled_linear", "timestep_spacing": "trailing", "clip_sample": False}),
        ("HeunDiscreteScheduler", {"use_karras_sigmas": True}),
    ],
)
def test_the_noise_of_a_timestep_is_that_of_the_scheduler(name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    model, kept = saved(tmp_path / "unet", scheduler=getattr(diffusers, name)(**settings))
    description = convert(tmp_path / "unet", tmp_path / "out")
    assert f"({name}, {len(kept):,} steps), it predicts epsilon" in description["notes"]["remarks"][0]
    check_clean_image(tmp_path / "out", model, kept)


def test_settings_that_are_left_out_are_those_of_the_schedulers_class(tmp_path: Path) -> None:
    model, kept = saved(tmp_path / "unet", scheduler=diffusers.HeunDiscreteScheduler())
    path = tmp_path / "unet/scheduler/scheduler_config.json"
    path.write_text(json.dumps({"_class_name": "HeunDiscreteScheduler"}))
    convert(tmp_path / "unet", tmp_path / "out")
    check_clean_image(tmp_path / "out", model, kept)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("CMStochasticIterativeScheduler", "of a consistency model"),
        ("LCMScheduler", "of a consistency model"),
        ("ScoreSdeVeScheduler", "variance-exploding"),
        ("EDMEulerScheduler", "EDM's preconditioning"),
        ("FlowMatchEulerDiscreteScheduler", "of flow matching"),
    ],
)
def test_a_scheduler_that_is_not_variance_preserving_is_refused(name: str, kind: str, tmp_path: Path) -> None:
    saved(tmp_path / "unet", scheduler=getattr(diffusers, name)())
    with pytest.raises(DiffusersError, match=f"the scheduler is a {name}, {kind}"):
        convert(tmp_path / "unet", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_class_name": None}, "the scheduler is a None and not one of a variance-preserving"),
        ({"prediction_type": "flow_prediction"}, "prediction_type 'flow_prediction' is unknown; there are: epsilon"),
        ({"predict_epsilon": False}, "predict_epsilon False contradicts prediction_type 'epsilon'"),
        ({"beta_schedule": "exotic"}, "DDPMScheduler cannot be made with these settings: exotic is not implemented"),
        ({"trained_betas": [0.1, 0.2]}, "2 betas are not a schedule of 1000 steps in which noise grows"),
        ({"beta_start": -0.1}, "1,000 betas are not a schedule of 1000 steps"),
        ({"use_flow_sigmas": True}, "use_flow_sigmas is True: its timesteps are no steps"),
        ({"timestep_type": "continuous"}, "timestep_type is 'continuous'"),
        ({"snr_shift_scale": 3.0}, "it is unknown whether snr_shift_scale changes what a timestep means"),
        ({"_class_name": "PNDMScheduler", "rescale_betas_zero_snr": True}, "has no rescale_betas_zero_snr"),
    ],
)
def test_settings_of_a_schedule_that_are_not_understood_are_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    saved(tmp_path / "unet")
    edit(tmp_path / "unet/scheduler/scheduler_config.json", **changes)
    with pytest.raises(DiffusersError, match=message):
        convert(tmp_path / "unet", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_old_configuration_says_by_predict_epsilon_what_the_network_predicts(tmp_path: Path) -> None:
    saved(tmp_path / "unet")
    path = tmp_path / "unet/scheduler/scheduler_config.json"
    edit(path, predict_epsilon=False, prediction_type=None)
    assert convert(tmp_path / "unet", tmp_path / "out")["arguments"]["prediction_type"] == "sample"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sample_size": None}, "sample_size is null, which does not say the size of its images: write there"),
        ({"sample_size": [16]}, r"sample_size is \[16\]"),
        ({"sample_size": 15}, r"does not run on images of shape \(3, 15, 15\)|makes images of shape"),
        ({"class_embed_type": "timestep"}, "class_embed_type is 'timestep'"),
        ({"class_embed_type": "identity", "num_class_embeds": 10}, "class_embed_type is 'identity'"),
        ({"time_embedding_type": "fourier"}, "time_embedding_type is 'fourier'"),
        ({"center_input_sample": True}, "center_input_sample is set"),
        ({"cross_attention_dim": 8}, "the installed diffusers does not know cross_attention_dim"),
    ],
)
def test_settings_of_a_network_that_are_not_understood_are_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    saved(tmp_path / "unet")
    edit(tmp_path / "unet/config.json", **changes)
    with pytest.raises(ValueError, match=message):
        convert(tmp_path / "unet", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_size_may_be_an_unequal_pair_and_the_middle_may_lack_attention(tmp_path: Path) -> None:
    model, kept = saved(tmp_path / "unet", sample_size=(16, 16))
    assert convert(tmp_path / "unet", tmp_path / "out")["image_shape"] == [3, 16, 16]
    check_clean_image(tmp_path / "out", model, kept)
    model, kept = saved(tmp_path / "wide", sample_size=(8, 16), add_attention=False)
    assert convert(tmp_path / "wide", tmp_path / "wide-out")["image_shape"] == [3, 8, 16]
    check_clean_image(tmp_path / "wide-out", model, kept, shape=(3, 8, 16))


def test_old_names_of_attention_are_read(tmp_path: Path) -> None:
    model, kept = saved(tmp_path / "unet")
    path = tmp_path / "unet/diffusion_pytorch_model.safetensors"
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    weights = {}
    for name, value in load_file(path).items():
        for now, before in old.items():
            name = name.replace(now, before)
        weights[f"_orig_mod.{name}"] = value.clone()
    assert any(".proj_attn." in name for name in weights)
    save_file(weights, path)
    convert(tmp_path / "unet", tmp_path / "out")
    check_clean_image(tmp_path / "out", model, kept)


def test_weights_may_be_a_pickle_or_a_variant_and_the_notes_say_which(tmp_path: Path) -> None:
    model, kept = saved(tmp_path / "unet_x")
    whole = tmp_path / "unet_x/diffusion_pytorch_model.safetensors"
    weights = load_file(whole)
    whole.unlink()
    torch.save(weights, tmp_path / "unet_x/diffusion_pytorch_model.bin")
    shutil.copytree(tmp_path / "unet_x", tmp_path / "unet_x_ema")
    description = convert(tmp_path / "unet_x", tmp_path / "out")
    assert description["notes"]["taken"] == "diffusion_pytorch_model.bin"
    assert "took diffusion_pytorch_model.bin" in description["notes"]["remarks"]
    assert any("unet_x_ema beside it has their average" in remark for remark in description["notes"]["remarks"])
    check_clean_image(tmp_path / "out", model, kept)

    (tmp_path / "unet_x/diffusion_pytorch_model.bin").unlink()
    half = {name: value.half() for name, value in weights.items()}
    save_file(half, tmp_path / "unet_x/diffusion_pytorch_model.fp16.safetensors")
    description = convert(tmp_path / "unet_x", tmp_path / "half")
    assert description["notes"]["taken"] == "diffusion_pytorch_model.fp16.safetensors"
    assert load_denoiser(tmp_path / "half").network.unet.conv_in.weight.dtype == torch.float32
    save_file(weights, tmp_path / "unet_x/diffusion_pytorch_model.non_ema.safetensors")
    with pytest.raises(DiffusersError, match=r"has the variants .*fp16\.safetensors, .*non_ema\.safetensors: rename"):
        convert(tmp_path / "unet_x", tmp_path / "none")


def test_a_pipelines_folder_names_the_one_to_take(tmp_path: Path) -> None:
    saved(tmp_path / "pipeline/unet")
    with pytest.raises(ConversionError, match=r"without config\.json; .*, as .*pipeline/unet may be"):
        convert(tmp_path / "pipeline", tmp_path / "out")
