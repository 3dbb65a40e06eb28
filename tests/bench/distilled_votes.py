"""How votes with distilled heads agree with their teacher's: the same images, noise and levels for both.

    ndc distill shared/models/cifar10-small shared/data/cifar10-jpeg-train.parquet models/cifar10-heads \
        --max-seconds 3600
    python -m tests.bench.distilled_votes shared/models/cifar10-small models/cifar10-heads \
        shared/data/cifar10-jpeg-test.parquet [--images 200] [--sigma-pixel 0.25]

One vote an image of APNDC, all classes at four levels. Besides the share of votes that are right and that are the
teacher's, it prints the correlation over images and classes of both models' scores, each minus its mean over the
classes: it shows the progress of heads that do not win votes yet.
"""

import time

import click
import numpy as np
import torch

from ndc_core import load_denoiser
from ndc_core.classifiers.diffusion import DiffusionClassifier
from ndc_core.models.forward_passes import in_turn
from ndc_core.noise.grid import GridSpec
from ndc_core.vote_requests import VoteRequest
from ndc_core.voting import stream_votes
from pipeline.data.datasets import DatasetSpec, Example, examples_of, source_of
from pipeline.workers.memory import keep_freed_memory

LEVELS = {0.125: (0.3, 0.4, 0.55, 0.8, 1.1), 0.25: (0.55, 0.7, 0.9, 1.2, 1.6), 0.5: (1.05, 1.2, 1.5, 1.9, 2.4)}
SEED, ROWS = 7, 16


def scores_of(model: str, examples: list[Example], sigma_pixel: float) -> np.ndarray:
    """The scores of one vote for each image: (images, classes)."""
    denoiser = load_denoiser(model)
    classifier = DiffusionClassifier(denoiser, "apndc", GridSpec(levels=LEVELS[sigma_pixel]), rows_per_pass=ROWS)
    waiting = [
        (
            index,
            VoteRequest(
                example.image,
                example.image_id,
                (sigma_pixel,),
                "integer",
                SEED,
                "estimation",
                range(1),
                keep_scores=True,
            ),
        )
        for index, example in enumerate(examples)
    ]
    scores = np.zeros((len(examples), denoiser.num_classes))
    for index, counts in stream_votes(classifier, in_turn(waiting)):
        if isinstance(counts, Exception):
            raise counts
        assert counts[0].scores is not None
        scores[index] = counts[0].scores[0]
    return scores


@click.command()
@click.argument("teacher")
@click.argument("heads")
@click.argument("data")
@click.option("--images", default=200, show_default=True)
@click.option("--sigma-pixel", "sigmas", multiple=True, type=float, default=(0.25,), show_default=True)
def main(teacher: str, heads: str, data: str, images: int, sigmas: tuple[float, ...]) -> None:
    keep_freed_memory()
    torch.set_num_threads(1)
    spec = DatasetSpec(data, split="test", limit=images)
    examples = list(examples_of(spec, source_of(spec), channels=3, corrupt=[]))
    labels = np.array([example.label for example in examples])
    click.echo("| sigma | teacher right | heads right | the teacher's votes | correlation of scores | seconds a vote |")
    click.echo("| --- | --- | --- | --- | --- | --- |")
    for sigma in sigmas:
        scores, seconds = [], []
        for model in (teacher, heads):
            started = time.process_time()
            scores.append(scores_of(model, examples, sigma))
            seconds.append((time.process_time() - started) / len(examples))
        right = [float((model_scores.argmax(axis=1) == labels).mean()) for model_scores in scores]
        agree = float((scores[0].argmax(axis=1) == scores[1].argmax(axis=1)).mean())
        of_classes = [(model_scores - model_scores.mean(axis=1, keepdims=True)).ravel() for model_scores in scores]
        click.echo(
            f"| {sigma:g} | {right[0]:.1%} | {right[1]:.1%} | {agree:.1%} | {np.corrcoef(*of_classes)[0, 1]:.2f} | "
            f"{seconds[0]:.2f}, {seconds[1]:.2f} |"
        )


if __name__ == "__main__":
    main()
