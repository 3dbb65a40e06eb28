"""Networks against outputs of the programs whose checkpoints they load."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from ndc_core.models.denoiser import EDMDenoiser
from ndc_core.models.execution import DTYPES, Execution
from ndc_core.models.networks.edm2 import EDM2UNet, joined, mixed, normalize, silu
from ndc_core.models.networks.edm_adm import DhariwalUNet
from ndc_core.models.networks.edm_song import SongUNet

GOLDEN = Path(__file__).parents[2] / "golden"
NAMES = ("edm-song-ddpmpp-cond", "edm-song-ddpmpp-uncond", "edm-song-ncsnpp-cond", "edm-adm-cond")
KINDS = {"SongUNet": SongUNet, "DhariwalUNet": DhariwalUNet}
CIFAR10 = {"img_resolution": 32, "label_dim": 10, "augment_dim": 9, "channel_mult": (2, 2, 2)}
IMAGENET64 = {"img_resolution": 64, "label_dim": 1000}


def golden_network(name: str) -> tuple[nn.Module, int]:
    """The network with its golden weights (every name must fit), and its number of image channels."""
    arguments = json.loads((GOLDEN / f"{name}.json").read_text())
    build, channels = KINDS[arguments.pop("model_type")], arguments.pop("img_channels")
    network = build(in_channels=channels, out_channels=channels, **arguments)
    weights = load_file(GOLDEN / f"{name}.weights.safetensors")
    network.load_state_dict({key.removeprefix("model."): value for key, value in weights.items()}, strict=True)
    return network.eval(), channels


def golden_inputs(name: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    io = load_file(GOLDEN / f"{name}.io.safetensors")
    label = torch.eye(10)[io["label"]] if "label" in io else torch.zeros(len(io["x"]), 0)
    return io["x"], io["sigma"], label, io["denoised"]


def denoiser_of(network: nn.Module, channels: int, classes: int, execution: Execution) -> EDMDenoiser:
    return EDMDenoiser(
        execution.apply(network, device="cpu"),
        image_shape=(channels, 16, 16),
        num_classes=classes,
        network_dtype=DTYPES[execution.precision],
    )


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_outputs_are_edms(name: str) -> None:
    network, channels = golden_network(name)
    x, sigma, label, expected = golden_inputs(name)
    output = denoiser_of(network, channels, label.shape[1], Execution()).unclipped(x, sigma, label)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("execution", "tolerance"),
    [
        (Execution(channels_last=True), 1e-5),
        (Execution(precision="bfloat16"), 0.1),
        (Execution(precision="bfloat16", channels_last=True), 0.1),
        (Execution(precision="float16", channels_last=True), 0.02),
    ],
)
@pytest.mark.parametrize("name", ["edm-song-ncsnpp-cond", "edm-adm-cond"])
@torch.no_grad()
def test_every_way_to_run_a_network_stays_near_the_reference(name: str, execution: Execution, tolerance: float) -> None:
    network, channels = golden_network(name)
    x, sigma, label, expected = golden_inputs(name)
    output = denoiser_of(network, channels, label.shape[1], execution).unclipped(x, sigma, label)
    assert output.dtype == torch.float32
    torch.testing.assert_close(output, expected, rtol=0, atol=tolerance)
    if execution.precision != "float32":
        assert (output - expected).abs().max() > 1e-5  # it did run in the other precision


@pytest.mark.slow
@torch.no_grad()
def test_a_compiled_network_gives_the_same() -> None:
    network, channels = golden_network("edm-song-ddpmpp-uncond")
    x, sigma, label, expected = golden_inputs("edm-song-ddpmpp-uncond")
    output = denoiser_of(network, channels, 0, Execution(compile=True)).unclipped(x, sigma, label)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["edm-song-ddpmpp-cond", "edm-adm-cond"])
def test_labels_enter_as_continuous_vectors(name: str) -> None:
    network, _ = golden_network(name)
    x, sigma, label, _ = golden_inputs(name)
    label = label.clone().requires_grad_()
    network(x, sigma.log() / 4, label).sum().backward()
    assert (label.grad.abs().sum(dim=1) > 0).all()
    half, none = network.embed(sigma, label / 2, None), network.embed(sigma, label * 0, None)
    assert not torch.allclose(half, none)
    assert not torch.allclose(half, network.embed(sigma, label, None))


def test_augmentation_labels_enter_the_embedding_and_zero_is_none() -> None:
    network, _ = golden_network("edm-song-ddpmpp-cond")
    x, sigma, label, _ = golden_inputs("edm-song-ddpmpp-cond")
    without = network(x, sigma, label)
    assert torch.equal(network(x, sigma, label, torch.zeros(len(x), 9)), without)
    assert not torch.allclose(network(x, sigma, label, torch.ones(len(x), 9)), without)


def test_a_network_that_is_not_ours_is_refused() -> None:
    with pytest.raises(ValueError, match="encoder_type 'skip' is not supported; there are: standard, residual"):
        SongUNet(img_resolution=8, in_channels=3, out_channels=3, encoder_type="skip")


@pytest.mark.parametrize(
    ("build", "arguments", "parameters"),
    [(SongUNet, CIFAR10, 55_735_299), (DhariwalUNet, IMAGENET64, 295_899_267)],
)
def test_full_size_networks_have_edms_number_of_parameters(build: type, arguments: dict, parameters: int) -> None:
    with torch.device("meta"):
        network = build(in_channels=3, out_channels=3, **arguments)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


@pytest.mark.slow
@pytest.mark.parametrize(("build", "arguments"), [(SongUNet, CIFAR10), (DhariwalUNet, IMAGENET64)])
@torch.no_grad()
def test_full_size_networks_run(build: type, arguments: dict) -> None:
    network = build(in_channels=3, out_channels=3, **arguments).eval()
    side, classes = arguments["img_resolution"], arguments["label_dim"]
    x = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    output = network(x, torch.zeros(2), torch.eye(classes)[:2])
    assert output.shape == x.shape
    assert output.isfinite().all()
    assert output.std() > 0


@pytest.mark.parametrize(("channels", "millions"), [(128, 125), (192, 280), (256, 498), (320, 777)])
def test_edm2_has_the_published_number_of_parameters(channels: int, millions: int) -> None:
    with torch.device("meta"):
        network = EDM2UNet(img_resolution=64, img_channels=4, label_dim=1000, model_channels=channels)
    assert round(sum(parameter.numel() for parameter in network.parameters()) / 1e6) == millions


@torch.no_grad()
def test_edm2_keeps_magnitudes() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (3 * torch.randn(64, 8, 16, 16, generator=generator) for _ in range(2))

    def size(x: torch.Tensor) -> float:
        return x.square().mean().sqrt().item()

    a, b = normalize(a, dims=[1]), normalize(b, dims=[1, 2, 3])
    normal = torch.randn(10**6, generator=generator)
    for magnitude in (size(a), size(b), size(mixed(a, b, share=0.3)), size(joined(a, b[:, :2], share=0.5))):
        assert magnitude == pytest.approx(1, abs=0.01)
    assert size(silu(normal)) == pytest.approx(1, abs=0.01)
    torch.manual_seed(0)
    network = EDM2UNet(
        img_resolution=16, img_channels=3, label_dim=10, model_channels=64, channel_mult=(1, 2), attn_resolutions=(8,)
    )
    network.out_gain.fill_(1)
    x = torch.randn(8, 3, 16, 16, generator=generator)
    output = network(x, torch.zeros(8), torch.from_numpy(np.eye(10, dtype=np.float32)[:8]))
    assert size(output) == pytest.approx(1, abs=0.25)
