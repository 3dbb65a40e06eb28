"""Votes of the embedded digits model, with everything that they saw, for docs/pictures.py."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ndc_core import DiffusionClassifier, GridSpec, LabelGradientSpec, RaceSpec, SiftSpec, load_denoiser
from ndc_core.certificates.certificate import Certificate
from ndc_core.certificates.cohen import cohen
from ndc_core.classifiers.scoring import predict
from ndc_core.models.denoiser import EDMDenoiser
from ndc_core.noise.grid import build_grid
from ndc_core.noise.smoothing import IntegerNoise
from ndc_core.noise.streams import DrawNoise, draw_noise
from ndc_core.space import model_to_pixels, sigma_to_model
from ndc_core.voting import count_votes
from pipeline.data.datasets import DatasetSpec, Example, examples_of, source_of

MODEL, HEADS = "models/digits", "models/digits-heads"
SIGMA = 0.25
TAU = sigma_to_model(SIGMA)
GRID = GridSpec(points=26, sigma_model_min=0.4, sigma_model_max=2.0, spacing="log")  # that of the preset `fast`
SELECTION, ESTIMATION, ALPHA = 100, 1000, 0.001


def held_out() -> list[Example]:
    spec = DatasetSpec("digits", split="test")
    return list(examples_of(spec, source_of(spec), channels=1, corrupt=[]))


def classifier(denoiser: EDMDenoiser, **levers: object) -> DiffusionClassifier:
    return DiffusionClassifier(denoiser, "apndc-ensemble", grid=GRID, weight="edm", **levers)  # type: ignore[arg-type]


def noisy(voter: DiffusionClassifier, example: Example, *, draw: int = 0) -> tuple[np.ndarray, DrawNoise]:
    """An image as an estimation vote sees it (model space), and all noise of that vote."""
    law = IntegerNoise(SIGMA)
    refine_steps, sift_steps = voter.noise_steps
    noise = draw_noise(
        seed=0,
        image_id=example.image_id,
        phase="estimation",
        draws=[draw],
        input_noise=law,
        image_shape=voter.image_shape,
        refine_steps=refine_steps,
        sift_steps=sift_steps,
    )
    return law.add(example.image, noise.input), noise


@dataclass(frozen=True)
class Seen:
    """Pixels in [0, 1]; `errors` are the squared distances to the estimate, weighted as in the score."""

    clean: np.ndarray
    noisy: np.ndarray
    estimate: np.ndarray
    levels: np.ndarray
    diffused: np.ndarray  # a picture for each level
    denoised: np.ndarray  # one for each level and label
    errors: np.ndarray


@torch.inference_mode()
def look(example: Example) -> Seen:
    """One vote of the full grid, every label at every level."""
    denoiser = load_denoiser(MODEL)
    voter = classifier(denoiser)
    z, noise = noisy(voter, example)
    z_tau = torch.from_numpy(z).float()
    tau, no_label = torch.tensor([TAU]), torch.zeros(1, denoiser.num_classes)
    estimate = denoiser(z_tau, tau, no_label)
    path, weight = voter.path(z_tau, estimate, GRID, torch.from_numpy(noise.refine), tau_model=TAU)
    steps, classes = len(path.level), denoiser.num_classes
    step = torch.arange(steps).repeat_interleave(classes)
    draw = torch.zeros(len(step), dtype=torch.long)
    diffused, sigma = path.noisy(draw, step)
    denoised = denoiser(diffused, sigma, torch.eye(classes).repeat(steps, 1))
    errors = path.squared_errors(denoised, draw=draw, step=step)[:, 0].view(steps, classes).numpy()
    return Seen(
        clean=example.image[0] / 255,
        noisy=pixels(z_tau)[0],
        estimate=pixels(estimate)[0],
        levels=path.level,
        diffused=pixels(diffused)[::classes],
        denoised=pixels(denoised).reshape(steps, classes, *example.image.shape[1:]),
        errors=errors * weight[0][:, None],
    )


def pixels(z: Tensor) -> np.ndarray:
    return model_to_pixels(z.numpy())[:, 0]


def certified(example: Example) -> tuple[np.ndarray, Certificate]:
    """Shares of the estimation votes of one image, and what they prove."""
    voter = classifier(load_denoiser(MODEL), race=RaceSpec(gap=1.7))
    counts = [
        count_votes(
            voter,
            example.image,
            sigma_pixel=SIGMA,
            noise="integer",
            seed=0,
            image_id=example.image_id,
            phase=phase,
            draws=range(votes),
        ).votes.tolist()
        for phase, votes in (("selection", SELECTION), ("estimation", ESTIMATION))
    ]
    return np.array(counts[1]) / ESTIMATION, cohen(*counts, sigma_pixel=SIGMA, alpha=ALPHA)


@dataclass
class Recorder:
    """A denoiser that notes the level and the label of each row that it is asked for."""

    denoiser: EDMDenoiser
    asked: list[tuple[float, int | None]] = field(default_factory=list)  # None: not a single label

    def __post_init__(self) -> None:
        self.image_shape, self.num_classes = self.denoiser.image_shape, self.denoiser.num_classes

    def __call__(self, z: Tensor, sigma_model: Tensor, label: Tensor) -> Tensor:
        one_hot = bool(label.max() == 1)
        self.asked.append((float(sigma_model[0]), int(label.argmax()) if one_hot else None))
        return self.denoiser(z, sigma_model, label)


@dataclass
class HeadsRecorder(Recorder):
    def every_class(self, z: Tensor, sigma_model: Tensor) -> Tensor:
        self.asked.append((float(sigma_model[0]), None))
        return self.denoiser.every_class(z, sigma_model)


@dataclass(frozen=True)
class Asked:
    """What one vote asked of the network: 1 where a label was evaluated by itself, 2 where all were at once."""

    name: str
    levels: np.ndarray
    cells: np.ndarray
    evaluations: int
    winner: int


def levers(example: Example) -> Iterator[Asked]:
    """The same vote in six ways; one row per pass, so that every evaluation is one that was asked for."""
    sift_grid = GridSpec(points=6, sigma_model_max=1.5, spacing="log")  # that of the preset `demo`
    for name, kind, model, settings in (
        ("every label\nat every level", Recorder, MODEL, {}),
        ("sift", Recorder, MODEL, {"sift": SiftSpec(sift_grid, 0.02, keep=2)}),
        ("race", Recorder, MODEL, {"race": RaceSpec(gap=1.7)}),
        ("label gradient", Recorder, MODEL, {"label_gradient": LabelGradientSpec(steps=4, keep=3)}),
        ("class heads", HeadsRecorder, HEADS, {}),
        ("class heads\nand race", HeadsRecorder, HEADS, {"race": RaceSpec(gap=1.7)}),
    ):
        recorder = kind(load_denoiser(model))
        voter = classifier(recorder, rows_per_pass=1, **settings)  # type: ignore[arg-type]
        z, noise = noisy(voter, example)
        prediction = predict(voter, z, tau_model=TAU, noise=noise)
        scored = [(level, label) for level, label in recorder.asked if level != np.float32(TAU) or label is not None]
        grids = {float(np.float32(level)) for level in build_grid(GRID, tau_model=TAU).level}
        levels = np.array(sorted(grids | {level for level, _ in scored}))
        cells = np.zeros((len(levels), recorder.num_classes), dtype=int)
        for level, label in scored:
            row = int(np.searchsorted(levels, level))
            if label is None:
                cells[row] = 2
            else:
                cells[row, label] = max(cells[row, label], 1)
        yield Asked(name, levels, cells, prediction.evaluations, int(prediction.winners[0]))
