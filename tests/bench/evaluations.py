"""What each lever saves, side by side on one model and the same held-out images (docs/cost.md).

    .venv/bin/python -m tests.bench.evaluations [--dataset digits] [--images 12] [--votes 100] [--only "race"]
    .venv/bin/python -m tests.bench.evaluations --classes     # evaluations per vote for 10, 100 and 1,000 classes

Needs models/digits (`ndc train --dataset digits --out models/digits`) and the heads distilled from it (`ndc distill
models/digits digits models/digits-heads`). The harder set is slow: with --images 4 --votes 30 --no-product 25 minutes,
after `ndc train --dataset mnist --out models/mnist --max-seconds 420` and `ndc distill models/mnist mnist
models/mnist-heads --max-seconds 300`.

Every way to vote is run in full: `--votes` estimation votes and a fifth as many for selection, of each image at the
three noise levels. Certified accuracy is that of Cohen's certificate on these votes, at each radius of the level that
is best there, chosen on these images. Its interval accounts for the choice: the three levels' Clopper-Pearson intervals
hold together with 95 %, each with 1 - 0.05 / 3 (Bonferroni), and the chosen level's is shown. The authors' 10,000 votes
an image are counted, not run: evaluations of an image are evaluations of a vote times 10,100 times three. The last
lines compare that number with `ndc certify fast`, which takes up to 10,000 votes; it runs with its defaults, and once
more with a fixed 10,000 votes.
"""

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from scipy.stats import beta

from ndc_core.certificates.cohen import cohen
from ndc_core.classifiers.diffusion import DiffusionClassifier
from ndc_core.classifiers.racing import RaceSpec
from ndc_core.classifiers.scoring import predict
from ndc_core.classifiers.sift import LabelGradientSpec
from ndc_core.models.forward_passes import in_turn
from ndc_core.noise.draw_generators import Phase
from ndc_core.noise.grid import GridSpec
from ndc_core.noise.streams import DrawNoise
from ndc_core.vote_requests import VoteRequest
from ndc_core.voting import stream_votes
from pipeline.data.datasets import DatasetSpec, Example, examples_of, source_of
from pipeline.declaration.config import RunConfig
from pipeline.declaration.toml_files import override, read_source
from pipeline.workers.memory import keep_freed_memory
from pipeline.workers.models import build_classifier

SIGMAS, RADII = (0.0625, 0.125, 0.25), (0.0, 0.125, 0.25, 0.35)
ALPHA, FULL_VOTES, CONFIDENCE = 0.001, 10_100, 0.95
BEST = "best per radius, chosen on this data"
UNIFORM = [round(level, 6) for level in np.linspace(2 * SIGMAS[0], 3, 126)[1:].tolist()]
SHORT = "classifier.grid={points=26, sigma_model_min=0.4, sigma_model_max=2.0, spacing='log'}"
GRADIENT = "classifier.label_gradient={steps=4, keep=3}"
RACE = "classifier.race={gap=1.7}"
HEADS = "model='models/{dataset}-heads'"

# Each is the preset `paper` with some keys changed; the first is the authors' procedure.
WAYS: dict[str, list[str]] = {
    "authors' procedure": [],
    "label-gradient sift": [GRADIENT],
    "racing, gap 2": ["classifier.race={gap=2.0}"],
    "one path": ["classifier.name='apndc'", "classifier.one_path=true", f"classifier.grid={{levels={UNIFORM}}}"],
    "class heads": [HEADS],
    "short grid": [SHORT, "classifier.weight='edm'"],
    "all but heads": [SHORT, "classifier.weight='edm'", GRADIENT, RACE],
    "heads, short grid": [SHORT, "classifier.weight='edm'", HEADS],
    "heads, short grid, racing: the votes of `fast`": [SHORT, "classifier.weight='edm'", HEADS, RACE],
}


@dataclass(frozen=True)
class Job:
    config: RunConfig
    examples: list[Example]
    votes: int


@dataclass(frozen=True)
class Counted:
    """Votes of one image at one noise level."""

    label: int
    sigma_pixel: float
    selection: list[int]
    estimation: list[int]
    evaluations: int
    seconds: float


def config_of(dataset: str, changes: list[str]) -> RunConfig:
    raw = read_source("paper")
    del raw["classifier"]["sift"]  # with ten classes it drops none
    common = [f"model='models/{dataset}'", f"sigma_pixel={list(SIGMAS)}", "noise='integer'", "certificate.radii=[0.0]"]
    for change in [*common, *(change.replace("{dataset}", dataset) for change in changes)]:
        override(raw, change)
    raw["compute"]["rows_per_pass"] = 128
    return RunConfig.model_validate(raw)


def count(job: Job) -> list[Counted]:
    """All votes of some images, in this process, on one thread."""
    keep_freed_memory()
    torch.set_num_threads(1)
    classifier = build_classifier(job.config, device="cpu")
    levels = [SIGMAS] if classifier.one_path else [(sigma,) for sigma in SIGMAS]
    draws_of_phase: tuple[tuple[Phase, int], ...] = (("selection", max(10, job.votes // 5)), ("estimation", job.votes))
    requests: list[tuple[tuple[int, Phase], VoteRequest]] = [
        ((index, phase), VoteRequest(example.image, example.image_id, sigmas, "integer", 0, phase, range(draws)))
        for index, example in enumerate(job.examples)
        for sigmas in levels
        for phase, draws in draws_of_phase
    ]
    cells: dict[tuple[int, float], dict[str, Any]] = {}
    clock = time.process_time()
    sigmas_of = {id(request): request.sigma_pixel for _, request in requests}
    waiting = [((name, id(request)), request) for name, request in reversed(requests)]
    for ((index, phase), request_id), counts in stream_votes(classifier, in_turn(waiting)):
        if isinstance(counts, Exception):
            raise counts
        now = time.process_time()
        for sigma, counted in zip(sigmas_of[request_id], counts, strict=True):
            cell = cells.setdefault((index, sigma), {"evaluations": 0, "seconds": 0.0})
            cell[phase] = counted.votes.tolist()
            cell["evaluations"] += counted.evaluations
            cell["seconds"] += (now - clock) / len(counts)
        clock = now
    return [Counted(job.examples[index].label, sigma, **cell) for (index, sigma), cell in cells.items()]


def interval(successes: int, total: int) -> tuple[float, float]:
    """For the level that was chosen among all: the intervals of all levels hold together with 95 % (Bonferroni)."""
    tail = (1 - CONFIDENCE) / 2 / len(SIGMAS)
    low = 0.0 if successes == 0 else float(beta.ppf(tail, successes, total - successes + 1))
    high = 1.0 if successes == total else float(beta.ppf(1 - tail, successes + 1, total - successes))
    return low, high


def images_that_differ() -> int:
    """How many images must change between two ways, all to one side, for a sign test to show it at 95 %."""
    return math.ceil(1 - math.log2(1 - CONFIDENCE))


def certified(cells: list[Counted], radius: float) -> tuple[int, int]:
    """How many images the best level certifies at a radius, of how many."""
    images = len(cells) // len(SIGMAS)
    best = 0
    for sigma in SIGMAS:
        held = 0
        for cell in (cell for cell in cells if cell.sigma_pixel == sigma):
            certificate = cohen(cell.selection, cell.estimation, sigma_pixel=sigma, alpha=ALPHA)
            held += certificate.holds(label=cell.label, radius=radius)
        best = max(best, held)
    return best, images


def row_of(name: str, cells: list[Counted], votes: int) -> str:
    drawn = votes + max(10, votes // 5)
    a_vote = sum(cell.evaluations for cell in cells) / len(cells) / drawn
    accuracy = {
        sigma: np.mean(
            [cell.estimation[cell.label] / sum(cell.estimation) for cell in cells if cell.sigma_pixel == sigma]
        )
        for sigma in SIGMAS
    }
    shares = []
    for radius in RADII:
        held, images = certified(cells, radius)
        low, high = interval(held, images)
        shares.append(f"{100 * held / images:.0f} ({100 * low:.0f}-{100 * high:.0f})")
    seconds = sum(cell.seconds for cell in cells) / (len(cells) / len(SIGMAS))
    cost = a_vote * FULL_VOTES * len(SIGMAS)
    shown = " / ".join(f"{100 * accuracy[sigma]:.1f}" for sigma in SIGMAS)
    return f"| {name} | {a_vote:,.1f} | {cost:,.0f} | {shown} | {' | '.join(shares)} | {seconds:.1f} |"


def examples_for(dataset: str, images: int) -> list[Example]:
    spec = DatasetSpec(dataset, limit=images)
    return list(examples_of(spec, source_of(spec), channels=1, corrupt=[]))


def table(dataset: str, images: int, votes: int, only: str | None) -> None:
    examples = examples_for(dataset, images)
    header = ["way", "evaluations per vote", "evaluations per image at 10,100 votes and three levels"]
    header += [f"accuracy of a vote at {' / '.join(map(str, SIGMAS))}, %"]
    header += [f"certified at {radius}, %" for radius in RADII] + ["seconds of a core per image"]
    click.echo(f"certified: {BEST}, of three levels; 95 % intervals account for that choice (Bonferroni)")
    click.echo("| " + " | ".join(header) + " |\n" + "| --- " * len(header) + "|")
    workers = len(os.sched_getaffinity(0))
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for name, changes in WAYS.items():
            if only is not None and only != name:
                continue
            config = config_of(dataset, changes)
            jobs = [Job(config, examples[worker::workers], votes) for worker in range(workers)]
            cells = [cell for counted in pool.map(count, jobs) for cell in counted]
            click.echo(row_of(name, cells, votes))
    click.echo(
        f"a difference of two ways shows (sign test, 95 %) if {images_that_differ()} images change, all to one side"
    )


def product_run(dataset: str, images: int, *settings: str) -> dict[str, Any]:
    """`ndc certify fast` as users run it: its summary, with evaluations of an image over all levels."""
    with tempfile.TemporaryDirectory() as scratch:
        changes = [f"model={json.dumps(str(Path('models').absolute() / f'{dataset}-heads'))}"]
        changes += [f"dataset.name='{dataset}'", f"dataset.limit={images}", *settings]
        arguments = [argument for change in changes for argument in ("--set", change)]
        command = [sys.executable, "-m", "pipeline.cli", "certify", "fast", "--run", f"{scratch}/run", *arguments]
        environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{scratch}/mlflow.db"}
        started = time.perf_counter()
        subprocess.run(command, env=environment, check=True, capture_output=True)
        summary: dict[str, Any] = json.loads(Path(scratch, "run/summary.json").read_text())
        return {**summary, "seconds": time.perf_counter() - started}


def show_product(dataset: str, images: int) -> None:
    authors = 1241 * FULL_VOTES * len(SIGMAS)
    click.echo(
        f"\n`ndc certify fast` on {images} images; the authors' procedure takes {authors:,} evaluations per image"
    )
    for name, settings in (("fast", ()), ("fast with 10,000 votes fixed", ("certificate.method='cohen'",))):
        summary = product_run(dataset, images, *settings)
        levels = summary["levels"]
        cost = sum(level["evaluations_per_image"] for level in levels)
        votes = " / ".join(f"{level['votes_per_image']:,.0f}" for level in levels)
        best = {
            radius: max(level["certified_accuracy"][radius] for level in levels)
            for radius in levels[0]["certified_accuracy"]
        }
        shares = ", ".join(f"{100 * share:.1f} % at {radius}" for radius, share in best.items())
        click.echo(
            f"{name}: {votes} votes, {cost:,.0f} evaluations per image for all levels, {authors / cost:,.0f} times "
            f"fewer; certified, {BEST}: {shares}; {summary['seconds']:.0f} s"
        )


def class_table(draws: int = 60) -> None:
    """Closed-form denoisers of class-conditional Gaussians, whose full vote is cheap to know."""
    from tests.support.fakes import many_gaussians

    tau_model = 1.5  # noisy enough for a vote to err
    grid = GridSpec(points=10, sigma_model_max=5.0, spacing="log")
    click.echo("| classes | way | evaluations per vote | agrees with the full vote |\n| --- | --- | --- | --- |")
    for classes in (10, 100, 1000):
        truth = many_gaussians(classes, dimension=64)
        z = np.concatenate(
            [truth.sample(label, 1, tau_model=tau_model, seed=label) for label in np.arange(draws) * classes // draws]
        )
        noise = np.random.default_rng(0).standard_normal((draws, grid.steps, *truth.image_shape), dtype=np.float32)
        drawn = DrawNoise(z, noise, noise[:, :0])
        ways: dict[str, dict[str, Any]] = {
            "every class": {},
            "label-gradient sift, best 8, and racing": {
                "label_gradient": LabelGradientSpec(4, 8),
                "race": RaceSpec(1.5),
            },
            "label-gradient sift, best 40, and racing": {
                "label_gradient": LabelGradientSpec(4, 40),
                "race": RaceSpec(1.5),
            },
            "class heads": {"heads": True},
            "class heads and racing": {"heads": True, "race": RaceSpec(1.5)},
        }
        full = None
        for name, levers in ways.items():
            denoiser = many_gaussians(classes, dimension=64, heads=levers.pop("heads", False))
            classifier = DiffusionClassifier(denoiser, "apndc-ensemble", grid=grid, rows_per_pass=256, **levers)
            prediction = predict(classifier, z, tau_model=tau_model, noise=drawn)
            full = prediction.winners if full is None else full
            agreement = 100 * (prediction.winners == full).mean()
            click.echo(f"| {classes:,} | {name} | {prediction.evaluations / draws:,.1f} | {agreement:.0f} % |")


@click.command()
@click.option("--dataset", default="digits", show_default=True, type=click.Choice(["digits", "mnist"]))
@click.option("--images", default=12, show_default=True)
@click.option("--votes", default=100, show_default=True)
@click.option("--only", help="One way alone.")
@click.option("--classes", is_flag=True, help="Instead: the cost of a vote against the number of classes.")
@click.option("--product/--no-product", default=True, show_default=True, help="Also run `ndc certify fast`.")
def main(dataset: str, images: int, votes: int, only: str | None, classes: bool, product: bool) -> None:
    if classes:
        class_table()
        return
    for model in (f"models/{dataset}", f"models/{dataset}-heads"):
        if not Path(model).is_dir():
            raise click.ClickException(f"{model} is missing; see the first lines of this script")
    table(dataset, images, votes, only)
    if product:
        show_product(dataset, images)


if __name__ == "__main__":
    main()
