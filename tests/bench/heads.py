"""What class heads are worth: accuracy of one vote on held-out digits, on the same images with the same noise.

.venv/bin/ndc train --dataset digits --heads classes --out models/digits-heads-trained
.venv/bin/ndc distill models/digits digits models/digits-heads
.venv/bin/python -m tests.bench.heads models/digits models/digits-heads-trained models/digits-heads
"""

import time
from dataclasses import fields
from statistics import median

import click
import numpy as np
import torch
from jaxtyping import Int

from ndc_core import DiffusionClassifier, GridSpec, load_denoiser
from ndc_core.classifiers.scoring import scores
from ndc_core.models.denoiser import EDMDenoiser, EveryClass
from ndc_core.noise.smoothing import IntegerNoise
from ndc_core.noise.streams import DrawNoise, draw_noise
from pipeline.data.datasets import Example
from tests.support.small_runs import digits

LEVELS = (0.125, 0.25, 0.5)
GRID = GridSpec(points=10, sigma_model_max=1.5, spacing="log")
ROWS, IMAGES_AT_ONCE = 100, 25


def winners(
    classifier: DiffusionClassifier, examples: list[Example], *, sigma_pixel: float, draws: int
) -> Int[np.ndarray, "images draws"]:
    law, noisy, noises = IntegerNoise(sigma_pixel), [], []
    for example in examples:
        noise = draw_noise(
            seed=0,
            image_id=example.image_id,
            phase="estimation",
            draws=range(draws),
            input_noise=law,
            image_shape=example.image.shape,
            refine_steps=GRID.steps,
            sift_steps=0,
        )
        noisy.append(law.add(example.image, noise.input))
        noises.append(noise)
    noise = DrawNoise(*(np.concatenate([getattr(each, part.name) for each in noises]) for part in fields(DrawNoise)))
    scores_of_classes = scores(classifier, np.concatenate(noisy), tau_model=2 * sigma_pixel, noise=noise)
    return scores_of_classes.argmax(axis=1).reshape(len(examples), draws)


@torch.inference_mode()
def milliseconds(denoiser: EDMDenoiser) -> float:
    """Median of 20 times for the outputs of all classes at ROWS noisy images."""
    z, sigma = torch.zeros(ROWS, *denoiser.image_shape), torch.ones(ROWS)
    labels = torch.eye(denoiser.num_classes)
    taken: list[float] = []
    for _ in range(20):
        started = time.perf_counter()
        if isinstance(denoiser, EveryClass):
            denoiser.every_class(z, sigma)
        else:
            for label in labels:
                denoiser(z, sigma, label.expand(ROWS, -1))
        taken.append(1000 * (time.perf_counter() - started))
    return median(taken)


def votes_of(
    denoiser: EDMDenoiser, examples: list[Example], *, sigma_pixel: float, draws: int
) -> Int[np.ndarray, "images draws"]:
    classifier = DiffusionClassifier(denoiser, "apndc-ensemble", grid=GRID, weight="edm", rows_per_pass=ROWS)
    groups = [examples[first : first + IMAGES_AT_ONCE] for first in range(0, len(examples), IMAGES_AT_ONCE)]
    return np.concatenate([winners(classifier, group, sigma_pixel=sigma_pixel, draws=draws) for group in groups])


@click.command()
@click.argument("models", nargs=-1, required=True)
@click.option("--images", default=500)
@click.option("--draws", default=4)
def main(models: tuple[str, ...], images: int, draws: int) -> None:
    torch.set_num_threads(1)
    examples = digits("test", limit=images)
    truth = np.array([example.label for example in examples])[:, None]
    of_first: dict[float, np.ndarray] = {}
    names = " | ".join(f"sigma {sigma:g}" for sigma in LEVELS)
    print(f"{len(examples)} images, {draws} votes each; in brackets, votes that are those of {models[0]}")
    print(f"| model | ms for all classes of {ROWS} rows | {names} |\n|---|---|{'---|' * len(LEVELS)}")
    for model in models:
        denoiser, cells = load_denoiser(model), []
        for sigma in LEVELS:
            votes = votes_of(denoiser, examples, sigma_pixel=sigma, draws=draws)
            first = of_first.setdefault(sigma, votes)
            cells.append(f"{100 * np.mean(votes == truth):.1f} % ({100 * np.mean(votes == first):.1f} %)")
        print(f"| `{model}` | {milliseconds(denoiser):.0f} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
