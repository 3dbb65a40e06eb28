"""Fused inference is the networks' own formulas, rearranged."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ndc_core.models.execution import Execution
from ndc_core.models.networks.attention import attended_planes, attended_tokens
from ndc_core.models.networks.edm_blocks import ResampledConv, UNetBlock
from ndc_core.models.networks.fused_ops import Summed, add, normalised, with_sums
from ndc_core.models.networks.fused_unet import run_block
from ndc_core.models.precision import Precision
from tests.ndc_core.models.test_networks import NAMES, denoiser_of, golden_inputs, golden_network

PIXELS = (4, 6)


def activations(*channels: int, rows: int = 3) -> list[Summed]:
    generator = torch.Generator().manual_seed(0)
    return [with_sums(torch.randn(rows, width, *PIXELS, generator=generator) * 2 + 1) for width in channels]


def norm(channels: int) -> nn.GroupNorm:
    layer = nn.GroupNorm(channels // 6, channels, eps=1e-5)
    torch.manual_seed(0)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    return layer.requires_grad_(False)


def test_sums_are_of_each_channel_and_its_squares() -> None:
    ((x, sums),) = activations(5)
    torch.testing.assert_close(sums[:, 0], x.sum(dim=(2, 3)))
    torch.testing.assert_close(sums[:, 1], x.square().sum(dim=(2, 3)))


def test_an_addition_carries_the_sums_of_its_result() -> None:
    (x, _), (y, _) = activations(5, 5)
    bias = torch.arange(5.0)
    total = add(x, y, bias, scale=0.5)
    torch.testing.assert_close(total.x, (x + y + bias.view(1, -1, 1, 1)) / 2)
    torch.testing.assert_close(total.sums, with_sums(total.x).sums)


@pytest.mark.parametrize("channels", [(24,), (10, 14)])  # with two parts, one group has channels of both
def test_parts_are_normalised_as_their_concatenation(channels: tuple[int, ...]) -> None:
    parts, layer = activations(*channels), norm(24)
    whole = torch.cat([part.x for part in parts], dim=1)
    torch.testing.assert_close(normalised(layer, parts), F.silu(layer(whole)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(normalised(layer, parts, silu=False), layer(whole), rtol=1e-4, atol=1e-5)


def test_the_offset_and_the_modulation_are_those_of_the_block() -> None:
    (part,), layer = activations(12), norm(12)
    before, scale, shift = torch.randn(3, 3, 12, generator=torch.Generator().manual_seed(1)).unbind(0)
    expected = layer(part.x + before[:, :, None, None]) * (scale + 1)[:, :, None, None] + shift[:, :, None, None]
    normed = normalised(layer, [part], before=before, modulation=(scale, shift), silu=False)
    torch.testing.assert_close(normed, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("heads", [1, 4])
def test_attention_is_the_same_over_planes_and_over_tokens(heads: int) -> None:
    ((x, _),) = activations(16)
    torch.manual_seed(0)
    qkv = ResampledConv(16, 48, 1).requires_grad_(False)
    tokens = x.permute(0, 2, 3, 1).reshape(-1, 16)
    attended = attended_tokens(tokens, qkv, heads=heads, rows=3).view(3, *PIXELS, 16).permute(0, 3, 1, 2)
    torch.testing.assert_close(attended, attended_planes(x, qkv, heads=heads))
    # EDM's order of the 48: heads outermost, then the channels of a head, then query, key, value.
    query, key, value = qkv(x).reshape(3 * heads, 16 // heads, 3, -1).unbind(2)
    weights = torch.einsum("ncq,nck->nqk", query, key / (16 // heads) ** 0.5).softmax(dim=2)
    torch.testing.assert_close(attended, torch.einsum("nqk,nck->ncq", weights, value).reshape(x.shape))


@pytest.mark.parametrize("adaptive_scale", [True, False])
@pytest.mark.parametrize(
    "resampling", [{}, {"up": True}, {"down": True}, {"down": True, "resample_filter": (1, 3, 3, 1)}]
)
@pytest.mark.parametrize("channels", [(16,), (32,), (16, 8)])
@torch.no_grad()
def test_a_fused_block_gives_the_same(channels: tuple[int, ...], resampling: dict, adaptive_scale: bool) -> None:
    torch.manual_seed(0)
    block = UNetBlock(
        sum(channels),
        32,
        6,
        heads=2,
        project_resampled_skip=False,
        adaptive_scale=adaptive_scale,
        skip_scale=0.7,
        eps=1e-5,
        **resampling,
    )
    parts, embedding = activations(*channels), torch.randn(3, 6)
    fused = run_block(block, parts, embedding)
    expected = block(torch.cat([part.x for part in parts], dim=1), embedding)
    torch.testing.assert_close(fused.x, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fused.sums, with_sums(expected).sums, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.02), ("float16", 0.003)])
@pytest.mark.parametrize("name", NAMES)
@torch.inference_mode()
def test_fused_outputs_are_edms(name: str, precision: Precision, tolerance: float) -> None:
    network, channels = golden_network(name)
    x, sigma, label, expected = golden_inputs(name)
    denoiser = denoiser_of(network, channels, label.shape[1], Execution(precision, channels_last=True))
    plain = denoiser.unclipped(x, sigma, label)
    network.fused = True
    output = denoiser.unclipped(x, sigma, label)
    torch.testing.assert_close(output, expected, rtol=0, atol=tolerance)
    assert not torch.equal(output, plain)  # the fused path did run


@pytest.mark.parametrize("name", NAMES[:1] + NAMES[2:])
def test_gradients_of_the_label_are_the_networks(name: str) -> None:
    network, _ = golden_network(name)
    network.requires_grad_(False)
    x, sigma, label = (values[:2] for values in golden_inputs(name)[:3])
    gradients = []
    for fused in (False, True):
        network.fused = fused
        wanted = label.clone().requires_grad_()
        gradients.append(torch.autograd.grad(network(x, sigma, wanted).square().sum(), wanted)[0])
    assert not torch.equal(*gradients)
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-4 * gradients[0].abs().max().item())


@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize("modulated", [True, False])
def test_gradients_of_a_norm_are_its_derivatives(modulated: bool, silu: bool) -> None:
    layer, sizes = norm(12).double(), [part.x for part in activations(5, 7)]
    others = torch.randn(3, 3, 12, generator=torch.Generator().manual_seed(1)).unbind(0)

    def loss(parts: list[torch.Tensor], before: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, *, fused: bool):
        if fused:
            given = (scale, shift) if modulated else None
            normed = normalised(layer, [with_sums(part) for part in parts], before=before, modulation=given, silu=silu)
        else:
            normed = layer(torch.cat(parts, dim=1) + before[:, :, None, None])
            if modulated:
                normed = normed * (scale + 1)[:, :, None, None] + shift[:, :, None, None]
            normed = F.silu(normed) if silu else normed
        weights = torch.linspace(-1, 1, normed.numel(), dtype=torch.float64).view(normed.shape)
        return (normed * weights).sum()

    gradients = []
    for fused in (False, True):
        inputs = [tensor.double().requires_grad_() for tensor in (*sizes, *others)]
        total = loss(inputs[:2], *inputs[2:], fused=fused)
        gradients.append(torch.autograd.grad(total, inputs[: 5 if modulated else 3]))
    for expected, gradient in zip(*gradients, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-3)


def test_averaging_and_doubling_are_the_filters_bit_for_bit() -> None:
    x = torch.randn(2, 6, 8, 8, generator=torch.Generator().manual_seed(0))
    taps = torch.full((6, 1, 2, 2), 0.25)
    down, up = ResampledConv(6, 6, 0, down=True), ResampledConv(6, 6, 0, up=True)
    assert torch.equal(down(x), F.conv2d(x, taps, stride=2, groups=6))
    assert torch.equal(up(x), F.conv_transpose2d(x, taps * 4, stride=2, groups=6))


def test_weights_with_another_filter_are_refused() -> None:
    layer = ResampledConv(6, 6, 0, down=True)
    with pytest.raises(ValueError, match=r"resample_filter of the weights is .*0.5.*, not .*0.25"):
        layer.load_state_dict({"resample_filter": torch.full((1, 1, 2, 2), 0.5)})
