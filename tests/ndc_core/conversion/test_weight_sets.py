"""Which weights are taken from a file of another program, and which files are refused as ambiguous."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from ndc_core.conversion.convert import ConversionError, convert
from ndc_core.models.networks.edm_song import SongUNet
from pipeline.cli import main

Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def mean() -> Weights:
    """The state dict of a small network, whose outputs are what an averaged model's are."""
    torch.manual_seed(0)
    shape = {"img_resolution": 8, "in_channels": 1, "out_channels": 1, "label_dim": 10}
    network = SongUNet(**shape, model_channels=16, channel_mult=[1, 2], num_blocks=1, attn_resolutions=[4])
    return dict(network.state_dict())


def raw(mean: Weights) -> Weights:
    return {name: value + 1 for name, value in mean.items()}


def prefixed(prefix: str, weights: Weights) -> Weights:
    return {f"{prefix}{name}": value for name, value in weights.items()}


def converted(content: Any, folder: Path) -> dict[str, Any]:
    torch.save(content, folder / "a.pt")
    return convert(folder / "a.pt", folder / "out")


def check_taken(content: Any, folder: Path, mean: Weights, *, taken: str, left: list[str]) -> None:
    description = converted(content, folder)
    assert (description["notes"]["taken"], description["notes"]["left"]) == (taken, left)
    weights = load_file(folder / "out/denoiser.safetensors")
    assert weights.keys() == mean.keys()
    assert all(torch.equal(weights[name], mean[name]) for name in mean)


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize("prefix", ["_orig_mod.", "module._orig_mod.model.", "ema.module.", "net.denoiser.", "model."])
def test_wrappers_around_a_network_are_taken_off_in_any_order(
    prefix: str, suffix: str, mean: Weights, tmp_path: Path
) -> None:
    weights = prefixed(prefix, mean)
    if suffix == "safetensors":
        save_file(weights, tmp_path / "a.safetensors")
        convert(tmp_path / "a.safetensors", tmp_path / "out")
        converted_weights = load_file(tmp_path / "out/denoiser.safetensors")
        assert all(torch.equal(converted_weights[name], mean[name]) for name in mean)
    else:
        taken = prefix.replace("_orig_mod.", "").rstrip(".")
        check_taken(weights, tmp_path, mean, taken=taken, left=[])


def test_a_mark_of_torch_compile_inside_the_network_is_taken_off(mean: Weights, tmp_path: Path) -> None:
    weights = {name.replace("8x8_block0.", "8x8_block0._orig_mod."): value for name, value in mean.items()}
    check_taken(weights, tmp_path, mean, taken="", left=[])


TWO: dict[str, tuple[Callable[[Weights, Weights], Any], str, str]] = {
    "model_ema": (lambda raw, mean: {"model": raw, "model_ema": mean, "step": 1}, "model_ema", "model"),
    "state_dict_ema": (
        lambda raw, mean: {"state_dict": raw, "state_dict_ema": mean},
        "state_dict_ema",
        "state_dict",
    ),
    "ema_model": (
        lambda raw, mean: {
            "step": 3,
            "ema": {
                **prefixed("online_model.", raw),
                **prefixed("ema_model.", mean),
                "initted": torch.tensor([True]),
                "step": torch.tensor([3]),
            },
        },
        "ema.ema_model",
        "ema.online_model",
    ),
    "params_ema": (lambda raw, mean: {"params": raw, "params_ema": mean}, "params_ema", "params"),
    "net and net_ema with an optimizer": (
        lambda raw, mean: {
            "net": prefixed("module.", raw),
            "net_ema": prefixed("module.", mean),
            "optimizer": {"state": {0: {"exp_avg": torch.zeros(3), "ema": torch.zeros(3)}}},
        },
        "net_ema.module",
        "net.module",
    ),
    "one state dict of both": (
        lambda raw, mean: {"state_dict": prefixed("net.", raw) | prefixed("net_ema.", mean), "epoch": 4},
        "state_dict.net_ema",
        "state_dict.net",
    ),
    "an average with its decay": (
        lambda raw, mean: {"model": raw, "ema": {"decay": 0.999, "model": mean}},
        "ema.model",
        "model",
    ),
}


@pytest.mark.parametrize("name", TWO)
def test_the_averaged_weights_are_taken_and_the_raw_ones_named(name: str, mean: Weights, tmp_path: Path) -> None:
    make, taken, left = TWO[name]
    check_taken(make(raw(mean), mean), tmp_path, mean, taken=taken, left=[left])


def test_the_command_and_the_json_say_which_weights_were_taken_and_left(mean: Weights, tmp_path: Path) -> None:
    torch.save({"model": raw(mean), "model_ema": mean}, tmp_path / "a.pt")
    result = CliRunner().invoke(main, ["convert", str(tmp_path / "a.pt"), str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert "note: took model_ema, the average; left model\n" in result.output
    assert "EDM's way is assumed, sigma_data 0.5" in result.output
    assert "took model_ema, the average; left model" in (tmp_path / "out/denoiser.json").read_text()


def test_counters_beside_a_network_are_no_obstacle(mean: Weights, tmp_path: Path) -> None:
    averaged = {**prefixed("module.", mean), "n_averaged": torch.tensor(7)}
    check_taken(averaged, tmp_path, mean, taken="module", left=[])
    (tmp_path / "b").mkdir()
    check_taken({**mean, "epoch": 3, "lr": 1e-4}, tmp_path / "b", mean, taken="", left=[])


UNCLEAR: dict[str, tuple[Callable[[Weights, Weights], Any], str]] = {
    "several averages": (
        lambda raw, mean: {"model": raw, "ema": [mean, raw]},
        r"it holds 2 averages \(ema\.0, ema\.1\) and does not say which is meant",
    ),
    "averages by decay": (
        lambda raw, mean: {"ema_0.9999": mean, "ema_0.999": raw},
        r"it holds 2 averages \(ema_0\.9999, ema_0\.999\)",
    ),
    "two raw networks": (
        lambda raw, mean: {"student": raw, "teacher": mean},
        r"it holds 2 networks \(student, teacher\)",
    ),
    "an average without names": (
        lambda raw, mean: {"model": raw, "ema": {"decay": 0.99, "num_updates": 3, "shadow_params": [*mean.values()]}},
        r"averaged weights under names that are not the network's \(ema\.shadow_params\.0, .*save the model's",
    ),
    "an average with names without dots": (
        lambda raw, mean: {
            "state_dict": prefixed("model.", raw)
            | {f"model_ema.{name.replace('.', '')}": value for name, value in mean.items()}
            | {"model_ema.decay": torch.tensor(0.99)}
        },
        r"averaged weights under names that are not the network's \(state_dict\.model_ema\.map_label",
    ),
    "a wrapper with a schedule": (
        lambda raw, mean: {**prefixed("model.", mean), "betas": torch.zeros(9), "u": torch.zeros(9)},
        "beside the network its state dict holds betas, u, of a wrapper that may change what",
    ),
    "a scale of its own": (
        lambda raw, mean: {**prefixed("model.", mean), "sigma_data": torch.tensor(1.0)},
        "beside the network its state dict holds sigma_data",
    ),
    "a weight twice": (
        lambda raw, mean: {**mean, **prefixed("_orig_mod.", raw)},
        "it has the weight .* twice",
    ),
    "diffusers' weights alone": (
        lambda raw, mean: {"down_blocks.0.resnets.0.conv1.weight": torch.zeros(3)},
        "diffusers': give the folder with its config.json",
    ),
    "guided-diffusion": (
        lambda raw, mean: {"input_blocks.0.0.weight": torch.zeros(3)},
        "those of OpenAI's guided-diffusion",
    ),
    "an optimizer alone": (
        lambda raw, mean: {"optimizer_state": {"state": {0: {"exp_avg": torch.zeros(3)}}}},
        "no network that is known here is in it; it has optimizer_state",
    ),
}


@pytest.mark.parametrize("name", UNCLEAR)
def test_ambiguous_weights_are_refused(name: str, mean: Weights, tmp_path: Path) -> None:
    make, message = UNCLEAR[name]
    with pytest.raises(ConversionError, match=message):
        converted(make(raw(mean), mean), tmp_path)
    assert not (tmp_path / "out").exists()
