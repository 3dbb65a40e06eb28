"""What tuning is worth: accuracy of one vote on held-out digits by evaluations, for heads before and after.

    ndc tune fast models/digits-tuned --seed 1
    python -m tests.bench.tuned_heads models/digits-heads models/digits-tuned [--classifier models/digits-noise]

All models vote on the same images with the same noise, of a seed that tuning did not use. A grid of n + 1 points makes
n - 1 evaluations and one for the estimate. `--classifier` adds a plain classifier trained with noise (`ndc train digits
--classifier --noise 0.0625 --noise 0.125 --noise 0.25 --max-seconds ... --out ...`), which is evaluated once a vote.
`--split train` takes training digits, to choose a grid on.
"""

from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
import torch

from ndc_core import load_denoiser
from ndc_core.checkpoints.image_classifiers import load_classifier
from ndc_core.classifiers.baselines import Baseline
from ndc_core.classifiers.diffusion import DiffusionClassifier
from ndc_core.models.forward_passes import in_turn
from ndc_core.noise.grid import GridSpec
from ndc_core.vote_requests import Voter, VoteRequest
from ndc_core.voting import stream_votes
from pipeline.data.datasets import Example
from pipeline.workers.memory import keep_freed_memory
from tests.support.small_runs import digits

SIGMAS = (0.0625, 0.125, 0.25)
POINTS = (26, 6, 4, 3)
SEED, ROWS = 5, 128


def grid_of(points: int) -> GridSpec:
    """The grid of `fast` with another number of points."""
    return GridSpec(points=points, sigma_model_min=0.4, sigma_model_max=2.0, spacing="log")


def right_votes(voter: Voter, examples: Sequence[Example], sigma: float, votes: int) -> tuple[int, float]:
    """The number of right votes, and the evaluations of a vote."""
    requests = [
        (index, VoteRequest(example.image, example.image_id, (sigma,), "integer", SEED, "estimation", range(votes)))
        for index, example in enumerate(examples)
    ]
    right = evaluations = 0
    for index, counts in stream_votes(voter, in_turn(requests)):
        if isinstance(counts, Exception):
            raise counts
        right += int(counts[0].votes[examples[index].label])
        evaluations += counts[0].evaluations
    return right, evaluations / (votes * len(examples))


def row(name: str, voter: Voter, examples: Sequence[Example], votes: int) -> str:
    total, shares, cost = votes * len(examples), [], 0.0
    for sigma in SIGMAS:
        right, cost = right_votes(voter, examples, sigma, votes)
        share = right / total
        shares.append(f"{100 * share:.1f} ± {100 * np.sqrt(share * (1 - share) / total):.1f}")
    return f"| `{name}` | {cost:.0f} | {' | '.join(shares)} |"


@click.command()
@click.argument("models", nargs=-1, required=True)
@click.option("--classifier", help="A plain classifier, to compare with.")
@click.option("--images", default=200, show_default=True)
@click.option("--votes", default=2, show_default=True)
@click.option("--split", type=click.Choice(["test", "train"]), default="test", show_default=True)
@click.option("--points", type=int, multiple=True, default=POINTS, show_default=True)
def main(
    models: tuple[str, ...], classifier: str | None, images: int, votes: int, split: str, points: tuple[int, ...]
) -> None:
    keep_freed_memory()
    torch.set_num_threads(1)
    examples = digits("train" if split == "train" else "test", limit=images)
    names = " | ".join(f"sigma {sigma:g}" for sigma in SIGMAS)
    click.echo(f"{len(examples)} {split} digits, {votes} votes each of seed {SEED}; % right, with standard errors")
    click.echo(f"| model | evaluations | {names} |\n|---|---|{'---|' * len(SIGMAS)}")
    for model in models:
        denoiser = load_denoiser(model)
        for count in points:
            voter = DiffusionClassifier(
                denoiser, "apndc-ensemble", grid=grid_of(count), weight="edm", rows_per_pass=ROWS
            )
            click.echo(row(model, voter, examples, votes))
    if classifier:
        plain = Baseline(load_classifier(Path(classifier)), rows_per_pass=ROWS)
        click.echo(row(classifier, plain, examples, votes))


if __name__ == "__main__":
    main()
