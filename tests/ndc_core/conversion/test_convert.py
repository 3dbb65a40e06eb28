import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ndc_core.checkpoints.denoisers import load_denoiser
from ndc_core.conversion.convert import ConversionError, convert
from ndc_core.conversion.edm_architecture import infer_arguments
from ndc_core.models.networks.edm2 import EDM2UNet
from ndc_core.untrusted_files.pickle_values import UnsafePickleError
from tests.ndc_core.models.test_networks import GOLDEN, KINDS, NAMES, golden_inputs
from tests.support.edm_pickles import Persistent, dumped, grow, precond, snapshot, torch_saved

BUFFERS = ("resample_filter", "freqs", "phases")


def weights_of(name: str) -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / f"{name}.weights.safetensors")


def edm_model(name: str, marker: Path, **changes: Any) -> Persistent:
    """EDM's network as NVIDIA pickles it: constructor arguments in both modules."""
    arguments = json.loads((GOLDEN / f"{name}.json").read_text()) | changes
    kind, channels = arguments.pop("model_type"), arguments.pop("img_channels")
    inner = Persistent(kind, marker, in_channels=channels, out_channels=channels, dropout=0.13, **arguments)
    grow(inner, {key.removeprefix("model."): value for key, value in weights_of(name).items()}, BUFFERS, marker)
    shape = {"img_resolution": arguments["img_resolution"], "img_channels": channels}
    return precond("EDMPrecond", "model", inner, marker, **shape, model_type=kind, label_dim=arguments["label_dim"])


@pytest.fixture
def marker(tmp_path: Path):
    """A file that source code in the pickles would make."""
    yield tmp_path / "executed"
    assert not (tmp_path / "executed").exists()


def check_outputs(folder: Path, name: str) -> None:
    denoiser = load_denoiser(folder)
    x, sigma, label, expected = golden_inputs(name)
    with torch.no_grad():
        torch.testing.assert_close(denoiser.unclipped(x, sigma, label), expected, rtol=0, atol=1e-5)
    assert denoiser.image_shape == x.shape[1:]
    assert denoiser.num_classes == label.shape[1]


@pytest.mark.parametrize("name", NAMES)
def test_edms_pickles_give_edms_outputs(name: str, marker: Path, tmp_path: Path) -> None:
    source = tmp_path / "edm.pkl"
    source.write_bytes(dumped(snapshot(edm_model(name, marker), marker)))
    description = convert(source, tmp_path / "out")
    check_outputs(tmp_path / "out", name)
    assert description["notes"]["kind"] == "EDMPrecond"
    assert description["notes"]["source"] == "edm.pkl"
    assert description["knows_no_label"] == (name == "edm-song-ddpmpp-uncond")
    assert "dropout" not in description["arguments"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["pt", "legacy", "safetensors"])
def test_state_dicts_give_the_same_with_arguments_inferred(name: str, kind: str, tmp_path: Path) -> None:
    source = tmp_path / ("edm.safetensors" if kind == "safetensors" else "edm.pt")
    if kind == "safetensors":
        save_file(weights_of(name), source)
    else:
        source.write_bytes(torch_saved(weights_of(name), legacy=kind == "legacy"))
    convert(source, tmp_path / "out")
    check_outputs(tmp_path / "out", name)


@pytest.mark.parametrize("name", NAMES)
def test_inferred_arguments_are_those_of_the_golden_files(name: str) -> None:
    shapes = {key.removeprefix("model."): tuple(value.shape) for key, value in weights_of(name).items()}
    _, arguments = infer_arguments(shapes)
    expected = json.loads((GOLDEN / f"{name}.json").read_text())
    for key in expected.keys() - {"img_channels", "model_type", "decoder_type"}:
        assert arguments[key] == expected[key], key
    assert expected["model_type"] in KINDS


@pytest.mark.parametrize(
    ("build", "arguments"), [(KINDS["SongUNet"], {}), (KINDS["DhariwalUNet"], {"label_dim": 1000})]
)
def test_arguments_of_full_size_networks_are_inferred(build: type, arguments: dict[str, Any]) -> None:
    with torch.device("meta"):
        network = build(img_resolution=64, in_channels=3, out_channels=3, **arguments)
        shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
        again = build(**infer_arguments(shapes)[1])
    assert {name: tuple(tensor.shape) for name, tensor in again.state_dict().items()} == shapes


@pytest.mark.parametrize("legacy", [False, True])
def test_a_training_state_gives_its_raw_weights_and_says_so(legacy: bool, marker: Path, tmp_path: Path) -> None:
    name = "edm-song-ddpmpp-cond"
    state = {"net": edm_model(name, marker), "optimizer_state": {"state": {0: {"step": torch.tensor(3.0)}}, "lr": 0.1}}
    (tmp_path / "training-state.pt").write_bytes(torch_saved(state, legacy=legacy))
    description = convert(tmp_path / "training-state.pt", tmp_path / "out")
    check_outputs(tmp_path / "out", name)
    assert description["notes"]["taken"] == "net"
    assert description["notes"]["remarks"][0] == "took net: no average (ema) stands beside it in the file"


def edm2_model(marker: Path, *, channels: int = 3) -> tuple[Persistent, EDM2UNet]:
    torch.manual_seed(0)
    arguments = {"model_channels": 64, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [8]}
    network = EDM2UNet(img_resolution=16, img_channels=channels, label_dim=10, **arguments)
    network.out_gain.data.fill_(1)
    inner = Persistent("UNet", marker, dropout=0.1, **arguments)
    inner._init_args = (16, channels, 10)
    grow(inner, dict(network.state_dict()), BUFFERS, marker)
    root = precond("Precond", "unet", inner, marker, img_resolution=16, img_channels=channels, label_dim=10)
    root._modules["logvar_linear"] = nn_layer(marker)
    return root, network


def nn_layer(marker: Path) -> Persistent:
    layer = Persistent("MPConv", marker)
    layer.register_parameter("weight", torch.nn.Parameter(torch.randn(1, 8)))
    return layer


def test_edm2s_pickles_are_taken_without_the_losss_head(marker: Path, tmp_path: Path) -> None:
    root, network = edm2_model(marker)
    (tmp_path / "edm2.pkl").write_bytes(dumped({"ema": root, "dataset_kwargs": {}}))
    description = convert(tmp_path / "edm2.pkl", tmp_path / "out")
    denoiser = load_denoiser(tmp_path / "out")
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(
            denoiser.network(x, torch.zeros(2), torch.eye(10)[:2]), network(x, torch.zeros(2), torch.eye(10)[:2])
        )
    assert description["network"] == "edm2"
    assert not description["knows_no_label"]


def test_models_that_do_not_fit_are_refused(marker: Path, tmp_path: Path) -> None:
    latent, _ = edm2_model(marker, channels=4)
    other = edm_model("edm-adm-cond", marker)
    other.class_name = "VPPrecond"
    dimensions = edm_model("edm-adm-cond", marker, model_channels=64)
    missing = edm_model("edm-adm-cond", marker)
    del missing._modules["model"]._modules["out_conv"]
    for model, message in (
        (latent, "a model of latents, not of pixels"),
        (other, "it holds a VPPrecond around .*EDMPrecond around SongUNet or DhariwalUNet"),
        (dimensions, r"149 tensors do not fit|tensors do not fit a edm-adm network"),
        (missing, r"2 tensors do not fit a edm-adm network: out_conv.bias is missing, should be \(3,\)"),
    ):
        (tmp_path / "edm.pkl").write_bytes(dumped({"ema": model}))
        with pytest.raises(ConversionError, match=message):
            convert(tmp_path / "edm.pkl", tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_a_tree_of_modules_that_would_take_forever_to_walk_is_refused(marker: Path, tmp_path: Path) -> None:
    model = edm_model("edm-adm-cond", marker)
    below: torch.nn.Module = Persistent("Layer", marker)
    for _ in range(40):
        above = Persistent("Layer", marker)
        above._modules |= {"a": below, "b": below}
        below = above
    model._modules["model"]._modules["evil"] = below
    (tmp_path / "edm.pkl").write_bytes(dumped({"ema": model}))
    with pytest.raises(ConversionError, match="occurs twice"):
        convert(tmp_path / "edm.pkl", tmp_path / "out")


def test_a_file_that_is_no_model_is_refused_and_a_checkpoint_is_kept(tiny_model: Path, tmp_path: Path) -> None:
    source = tmp_path / "a.pt"
    for content, message in (
        (torch_saved({"weights": 3}), "no network that is known here is in it; it has weights"),
        (torch_saved([1]), "no network that is known here is in it; it is a list"),
        (torch_saved({"a": torch.zeros(3)}), "no network that is known here is in it; it has a$"),
        (torch_saved({"map_layer0.weight": torch.zeros(3)}), r"are not those of SongUNet or DhariwalUNet \(no weight"),
    ):
        source.write_bytes(content)
        with pytest.raises(ConversionError, match=message):
            convert(source, tmp_path / "out")
    with pytest.raises(ConversionError, match="does not exist"):
        convert(tmp_path / "nothing.pkl", tmp_path / "out")
    with pytest.raises(ConversionError, match=r"a folder without config\.json"):
        convert(tmp_path, tmp_path / "out")
    before = (tiny_model / "denoiser.safetensors").read_bytes()
    with pytest.raises(ConversionError, match="holds a checkpoint already"):
        convert(source, tiny_model)
    assert (tiny_model / "denoiser.safetensors").read_bytes() == before
    (tmp_path / "a.safetensors").write_bytes(b"nothing")
    with pytest.raises(ConversionError, match="not a safetensors file"):
        convert(tmp_path / "a.safetensors", tmp_path / "out")


def test_a_truncated_file_is_refused(marker: Path, tmp_path: Path) -> None:
    whole = dumped(snapshot(edm_model("edm-song-ddpmpp-uncond", marker), marker))
    saved = torch_saved(weights_of("edm-song-ddpmpp-uncond"))
    for index, content in enumerate((whole[:-1], whole[: len(whole) // 2], saved[:-10], saved[: len(saved) // 2], b"")):
        (tmp_path / "edm.pkl").write_bytes(content)
        with pytest.raises(UnsafePickleError, match=r"edm\.pkl"):
            convert(tmp_path / "edm.pkl", tmp_path / "out")
        assert not (tmp_path / "out").exists(), index


MEMORY = """
import re, sys
from pathlib import Path
import ndc_core.conversion.convert as conversion
def resident(kind):
    return 1024 * int(re.search(rf"{kind}:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
# A small network first: what torch loads when it first runs one does not grow with the weights.
conversion.convert(Path(sys.argv[3]), Path(sys.argv[2] + "-small"))
Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
before = resident("VmRSS")
conversion.convert(Path(sys.argv[1]), Path(sys.argv[2]))
print(resident("VmHWM") - before)
"""


@pytest.mark.parametrize("kind", ["pkl", "pt"])
def test_converting_takes_less_memory_than_twice_the_weights(kind: str, marker: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    arguments = {"img_resolution": 32, "in_channels": 3, "out_channels": 3, "label_dim": 10, "channel_mult": [2, 2, 2]}
    network = KINDS["SongUNet"](**arguments, model_channels=96)
    inner = Persistent("SongUNet", marker, **arguments, model_channels=96)
    grow(inner, dict(network.state_dict()), BUFFERS, marker)
    model = precond("EDMPrecond", "model", inner, marker, img_resolution=32, img_channels=3, label_dim=10)
    content = dumped({"ema": model}) if kind == "pkl" else torch_saved(network.state_dict())
    (tmp_path / f"edm.{kind}").write_bytes(content)
    small = GOLDEN / "edm-song-ddpmpp-cond.weights.safetensors"
    command = [sys.executable, "-c", MEMORY, str(tmp_path / f"edm.{kind}"), str(tmp_path / "out"), str(small)]
    extra = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    weights = sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())
    print(f"{kind}: {extra / weights:.2f} of the weights' {weights / 1e6:.0f} MB")
    assert weights > 100e6
    assert extra < 2 * weights
