"""Losses of all classes from the Gram matrix of the features are those of the classes' images, which are not made."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ndc_core.analysis.self_test import self_test
from ndc_core.checkpoints.denoisers import CheckpointError, load_denoiser
from ndc_core.classifiers.diffusion import DiffusionClassifier
from ndc_core.models import linear_heads as linear_heads_module
from ndc_core.models.denoiser import Denoiser, EveryClass, EveryLoss, Preconditioning
from ndc_core.models.execution import Execution
from ndc_core.models.linear_heads import losses_of_heads, with_constant
from ndc_core.models.networks.linear_heads import LinearHeadsNetwork
from ndc_core.noise.grid import GridSpec
from tests.support.linear_heads import ARGUMENTS, CLASSES, FEATURES, SIDE, linear_heads, saved

SHAPE = (3, SIDE, SIDE)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Threads wait for each other where cores are busy."""
    torch.set_num_threads(1)


def inputs(rows: int = 4, targets: int = 2, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(rows, *SHAPE, generator=generator, dtype=dtype)
    sigma = torch.rand(rows, generator=generator, dtype=dtype) + 0.1
    return z, sigma, torch.rand(rows, targets, *SHAPE, generator=generator, dtype=dtype) * 2 - 1


def explicit(every: Tensor, targets: Tensor) -> Tensor:
    return (every[:, None] - targets[:, :, None]).double().square().flatten(3).sum(3)


@pytest.mark.parametrize("trunk", ARGUMENTS)
def test_losses_are_those_of_the_classes_images(trunk: str) -> None:
    denoiser = linear_heads(trunk)
    z, sigma, targets = inputs(dtype=torch.float64)  # all after the features is in double precision
    expected = explicit(denoiser.every_class(z, sigma), targets)
    assert expected.std(dim=2).min() > 0.01  # classes differ
    torch.testing.assert_close(denoiser.every_loss(z, sigma, targets), expected, rtol=1e-12, atol=0)


def thousand_heads() -> tuple[Tensor, Tensor, Tensor, Tensor, Preconditioning]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    rows, features = 8, 64
    phi, shared = with_constant(normal(rows, features, 32, 32)), 0.03 * normal(1, 3, features + 1)
    heads = shared + 0.003 * normal(1000, 3, features + 1)
    z, target = normal(rows, 3, 32, 32), normal(rows, 3, 32, 32).clamp(-1, 1)
    scale = 0.2 + 0.5 * torch.rand(2, rows, 1, 1, 1, generator=generator, dtype=torch.float64)
    return phi, heads, z, target, Preconditioning(scale[0], scale[1], scale[0], scale[0].flatten())


def test_single_precision_loses_no_more_than_with_images_and_has_the_same_winners() -> None:
    phi, heads, z, target, scales = thousand_heads()
    exact = losses_of_heads(phi, heads, z, target, scales)
    single = [x.float() for x in (phi, heads, z, target)]
    narrow = Preconditioning(*(scale.float() for scale in scales))
    by_gram = losses_of_heads(*single, narrow)
    predicted = torch.einsum("kcf,rfp->rkcp", single[1], single[0]).unflatten(3, (32, 32))
    images = (narrow.c_skip * single[2])[:, None] + narrow.c_out[:, None] * predicted
    direct = explicit(images, single[3][:, None])[:, 0]
    # What decides a vote is how classes differ.
    errors = [(losses - exact) - (losses - exact).mean(1, keepdim=True) for losses in (by_gram, direct)]
    assert errors[0].abs().max() < errors[1].abs().max()
    assert torch.equal(by_gram.argmin(1), exact.argmin(1))


class LargestTensor(TorchDispatchMode):
    """The most numbers that any operation gives."""

    numbers = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.numbers = max(self.numbers, result.numel())
        return result


def test_no_tensor_of_a_pass_grows_with_classes_times_pixels() -> None:
    torch.manual_seed(0)
    arguments = {**ARGUMENTS["edm-song"], "label_dim": 2000}
    network = LinearHeadsNetwork(trunk="edm-song", arguments=arguments, features=FEATURES)
    few, many = linear_heads(), linear_heads()
    many.network, many.num_classes = network.requires_grad_(False), 2000
    z, sigma, targets = inputs(rows=16)
    largest = []
    for denoiser in (few, many):
        with LargestTensor() as mode:
            denoiser.every_loss(z, sigma, targets)
        largest.append(mode.numbers)
    assert largest[1] <= max(largest[0], linear_heads_module.NUMBERS_AT_ONCE["cpu"])
    assert largest[1] < 16 * 2000 * z[0].numel() / 5


def test_a_row_has_the_same_bits_for_any_number_of_targets_and_in_any_company() -> None:
    denoiser = linear_heads()
    z, sigma, targets = inputs(rows=6, targets=3)
    all_targets = denoiser.every_loss(z, sigma, targets)
    assert torch.equal(denoiser.every_loss(z, sigma, targets[:, [2]])[:, 0], all_targets[:, 2])
    grid = GridSpec(points=4, sigma_model_max=2.0)
    assert self_test(DiffusionClassifier(denoiser, "apndc", grid, rows_per_pass=24)).exact


def test_labels_pick_and_blend_heads_that_are_not_clipped() -> None:
    denoiser = linear_heads()
    z, sigma, _ = inputs()
    heads = denoiser.unclipped_heads(3 * z, sigma)
    assert not denoiser.bounded
    assert heads.abs().max() > 1
    torch.testing.assert_close(denoiser(3 * z, sigma, torch.zeros(4, CLASSES)), heads[:, -1])
    one_hot = torch.eye(CLASSES)[2].expand(4, -1)
    torch.testing.assert_close(denoiser(3 * z, sigma, one_hot), heads[:, 2])
    torch.testing.assert_close(denoiser.every_class(3 * z, sigma)[:, 2], heads[:, 2])
    torch.testing.assert_close(
        denoiser(3 * z, sigma, 0.5 * one_hot), 0.5 * heads[:, 2] + 0.5 * heads[:, -1], rtol=1e-4, atol=1e-5
    )
    chosen = torch.tensor([3, 0, CLASSES])
    torch.testing.assert_close(denoiser.unclipped_heads(3 * z, sigma, chosen), heads[:, chosen])


def test_losses_of_a_broken_head_are_finite_for_no_class() -> None:
    denoiser = linear_heads()
    denoiser.network.heads[2, 0, -1] = float("inf")
    z, sigma, targets = inputs()
    assert not denoiser.every_loss(z, sigma, targets).isfinite().any()


@pytest.mark.parametrize("trunk", ARGUMENTS)
def test_a_saved_model_is_loaded_as_what_it_is(trunk: str, tmp_path: Path) -> None:
    loaded = load_denoiser(saved(tmp_path / "heads", trunk))
    assert isinstance(loaded, Denoiser)
    assert isinstance(loaded, EveryClass)
    assert isinstance(loaded, EveryLoss)
    z, sigma, targets = inputs()
    assert torch.equal(loaded.every_loss(z, sigma, targets), linear_heads(trunk).every_loss(z, sigma, targets))


@pytest.mark.parametrize(
    ("execution", "tolerance"),
    [(Execution(channels_last=True), 1e-4), (Execution(precision="bfloat16", channels_last=True), 0.05)],
)
def test_losses_in_other_precisions_and_layouts(tmp_path: Path, execution: Execution, tolerance: float) -> None:
    z, sigma, targets = inputs()
    losses = load_denoiser(saved(tmp_path / "heads"), execution=execution).every_loss(z, sigma, targets)
    assert losses.dtype == torch.float64
    torch.testing.assert_close(losses, linear_heads().every_loss(z, sigma, targets), rtol=tolerance, atol=0)


def test_an_unknown_trunk_and_impossible_heads_are_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "heads")
    description = (folder / "denoiser.json").read_text()
    for before, after, message in [
        ('"trunk": "edm-song"', '"trunk": "small"', "class heads do not fit a network 'small'"),
        (f'"label_dim": {CLASSES}', '"label_dim": 1', "heads of 1 classes on 6 features cannot tell classes apart"),
        ('"features": 6', '"features": 0', "heads of 5 classes on 0 features cannot tell classes apart"),
    ]:
        (folder / "denoiser.json").write_text(description.replace(before, after))
        with pytest.raises(CheckpointError, match=message):
            load_denoiser(folder)


def test_a_mixed_precision_rounds_features_and_not_what_classes_differ_in() -> None:
    """Heads that differ by less than bfloat16 can tell still differ: training would learn nothing otherwise."""
    denoiser = linear_heads("edm-song")
    with torch.no_grad():
        denoiser.network.heads.copy_(denoiser.network.heads[:1] * (1 + 1e-4 * torch.arange(CLASSES + 1)[:, None, None]))
    z, sigma, _ = inputs()
    with torch.autocast("cpu", torch.bfloat16):
        heads = denoiser.unclipped_heads(z, sigma)
        one_hot = torch.stack(
            [denoiser.unclipped(z, sigma, label.expand(4, -1)) for label in torch.eye(CLASSES)], dim=1
        )
    steps = heads.diff(dim=1)
    assert heads.dtype == one_hot.dtype == torch.float32
    torch.testing.assert_close(steps, steps[:, :1].expand_as(steps), rtol=0.05, atol=1e-6)
    assert (steps != 0).double().mean() > 0.99
    torch.testing.assert_close(one_hot, heads[:, :-1])
