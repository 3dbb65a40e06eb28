"""What APNDC's target without a label is worth: accuracy of one vote on held-out digits, by source and noise level.

.venv/bin/python -m tests.bench.unconditional
"""

import click
import torch

from ndc_core import DiffusionClassifier, GridSpec, count_votes, load_denoiser
from ndc_core.classifiers.unconditional import UNCONDITIONALS
from tests.support.small_runs import digits

LEVELS = (0.125, 0.25, 0.5)


@click.command()
@click.option("--model", default="models/digits")
@click.option("--images", default=500)
def main(model: str, images: int) -> None:
    torch.set_num_threads(1)
    denoiser, examples = load_denoiser(model), digits("test", limit=images)
    print("| unconditional | evaluations | " + " | ".join(f"sigma {sigma:g}" for sigma in LEVELS) + " |")
    print("|---|---|" + "---|" * len(LEVELS))
    for name, make in UNCONDITIONALS.items():
        unconditional, row = make(denoiser), []
        for sigma in LEVELS:
            grid = GridSpec(points=10, sigma_model_max=6 * sigma, spacing="log")
            classifier = DiffusionClassifier(
                denoiser, "apndc-ensemble", grid=grid, weight="edm", rows_per_pass=100, unconditional=unconditional
            )
            right = sum(
                int(
                    count_votes(
                        classifier,
                        example.image,
                        sigma_pixel=sigma,
                        noise="integer",
                        seed=0,
                        image_id=example.image_id,
                        phase="selection",
                        draws=range(1),
                    ).votes[example.label]
                )
                for example in examples
            )
            row.append(f"{100 * right / len(examples):.1f} %")
        print(f"| `{name}` | {unconditional.evaluations} | {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
