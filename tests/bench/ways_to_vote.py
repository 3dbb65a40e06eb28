"""Networks of random weights and ways to vote with them, for `tests.bench.gpu_votes`."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ndc_core.classifiers.diffusion import DiffusionClassifier
from ndc_core.classifiers.racing import RaceSpec
from ndc_core.classifiers.sift import LabelGradientSpec
from ndc_core.models.class_heads import HeadsDenoiser
from ndc_core.models.denoiser import Denoiser, EDMDenoiser
from ndc_core.models.execution import DTYPES, Execution
from ndc_core.models.linear_heads import LinearHeadsDenoiser
from ndc_core.models.networks.edm_adm import DhariwalUNet
from ndc_core.models.networks.edm_song import SongUNet
from ndc_core.models.networks.linear_heads import LinearHeadsNetwork
from ndc_core.models.networks.small import SmallHeadsUNet
from ndc_core.noise.grid import GridSpec

RACE = RaceSpec(1.7)


GRID = GridSpec(points=26, sigma_model_min=0.4, sigma_model_max=3.0, spacing="log")
TINY_GRID = GridSpec(points=6, sigma_model_min=0.4, sigma_model_max=3.0, spacing="log")
SONG: dict[str, Any] = {"img_resolution": 32, "in_channels": 3, "out_channels": 3, "label_dim": 10}
ADM: dict[str, Any] = {"img_resolution": 64, "in_channels": 3, "out_channels": 3, "label_dim": 1000}


@dataclass(frozen=True)
class Network:
    build: Callable[..., torch.nn.Module]
    arguments: dict[str, Any]
    tiny: dict[str, Any]
    classes: int


NETWORKS = {
    "7 M": Network(
        SongUNet,
        {**SONG, "model_channels": 64, "channel_mult": [1, 2, 2], "num_blocks": 3},
        {"model_channels": 16, "num_blocks": 1, "channel_mult": [1], "img_resolution": 8},
        10,
    ),
    "55.7 M": Network(
        SongUNet,
        {**SONG, "augment_dim": 9, "model_channels": 128, "channel_mult": [2, 2, 2]},
        {"model_channels": 16, "num_blocks": 1, "channel_mult": [1, 1], "img_resolution": 8},
        10,
    ),
    "ADM 296 M": Network(
        DhariwalUNet,
        {**ADM, "model_channels": 192},
        {"model_channels": 32, "num_blocks": 1, "channel_mult": [1], "img_resolution": 8},
        1000,
    ),
}


@dataclass(frozen=True)
class NoNetwork:
    """Its output is the noisy image and a little of the label, which leaves the loop's own time of a pass."""

    image_shape: tuple[int, int, int]
    num_classes: int = 10

    def __call__(self, z: Tensor, sigma_model: Tensor, label: Tensor) -> Tensor:
        return z + 0.1 * (label @ torch.linspace(0, 1, self.num_classes, device=z.device))[:, None, None, None]


@dataclass(frozen=True)
class Way:
    """How votes are drawn: levers, rows a pass and draws a request."""

    network: str
    name: str
    levers: dict[str, Any]
    rows: int
    request: int


def ways() -> Iterator[Way]:
    """The ways that are measured, the most important first."""
    gradient = {"label_gradient": LabelGradientSpec(4, 3), "race": RACE}
    yield Way("none", "race", {"race": RACE}, 2048, 2)
    yield Way("none", "race", {"race": RACE}, 2048, 1000)
    yield Way("none", "all classes", {}, 2048, 50)
    yield Way("none", "race", {"race": RACE}, 512, 50)
    yield Way("7 M heads", "race", {"race": RACE}, 2048, 50)
    yield Way("7 M heads", "all classes", {}, 2048, 1000)
    yield Way("7 M heads", "race", {"race": RACE}, 2048, 2)
    yield Way("7 M", "race", {"race": RACE}, 2048, 2)
    yield Way("7 M", "race", {"race": RACE}, 2048, 50)
    yield Way("7 M", "all classes", {}, 2048, 50)
    yield Way("7 M", "label gradient + race", gradient, 2048, 50)
    yield Way("55.7 M", "race", {"race": RACE}, 512, 2)
    yield Way("55.7 M", "all classes", {}, 512, 50)
    yield Way("55.7 M", "race", {"race": RACE}, 512, 50)
    yield Way("55.7 M", "label gradient + race", gradient, 512, 50)
    many = {"label_gradient": LabelGradientSpec(4, 10), "race": RACE}
    yield Way("ADM 296 M", "label gradient + race", many, 256, 50)
    yield Way("heads", "race", {"race": RACE}, 2048, 50)
    yield Way("7 M", "label gradient + race", gradient, 2048, 2)
    yield Way("7 M", "race", {"race": RACE}, 512, 2)
    yield Way("7 M", "race", {"race": RACE}, 2048, 1000)
    yield Way("heads", "all classes", {}, 2048, 1000)


@dataclass
class Bench:
    device: str
    tiny: bool
    execution: Execution
    networks: dict[str, Denoiser] = field(default_factory=dict)

    def rows(self, rows: int) -> int:
        return max(16, rows // 64) if self.tiny else rows

    def denoiser(self, name: str) -> Denoiser:
        if name not in self.networks:
            self.networks.clear()  # one at a time: what is left of the memory is the passes'
            if self.device == "cuda":
                torch.cuda.empty_cache()
            self.networks[name] = self._made(name)
        return self.networks[name]

    def _made(self, name: str) -> Denoiser:
        if name == "none":
            return NoNetwork((3, 8, 8) if self.tiny else (3, 32, 32))
        if name == "7 M heads":
            return self._linear_heads()
        return self._heads() if name == "heads" else self._conditional(NETWORKS[name])

    def _conditional(self, spec: Network) -> EDMDenoiser:
        arguments = {**spec.arguments, **(spec.tiny if self.tiny else {})}
        size = arguments["img_resolution"]
        network = self._run(spec.build(**arguments))
        return EDMDenoiser(network, image_shape=(3, size, size), num_classes=spec.classes, **self._around())

    def _linear_heads(self) -> LinearHeadsDenoiser:
        spec = NETWORKS["7 M"]
        arguments = {**spec.arguments, **(spec.tiny if self.tiny else {})}
        size = arguments["img_resolution"]
        network = LinearHeadsNetwork(trunk="edm-song", arguments=arguments, features=8 if self.tiny else 64)
        return LinearHeadsDenoiser(
            self._run(network), image_shape=(3, size, size), num_classes=spec.classes, **self._around()
        )

    def _heads(self) -> HeadsDenoiser:
        size = 8 if self.tiny else 32
        network = SmallHeadsUNet(image_channels=3, num_classes=10, channels=8 if self.tiny else 64)
        return HeadsDenoiser(self._run(network), image_shape=(3, size, size), num_classes=10, **self._around())

    def _around(self) -> dict[str, Any]:
        # Executions that can launch a pass in one go say how.
        launch = {"launch": self.execution.launch(device=self.device)} if hasattr(self.execution, "launch") else {}
        return {"network_dtype": DTYPES[self.execution.precision], **launch}

    def _run(self, network: torch.nn.Module) -> torch.nn.Module:
        torch.manual_seed(0)
        for weights in network.parameters():
            if weights.ndim > 1:  # some are zero before training
                torch.nn.init.normal_(weights, std=0.6 / weights[0].numel() ** 0.5)
        return self.execution.apply(network, device=self.device)

    def classifier(self, way: Way) -> DiffusionClassifier:
        return DiffusionClassifier(
            self.denoiser(way.network),
            "apndc-ensemble",
            grid=TINY_GRID if self.tiny else GRID,
            weight="edm",
            rows_per_pass=self.rows(way.rows),
            device=self.device,
            **way.levers,
        )

    def synchronize(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def bare_rate(self, classifier: DiffusionClassifier, kind: str, *, seconds: float) -> float:
        """Rows a second of passes of one kind, launched one after the other."""
        denoiser, rows = classifier.denoiser, classifier.rows_per_pass
        z = torch.randn(rows, *denoiser.image_shape, device=self.device)
        sigma = torch.rand(rows, device=self.device) * 2 + 0.4
        label = torch.eye(denoiser.num_classes, device=self.device)[torch.arange(rows) % denoiser.num_classes]

        def one() -> None:
            with torch.inference_mode(kind != "label_gradient"):
                if kind == "label_gradient":
                    given = label.clone().requires_grad_()
                    torch.autograd.grad(denoiser(z, sigma, given).square().sum(), given)
                elif kind == "every_class":
                    denoiser.every_class(z, sigma)
                elif kind == "every_loss":
                    denoiser.every_loss(z, sigma, z[:, None])
                else:
                    denoiser(z, sigma, label)

        for _ in range(1 if self.tiny else 3):
            one()
        self.synchronize()
        started, done = time.perf_counter(), 0
        while time.perf_counter() - started < seconds:
            for _ in range(2):
                one()
            self.synchronize()
            done += 2 * rows
        return done / (time.perf_counter() - started)
