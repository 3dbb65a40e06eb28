"""All tensors of a vote are made on the classifier's device.

Shown without a GPU on torch's `meta` device, which computes nothing and, like a GPU, refuses tensors of a CPU beside
its own. What is copied from it to the CPU is random.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ndc_core.analysis.attacks import ScoreObjective
from ndc_core.analysis.diagnosis import measure
from ndc_core.checkpoints.denoisers import load_denoiser
from ndc_core.checkpoints.image_classifiers import load_classifier
from ndc_core.classifiers.baselines import Baseline
from ndc_core.classifiers.diffusion import DiffusionClassifier
from ndc_core.classifiers.racing import RaceSpec
from ndc_core.classifiers.sift import LabelGradientSpec, SiftSpec
from ndc_core.classifiers.unconditional import UNCONDITIONALS
from ndc_core.classifiers.voter import Voter
from ndc_core.models.class_heads import HeadsDenoiser
from ndc_core.models.denoiser import EDMDenoiser
from ndc_core.models.execution import Execution
from ndc_core.models.forward_passes import in_turn
from ndc_core.models.image_classifier import ImageNetwork
from ndc_core.models.networks.small import SmallHeadsUNet
from ndc_core.models.networks.small_classifier import SmallClassifier
from ndc_core.models.rows_per_pass import _one_gradient, _one_pass
from ndc_core.noise.grid import GridSpec
from ndc_core.vote_requests import VoteRequest
from ndc_core.voting import stream_votes
from pipeline.model_tools.convert_classifier import export, take_in
from tests.ndc_core.models.test_networks import NAMES, golden_network

GRID = GridSpec(points=4, sigma_model_min=0.6, sigma_model_max=3.0, spacing="log")
LEVELS = GridSpec(levels=(0.6, 0.9, 1.3, 2.0))
WAYS = {
    "dc": {"grid": GRID},
    "epndc": {"grid": GRID, "race": RaceSpec(1.0)},
    "apndc": {"grid": GRID, "sift": SiftSpec(GridSpec(points=3, sigma_model_min=0.6, sigma_model_max=3.0), 0.1, 3)},
    "apndc-ensemble": {"grid": GRID, "label_gradient": LabelGradientSpec(2, 3)},
}


@pytest.fixture(autouse=True)
def made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    own = torch.Tensor.cpu

    def cpu(self: torch.Tensor) -> torch.Tensor:
        return torch.rand(self.shape).to(self.dtype) if self.is_meta else own(self)

    monkeypatch.setattr(torch.Tensor, "cpu", cpu)


def vote(classifier: Voter, *, sigma_pixel: tuple[float, ...] = (0.25,)) -> None:
    image = np.zeros(classifier.image_shape, dtype=np.uint8)
    waiting = [
        (
            number,
            VoteRequest(image, f"{number}", sigma_pixel, "integer", 0, "estimation", range(5), all_sigmas=sigma_pixel),
        )
        for number in range(2)
    ]
    for _, counts_of_levels in stream_votes(classifier, in_turn(waiting)):
        if isinstance(counts_of_levels, Exception):
            raise counts_of_levels
        assert all(counts.votes.sum() == 5 for counts in counts_of_levels)


def test_the_check_would_notice() -> None:
    with pytest.raises(RuntimeError, match="not on the expected device meta"):
        torch.zeros(2, device="meta") + torch.zeros(2)


@pytest.mark.parametrize("execution", [Execution(), Execution("bfloat16", channels_last=True)], ids=str)
@pytest.mark.parametrize("unconditional", UNCONDITIONALS)
@pytest.mark.parametrize("name", WAYS)
def test_votes_are_drawn_on_the_classifiers_device(
    tiny_model: Path, name: str, unconditional: str, execution: Execution
) -> None:
    denoiser = load_denoiser(tiny_model, device="meta", execution=execution)
    estimator = UNCONDITIONALS[unconditional](denoiser)
    vote(DiffusionClassifier(denoiser, name, **WAYS[name], rows_per_pass=16, device="meta", unconditional=estimator))


@pytest.mark.parametrize("name", ["epndc", "apndc"])
def test_votes_on_one_path_are_drawn_on_the_classifiers_device(tiny_model: Path, name: str) -> None:
    denoiser, race = load_denoiser(tiny_model, device="meta"), RaceSpec(1.0)
    classifier = DiffusionClassifier(denoiser, name, LEVELS, race=race, one_path=True, rows_per_pass=16, device="meta")
    vote(classifier, sigma_pixel=(0.125, 0.25))


@pytest.mark.parametrize("steps", [1, 3])
def test_baselines_vote_on_their_device(tiny_model: Path, steps: int) -> None:
    half = {"mean": [0.5], "std": [0.5], "network_dtype": torch.bfloat16}
    own = SmallClassifier(image_shape=(1, 8, 8), num_classes=10, channels=8)
    network = ImageNetwork(own.to("meta", torch.bfloat16), image_shape=(1, 8, 8), num_classes=10, **half).to("meta")
    vote(Baseline(network, rows_per_pass=16, device="meta"))
    estimator = UNCONDITIONALS["null_label"](load_denoiser(tiny_model, device="meta"))
    vote(Baseline(network, estimator, steps, steps, rows_per_pass=16, device="meta"))


class WithPositions(nn.Module):
    """Makes indices from no input, as a vision transformer does."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(x.flatten(1) + torch.arange(64, device=x.device) / 64)


def test_an_exported_classifier_is_taken_to_the_device_with_all_that_its_graph_makes(tmp_path: Path) -> None:
    export(WithPositions().eval(), tmp_path / "model.pt2", image_shape=(1, 8, 8))
    scale = {"image_shape": (1, 8, 8), "mean": [0.5], "std": [0.5]}
    take_in(str(tmp_path / "model.pt2"), tmp_path / "taken", **scale)
    vote(Baseline(load_classifier(tmp_path / "taken", device="meta"), rows_per_pass=16, device="meta"))


@pytest.mark.parametrize("name", NAMES[:1] + NAMES[2:])
def test_edms_networks_run_and_are_differentiated_on_their_device(name: str) -> None:
    network, channels = golden_network(name)
    network = Execution("bfloat16", channels_last=True).apply(network, device="meta")
    denoiser = EDMDenoiser(network, image_shape=(channels, 16, 16), num_classes=10, network_dtype=torch.bfloat16)
    _one_pass(denoiser, 4, device="meta")
    _one_gradient(denoiser, 4, device="meta")


def test_a_network_with_heads_votes_on_its_device() -> None:
    network = SmallHeadsUNet(image_channels=1, num_classes=10, channels=8)
    denoiser = HeadsDenoiser(network.requires_grad_(False), image_shape=(1, 8, 8), num_classes=10).to("meta")
    vote(DiffusionClassifier(denoiser, "epndc", LEVELS, rows_per_pass=16, device="meta"))


@pytest.mark.parametrize("name", ["dc", "apndc"])
def test_attacks_and_diagnoses_compute_on_the_classifiers_device(tiny_model: Path, name: str) -> None:
    denoiser = load_denoiser(tiny_model, device="meta")
    classifier = DiffusionClassifier(denoiser, name, GRID, rows_per_pass=16, device="meta", loss_cap=1.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "cpu", lambda self: self)
        objective = ScoreObjective(classifier, (1, 2, 3), 0.25, 2, True, torch.Generator().manual_seed(0))
        z = torch.zeros(4, 1, 8, 8, device="meta", requires_grad=True)
        (gradient,) = torch.autograd.grad(objective.scores(z).sum(), z)
    assert gradient.shape == z.shape
    if name == "apndc":
        on_levels = [
            DiffusionClassifier(denoiser, each, LEVELS, rows_per_pass=16, device="meta")
            for each in ("epndc", "apndc", "apndc-ensemble")
        ]
        images, labels = np.zeros((2, 1, 8, 8), dtype=np.uint8), np.array([0, 1])
        for measured in measure(on_levels, images, labels, sigma_pixel=(0.25,), draws=2, seed=0):
            assert measured.losses.shape[0] == 2
