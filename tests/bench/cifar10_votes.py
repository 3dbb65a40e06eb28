"""How often one vote is right on CIFAR-10's test images, by model, way to vote and noise level.

    python -m tests.bench.cifar10_votes TEACHER HEADS TUNED TEST --out votes.json \
        [--classifier FOLDER ...] [--images 1000] [--teacher-images 200]

All models vote on the same images with the same noise, of a seed that no model was made with: one vote for each image
and noise level. TEACHER votes in every way for the first of the images, heads before and after tuning on grids of fewer
and fewer levels for all, image classifiers as they are. Intervals are Clopper and Pearson's, of 95 %.
"""

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import torch
from scipy.stats import binomtest

from ndc_core.checkpoints.denoisers import load_denoiser
from ndc_core.checkpoints.image_classifiers import load_classifier
from ndc_core.classifiers.baselines import Baseline
from ndc_core.classifiers.diffusion import DiffusionClassifier
from ndc_core.classifiers.racing import RaceSpec
from ndc_core.classifiers.voter import Voter
from ndc_core.models.execution import DTYPES, Execution
from ndc_core.noise.grid import GridSpec
from pipeline.data.datasets import DatasetSpec, Example, examples_of, source_of
from tests.bench.cifar10 import SIGMAS
from tests.bench.tuned_heads import right_votes

POINTS = (26, 6, 4, 3)
RACE = RaceSpec(1.7)


def grid_of(points: int) -> GridSpec:
    """The grid of the preset fast-cifar10 with another number of points."""
    return GridSpec(points=points, sigma_model_min=0.4, sigma_model_max=3.0, spacing="log")


class Models:
    def __init__(self, device: str, precision: str, rows: int) -> None:
        self.device, self.rows = device, rows
        self.execution = Execution(precision, channels_last=device == "cuda")  # type: ignore[arg-type]

    def voter(self, model: Path, name: str, points: int, **levers: Any) -> DiffusionClassifier:
        denoiser = load_denoiser(model, device=self.device, execution=self.execution)
        return DiffusionClassifier(
            denoiser,
            name,
            grid=grid_of(points),
            weight="edm",
            rows_per_pass=self.rows,
            device=self.device,
            **levers,
        )

    def plain(self, model: Path) -> Baseline:
        network = load_classifier(model, device=self.device, execution=self.execution)
        return Baseline(network, rows_per_pass=self.rows, device=self.device)


def ways(
    models: Models, teacher: Path, heads: Path, tuned: Path, classifiers: Sequence[Path]
) -> Iterator[tuple[str, str, Voter]]:
    """Model, way to vote, and voter; the most important first."""
    for name, folder in (("tuned", tuned), ("heads", heads)):
        for points in POINTS:
            yield name, f"ensemble, {points - 1} levels", models.voter(folder, "apndc-ensemble", points)
        yield name, "ensemble, race", models.voter(folder, "apndc-ensemble", POINTS[0], race=RACE)
    for folder in classifiers:
        yield folder.name, "plain", models.plain(folder)
    for name in ("apndc-ensemble", "epndc", "apndc"):
        yield "teacher", name, models.voter(teacher, name, POINTS[0])
    for name in ("apndc-ensemble", "epndc"):
        yield "teacher", f"{name}, race", models.voter(teacher, name, POINTS[0], race=RACE)
    for name in ("epndc", "apndc"):
        yield "heads", name, models.voter(heads, name, POINTS[0])


def row(model: str, way: str, voter: Voter, examples: Sequence[Example]) -> dict[str, Any]:
    began, right, cost = time.perf_counter(), [], 0.0
    for sigma in SIGMAS:
        count, cost = right_votes(voter, examples, sigma, 1)
        right.append(count)
    seconds = time.perf_counter() - began
    return {
        "model": model,
        "way": way,
        "images": len(examples),
        "evaluations": cost,
        "right": right,
        "seconds": seconds,
        "evaluations_per_second": cost * len(examples) * len(SIGMAS) / seconds,
    }


def shown(record: dict[str, Any]) -> str:
    images, cells = record["images"], []
    for right in record["right"]:
        low, high = binomtest(right, images).proportion_ci()
        cells.append(f"{100 * right / images:.1f} ({100 * low:.0f}-{100 * high:.0f})")
    rate = f"{record['evaluations_per_second']:,.0f}"
    return (
        f"| {record['model']} | {record['way']} | {record['evaluations']:.1f} "
        f"| {' | '.join(cells)} | {images} | {rate} |"
    )


@click.command(help=__doc__)
@click.argument("teacher", type=click.Path(path_type=Path, exists=True))
@click.argument("heads", type=click.Path(path_type=Path, exists=True))
@click.argument("tuned", type=click.Path(path_type=Path, exists=True))
@click.argument("test", type=click.Path(path_type=Path, exists=True))
@click.option("--classifier", "classifiers", type=click.Path(path_type=Path, exists=True), multiple=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="JSON, written after each row.")
@click.option("--images", default=1000, show_default=True)
@click.option("--teacher-images", default=200, show_default=True)
@click.option("--precision", type=click.Choice(list(DTYPES)), help="[default: float16 on a GPU, float32 on a CPU]")
@click.option("--seconds", default=60.0, show_default=True, help="No row begins after so long.")
def main(
    teacher: Path,
    heads: Path,
    tuned: Path,
    test: Path,
    classifiers: tuple[Path, ...],
    out: Path,
    images: int,
    teacher_images: int,
    precision: str | None,
    seconds: float,
) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        torch.set_num_threads(1)
    spec = DatasetSpec(str(test), split="test", limit=images)
    examples = list(examples_of(spec, source_of(spec), channels=3, corrupt=[]))
    models = Models(
        device, precision or ("float16" if device == "cuda" else "float32"), 2048 if device == "cuda" else 32
    )
    card = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    click.echo(f"{card}, torch {torch.__version__}, {models.execution}; right of one vote, %")
    names = " | ".join(f"sigma {sigma:g}" for sigma in SIGMAS)
    click.echo(f"| model | way | evaluations | {names} | images | evaluations/s |\n|---|---|---|---|---|---|---|---|")
    started, rows = time.perf_counter(), list[dict[str, Any]]()
    for model, way, voter in ways(models, teacher, heads, tuned, classifiers):
        if time.perf_counter() - started > seconds:
            click.echo(f"{seconds:.0f} s are over")
            break
        rows.append(row(model, way, voter, examples[: teacher_images if model == "teacher" else None]))
        click.echo(shown(rows[-1]))
        out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
