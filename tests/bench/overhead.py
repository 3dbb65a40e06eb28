"""What the pipeline costs on top of the network: evaluations per second, one actor against a bare loop.

    .venv/bin/python -m tests.bench.overhead [--pairs 5] [--images 4]

The bare loop calls the same denoiser with the same number of rows on one thread, with the same setting of the
allocator, in a process of its own, and does nothing else. The pipeline is `ndc certify demo` with one actor, timed from
the start of its first unit to the end of its last: once scoring all classes on the full grid, once with the preset's
sift, which leaves fewer classes and so more padding in the last pass of each step. They take turns; ratios are taken
within a turn.
"""

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import click

from pipeline.declaration.toml_files import load_config
from pipeline.store.run_store import RunStore
from tests.bench.bare import MODEL, bare_rate


def pipeline_rate(folder: Path, images: int, *settings: str) -> float:
    """Evaluations per second of a whole run with one actor."""
    settings = (f"model={MODEL.absolute()}", "compute.actors=1", *settings)
    overrides = [argument for setting in settings for argument in ("--set", setting)]
    command = [sys.executable, "-m", "pipeline.cli", "certify", "demo", "--run", "run", "--limit", str(images)]
    environment = {key: value for key, value in os.environ.items() if key not in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")}
    subprocess.run([*command, *overrides], cwd=folder, env=environment, check=True, capture_output=True)
    store = RunStore(folder / "run")
    evidence = store.all_evidence(fingerprint=store.manifest()["fingerprint"])
    first = min(item.finished_unix - item.seconds for item in evidence)
    seconds = max(item.finished_unix for item in evidence) - first
    return sum(item.evaluations for item in evidence) / seconds


@click.command()
@click.option("--pairs", default=5, show_default=True)
@click.option("--images", default=2, show_default=True)
def main(pairs: int, images: int) -> None:
    if not MODEL.is_dir():
        raise click.ClickException(f"{MODEL} is missing; run `make demo` first")
    rows = load_config("demo").compute.rows_per_pass
    ratios: dict[str, list[float]] = {"full grid": [], "with sift": []}
    for pair in range(pairs):
        bare = bare_rate(rows, keep_memory=True)
        for name, settings in (("full grid", ["classifier.sift.keep=10"]), ("with sift", [])):
            with tempfile.TemporaryDirectory() as folder:
                pipeline = pipeline_rate(Path(folder), images, *settings)
            after = bare_rate(rows, keep_memory=True)
            ratios[name].append(pipeline / ((bare + after) / 2))  # before and after, as the machine's speed drifts
            click.echo(f"{pair + 1}: {name}: pipeline {pipeline:,.0f}/s, bare {bare:,.0f} and {after:,.0f}/s")
            bare = after
    for name, measured in ratios.items():
        click.echo(
            f"{name}: pipeline / bare median {statistics.median(measured):.3f}, "
            f"{min(measured):.3f} to {max(measured):.3f}"
        )


if __name__ == "__main__":
    main()
