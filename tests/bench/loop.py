"""What the vote loop costs on top of the network on a CPU, in processor time, which other processes do not change much.

    .venv/bin/python -m tests.bench.loop [--pairs 3] [--seconds 1.5]

Two networks: the digits' one, and one that computes next to nothing, which leaves the loop's own work. Each way to vote
takes turns with a bare loop, which calls the same network on the same number of rows; ratios are taken within a turn. A
row whose gradient is taken counts two.
"""

import itertools
import statistics
import time
from dataclasses import dataclass
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor

from ndc_core.checkpoints.denoisers import load_denoiser
from ndc_core.classifiers.diffusion import DiffusionClassifier
from ndc_core.classifiers.racing import RaceSpec
from ndc_core.classifiers.sift import LabelGradientSpec
from ndc_core.models import forward_passes as passes
from ndc_core.models.denoiser import Denoiser
from ndc_core.models.forward_passes import EVALUATIONS_OF_A_ROW
from ndc_core.noise.grid import GridSpec
from ndc_core.vote_requests import VoteRequest
from ndc_core.voting import stream_votes
from pipeline.workers.memory import keep_freed_memory
from tests.bench.bare import MODEL

GRID = GridSpec(points=26, sigma_model_min=0.4, sigma_model_max=3.0, spacing="log")
RACE = RaceSpec(1.7)
WAYS: dict[str, dict[str, Any]] = {
    "all classes": {},
    "race": {"race": RACE},
    "label gradient + race": {"race": RACE, "label_gradient": LabelGradientSpec(4, 3)},
}
REQUESTS = (2, 1000)


@dataclass(frozen=True)
class Cheap:
    """Almost no network: its output is the noisy image and a little of the label."""

    image_shape: tuple[int, int, int] = (1, 8, 8)
    num_classes: int = 10

    def __call__(self, z: Tensor, sigma_model: Tensor, label: Tensor) -> Tensor:
        return z + label.mean(dim=1)[:, None, None, None] + 0.1 * label[:, :1, None, None]


class EnoughError(BaseException):
    """Ends a measurement; it is not a failure of a vote."""


def bare_rate(denoiser: Denoiser, rows: int, seconds: float) -> float:
    """Rows a second of processor time."""
    z, sigma = torch.randn(rows, *denoiser.image_shape), torch.rand(rows) + 0.5
    label = torch.eye(denoiser.num_classes)[torch.arange(rows) % denoiser.num_classes]
    with torch.inference_mode():
        denoiser(z, sigma, label)
        started, done = time.process_time(), 0
        while time.process_time() - started < seconds:
            denoiser(z, sigma, label)
            done += rows
    return done / (time.process_time() - started)


def vote_rate(classifier: DiffusionClassifier, request: int, seconds: float) -> float:
    """Evaluations a second of processor time, without those that pad a pass, of votes that go on and on."""
    own, marks, done = passes._Gatherer._evaluate, list[float](), 0

    def evaluate(gatherer: Any, parts: Any) -> Any:
        nonlocal done
        marks.append(time.process_time())
        if marks[-1] - marks[0] > seconds:
            raise EnoughError
        each = EVALUATIONS_OF_A_ROW[parts[0][0].kind]
        done += sum(window.stop - window.start for _, window in parts) * each
        return own(gatherer, parts)

    image = np.random.default_rng(0).integers(0, 256, classifier.image_shape, dtype=np.uint8)
    numbers = itertools.count()

    def next_request() -> tuple[int, VoteRequest]:
        number = next(numbers)
        return number, VoteRequest(image, f"{number}", (0.25,), "integer", 0, "estimation", range(request))

    passes._Gatherer._evaluate = evaluate  # type: ignore[method-assign]
    try:
        for _, counts in stream_votes(classifier, next_request):
            if isinstance(counts, Exception):
                raise counts
    except EnoughError:
        return done / (marks[-1] - marks[0])
    finally:
        passes._Gatherer._evaluate = own  # type: ignore[method-assign]
    raise AssertionError("there is always a next request")


@click.command()
@click.option("--pairs", default=3, show_default=True)
@click.option("--seconds", default=1.5, show_default=True, help="Of processor time, of each measurement.")
def main(pairs: int, seconds: float) -> None:
    keep_freed_memory()
    torch.set_num_threads(1)
    click.echo(
        "| network | way | rows a pass | draws a request | of a bare loop's rate | rows/s |\n|---|---|---|---|---|---|"
    )
    for name, denoiser, rows in (("digits", load_denoiser(MODEL), 256), ("none", Cheap(), 2048)):
        for way, levers in WAYS.items():
            for request in REQUESTS:
                classifier = DiffusionClassifier(
                    denoiser, "apndc-ensemble", GRID, weight="edm", rows_per_pass=rows, **levers
                )
                ratios, rates = [], []
                for _ in range(pairs):
                    bare = bare_rate(denoiser, rows, seconds)
                    rates.append(vote_rate(classifier, request, seconds))
                    ratios.append(rates[-1] / bare)
                spread = f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
                click.echo(f"| {name} | {way} | {rows} | {request:,} | {spread} | {statistics.median(rates):,.0f} |")


if __name__ == "__main__":
    main()
