"""How often the levers agree with the full vote: recall of the label's gradient, agreement of racing.

    .venv/bin/python -m tests.bench.levers [--images 100] [--draws 4]

The label-conditional model, the grid of the preset `fast`, the same noise for every way. The full vote scores all ten
classes at all levels. Gaps and numbers of classes are read off these tables, so these use training digits and
a seed that no preset uses. No certificate counts these draws.
"""

from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import torch

from ndc_core import load_denoiser
from ndc_core.classifiers.diffusion import DiffusionClassifier
from ndc_core.classifiers.racing import RaceSpec
from ndc_core.classifiers.scoring import predict
from ndc_core.classifiers.sift import LabelGradientSpec
from ndc_core.noise.smoothing import IntegerNoise
from ndc_core.noise.streams import DrawNoise, draw_noise
from pipeline.declaration.toml_files import load_config
from pipeline.workers.memory import keep_freed_memory
from tests.support.small_runs import digits

SIGMAS = (0.125, 0.25, 0.5)
SEED = 18
STEPS, KEPT, GAPS = (1, 2, 4), (1, 2, 3, 4, 5), (1.1, 1.2, 1.3, 1.5, 1.7, 2.0)


def noisy(sigma_pixel: float, *, steps: int, images: int, draws: int) -> tuple[np.ndarray, DrawNoise, np.ndarray]:
    """Noisy training digits, the noise of their steps, and their labels."""
    law, z, refine, labels = IntegerNoise(sigma_pixel), [], [], []
    for example in digits("train", limit=images):
        drawn = draw_noise(
            seed=SEED,
            image_id=example.image_id,
            phase="estimation",
            draws=range(draws),
            input_noise=law,
            image_shape=example.image.shape,
            refine_steps=steps,
            sift_steps=0,
        )
        z.append(law.add(example.image, drawn.input))
        refine.append(drawn.refine)
        labels += [example.label] * draws
    joined = np.concatenate(refine)
    return np.concatenate(z), DrawNoise(np.concatenate(z), joined, joined[:, :0]), np.array(labels)


@click.command()
@click.option("--images", default=100, show_default=True)
@click.option("--draws", default=4, show_default=True)
def main(images: int, draws: int) -> None:
    if not Path("models/digits").is_dir():
        raise click.ClickException("models/digits is missing; run `make demo` first")
    keep_freed_memory()
    torch.set_num_threads(1)
    grid = load_config("fast").classifier.grid
    full = DiffusionClassifier(load_denoiser("models/digits"), "apndc-ensemble", grid, weight="edm", rows_per_pass=128)
    gradients = ["| sigma | steps | " + " | ".join(f"in the best {kept}" for kept in KEPT) + " |", "| --- " * 7 + "|"]
    races = ["| sigma | gap | evaluations per vote | accuracy | agrees with the full vote |", "| --- " * 5 + "|"]
    for sigma in SIGMAS:
        z, noise, labels = noisy(sigma, steps=grid.steps, images=images, draws=draws)

        def vote(
            classifier: DiffusionClassifier, z: np.ndarray = z, noise: DrawNoise = noise
        ) -> tuple[np.ndarray, float]:
            prediction = predict(classifier, z, tau_model=2 * sigma, noise=noise)  # noqa: B023
            return prediction.winners, prediction.evaluations / len(z)

        truth, cost = vote(full)
        races.append(f"| {sigma} | none | {cost:.1f} | {100 * (truth == labels).mean():.1f} % | |")
        for gap in GAPS:
            winners, cost = vote(replace(full, race=RaceSpec(gap)))
            accuracy, agreement = (100 * (winners == other).mean() for other in (labels, truth))
            races.append(f"| {sigma} | {gap} | {cost:.1f} | {accuracy:.1f} % | {agreement:.1f} % |")
        for steps in STEPS:
            # The full vote's winner wins among the kept exactly if it is kept.
            recalls = [
                (vote(replace(full, label_gradient=LabelGradientSpec(steps, kept)))[0] == truth).mean() for kept in KEPT
            ]
            gradients.append(
                f"| {sigma} | {steps} | " + " | ".join(f"{100 * recall:.1f} %" for recall in recalls) + " |"
            )
    click.echo("\n".join([*gradients, "", *races]))


if __name__ == "__main__":
    main()
