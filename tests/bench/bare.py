"""Rows per second of the embedded denoiser alone, on one thread, in a process of its own.

.venv/bin/python -m tests.bench.bare ROWS [--keep-memory]
"""

import subprocess
import sys
import time
from pathlib import Path

import click

MODEL = Path("models/digits")
SECONDS = 6.0


def bare_rate(rows: int, *, keep_memory: bool) -> float:
    """Measures in a fresh process: the allocator's state is part of what is measured."""
    command = [sys.executable, "-m", "tests.bench.bare", str(rows), *(["--keep-memory"] if keep_memory else [])]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@click.command()
@click.argument("rows", type=int)
@click.option("--keep-memory", is_flag=True, help="Set the allocator as the pipeline's actors do.")
def main(rows: int, keep_memory: bool) -> None:
    import torch

    from ndc_core.checkpoints.denoisers import load_denoiser
    from pipeline.workers.memory import keep_freed_memory

    if keep_memory:
        keep_freed_memory()
    torch.set_num_threads(1)
    denoiser = load_denoiser(MODEL)
    z = torch.randn(rows, *denoiser.image_shape)
    sigma, label = torch.rand(rows) + 0.5, torch.eye(denoiser.num_classes)[torch.arange(rows) % denoiser.num_classes]
    passes = 0
    with torch.inference_mode():
        denoiser(z, sigma, label)
        started = time.perf_counter()
        while time.perf_counter() - started < SECONDS:
            denoiser(z, sigma, label)
            passes += 1
    click.echo(passes * rows / (time.perf_counter() - started))


if __name__ == "__main__":
    main()
