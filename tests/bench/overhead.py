"""What the pipeline costs on top of the network: evaluations per second, one actor against a bare loop.

    .venv/bin/python -m tests.bench.overhead [--pairs 5] [--images 4]

The bare loop calls the same denoiser with the same number of rows on one thread, with the same setting of the
allocator, in a process of its own, and does nothing else. The
pipeline is `ndc certify demo` with one actor, timed from the start of its first unit to the end of its last.
The two take turns; the ratio is taken pair by pair.
"""

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import click

from pipeline.config import load_config
from pipeline.store import RunStore
from tests.bench.bare import MODEL, bare_rate


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
        bare = bare_rate(rows, keep_memory=True)
        with tempfile.TemporaryDirectory() as folder:
            pipeline, seconds = pipeline_rate(Path(folder), images)
        bare = (bare + bare_rate(rows, keep_memory=True)) / 2  # before and after, as the machine's speed drifts
        ratios.append(pipeline / bare)
        click.echo(
            f"pair {pair + 1}: bare {bare:,.0f}/s, pipeline {pipeline:,.0f}/s ({seconds:.0f} s), {ratios[-1]:.3f}"
        )
    click.echo(f"pipeline / bare: median {statistics.median(ratios):.3f}, {min(ratios):.3f} to {max(ratios):.3f}")


if __name__ == "__main__":
    main()
