"""What the pipeline costs on top of the network: evaluations per second, one actor against a bare loop.

    .venv/bin/python -m tests.bench.overhead [--pairs 5] [--images 4]

The bare loop calls the same denoiser with the same number of rows on one thread and does nothing else. The
pipeline is `ndc certify demo` with one actor, timed from the start of its first unit to the end of its last.
The two take turns; the ratio is taken pair by pair.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import torch

from ndc_core.checkpoints import load_denoiser
from pipeline.config import load_config
from pipeline.store import RunStore

MODEL = Path("models/digits")


def bare_rate(rows: int, *, seconds: float) -> float:
    """Rows per second of the denoiser alone."""
    torch.set_num_threads(1)
    denoiser = load_denoiser(MODEL)
    z = torch.randn(rows, *denoiser.image_shape)
    sigma, label = torch.rand(rows) + 0.5, torch.eye(denoiser.num_classes)[torch.arange(rows) % denoiser.num_classes]
    passes = 0
    with torch.inference_mode():
        denoiser(z, sigma, label)
        started = time.perf_counter()
        while time.perf_counter() - started < seconds:
            denoiser(z, sigma, label)
            passes += 1
        return passes * rows / (time.perf_counter() - started)


def pipeline_rate(folder: Path, images: int) -> tuple[float, float]:
    """Evaluations per second of a whole run with one actor, and how long its votes took."""
    settings = [f"model={MODEL.absolute()}", "compute.actors=1"]
    overrides = [argument for setting in settings for argument in ("--set", setting)]
    command = [sys.executable, "-m", "pipeline.cli", "certify", "demo", "--run", "run", "--limit", str(images)]
    environment = {key: value for key, value in os.environ.items() if key not in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")}
    subprocess.run([*command, *overrides], cwd=folder, env=environment, check=True, capture_output=True)
    store = RunStore(folder / "run")
    evidence = store.all_evidence(fingerprint=store.manifest()["fingerprint"])
    first = min(item.finished_unix - item.seconds for item in evidence)
    seconds = max(item.finished_unix for item in evidence) - first
    return sum(item.evaluations for item in evidence) / seconds, seconds


@click.command()
@click.option("--pairs", default=5, show_default=True)
@click.option("--images", default=4, show_default=True)
def main(pairs: int, images: int) -> None:
    if not MODEL.is_dir():
        raise click.ClickException(f"{MODEL} is missing; run `make demo` first")
    rows = load_config("demo").compute.rows_per_pass
    ratios = []
    for pair in range(pairs):
        bare = bare_rate(rows, seconds=8)
        with tempfile.TemporaryDirectory() as folder:
            pipeline, seconds = pipeline_rate(Path(folder), images)
        bare = (bare + bare_rate(rows, seconds=8)) / 2  # before and after, as the machine's speed drifts
        ratios.append(pipeline / bare)
        click.echo(
            f"pair {pair + 1}: bare {bare:,.0f}/s, pipeline {pipeline:,.0f}/s ({seconds:.0f} s), {ratios[-1]:.3f}"
        )
    click.echo(f"pipeline / bare: median {statistics.median(ratios):.3f}, {min(ratios):.3f} to {max(ratios):.3f}")


if __name__ == "__main__":
    main()
