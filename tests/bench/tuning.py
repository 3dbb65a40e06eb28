"""How the grid and the gap of the preset `fast` are chosen: on training digits, with another seed than any preset's.

    .venv/bin/python -m tests.bench.tuning [--images 200] [--draws 6]

Held-out digits and the draws of seed 0 have no part in it: the preset certifies those. One thing at a time, in this
order: the number of levels, their range, and on that grid the gap of the race. The rule is the same each time, over
single votes at the preset's three noise levels: of all settings that are behind the most accurate one by no more than a
standard error (of the difference, paired, over images), the one with the fewest evaluations per vote, or its first.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import click
import numpy as np
import torch
from jaxtyping import Float

from ndc_core import load_denoiser
from ndc_core.classifiers.diffusion import DiffusionClassifier
from ndc_core.classifiers.racing import RaceSpec
from ndc_core.classifiers.scoring import predict
from ndc_core.noise.grid import GridSpec
from pipeline.declaration.toml_files import load_config
from pipeline.workers.memory import keep_freed_memory
from tests.bench.levers import SEED, noisy

POINTS = (6, 10, 18, 26, 40)
RANGES = ((0.4, 2.0), (0.3, 2.0), (0.5, 2.0), (0.4, 1.5), (0.4, 3.0))  # sigma_model
GAPS = (None, 1.1, 1.2, 1.4, 1.7, 2.0)

Setting = TypeVar("Setting")


@dataclass(frozen=True)
class Tried:
    """Accuracy of an image's votes at all noise levels together, and what a vote costs."""

    accuracy: Float[np.ndarray, " images"]
    evaluations: float


def chosen(tried: dict[Setting, Tried]) -> Setting:
    """The cheapest setting that is within a standard error of the most accurate one."""
    best = max(tried.values(), key=lambda each: float(each.accuracy.mean()))

    def behind(each: Tried) -> float:
        difference = best.accuracy - each.accuracy
        return float(difference.mean() - difference.std(ddof=1) / np.sqrt(len(difference)))

    return min((name for name in tried if behind(tried[name]) <= 0), key=lambda name: tried[name].evaluations)


def compare(what: str, settings: tuple[Setting, ...], vote: Callable[[Setting], Tried]) -> Setting:
    """Tries all settings, prints them, and returns the one that the rule names."""
    tried: dict[Setting, Tried] = {}
    click.echo(f"\n| {what} | evaluations per vote | accuracy, % | behind the best, % |\n| --- | --- | --- | --- |")
    for setting in settings:
        tried[setting] = vote(setting)
    best = max(tried.values(), key=lambda each: float(each.accuracy.mean())).accuracy
    for setting, each in tried.items():
        behind = 100 * (best - each.accuracy)
        error = behind.std(ddof=1) / np.sqrt(len(behind))
        shown = f"{100 * each.accuracy.mean():.2f} | {behind.mean():.2f} ± {error:.2f}"
        click.echo(f"| {setting} | {each.evaluations:.1f} | {shown} |")
    click.echo(f"{what}: {chosen(tried)}")
    return chosen(tried)


@click.command()
@click.option("--images", default=200, show_default=True)
@click.option("--draws", default=6, show_default=True, help="Votes of an image at a noise level.")
def main(images: int, draws: int) -> None:
    preset = load_config("fast")
    if not Path(preset.model).is_dir():
        raise click.ClickException(f"{preset.model} is missing; run `make demo` first")
    keep_freed_memory()
    torch.set_num_threads(1)
    denoiser = load_denoiser(preset.model)
    click.echo(
        f"{images} training digits, {draws} votes each at {', '.join(map(str, preset.sigma_pixel))}, seed {SEED}"
    )

    def vote(grid: GridSpec, gap: float | None) -> Tried:
        classifier = DiffusionClassifier(denoiser, "apndc-ensemble", grid, weight="edm", rows_per_pass=128)
        classifier = replace(classifier, race=RaceSpec(gap) if gap else None)
        right, evaluations = [], 0
        for sigma in preset.sigma_pixel:
            z, noise, labels = noisy(sigma, steps=grid.steps, images=images, draws=draws)
            counted = predict(classifier, z, tau_model=2 * sigma, noise=noise)
            right.append((counted.winners == labels).reshape(images, draws).mean(axis=1))
            evaluations += counted.evaluations
        return Tried(np.mean(right, axis=0), evaluations / (images * draws * len(right)))

    def grid_of(points: int, ends: tuple[float, float]) -> GridSpec:
        return GridSpec(points=points, sigma_model_min=ends[0], sigma_model_max=ends[1], spacing="log")

    points = compare("points", POINTS, lambda points: vote(grid_of(points, RANGES[0]), None))
    ends = compare("range, sigma_model", RANGES, lambda ends: vote(grid_of(points, ends), None))
    compare("gap", GAPS, lambda gap: vote(grid_of(points, ends), gap))


if __name__ == "__main__":
    main()
