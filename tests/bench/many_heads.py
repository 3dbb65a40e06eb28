"""How much longer a pass with class heads takes with 1,000 classes than with 10: images of 3 x 32 x 32, one thread.

    .venv/bin/python -m tests.bench.many_heads [--pairs 7]

The network is that of `ndc distill`, with random weights, on which times do not depend; what is timed is what a vote
needs, every class clipped and its squared distance to an image. Passes come in pairs, one of each kind, so that other
work on the machine meets both. Only ratios are stated: medians of the pairs, and their range.
"""

import time
from statistics import median

import click
import torch

from ndc_core.models.class_heads import HeadsDenoiser
from ndc_core.models.networks.small import SmallHeadsUNet
from pipeline.workers.memory import keep_freed_memory

IMAGE_SHAPE, FEW, MANY = (3, 32, 32), 10, 1000
CASES = ((32, 1), (32, 16), (32, 32), (64, 16), (128, 16))  # channels of the network, rows a pass


def with_heads(classes: int, channels: int) -> HeadsDenoiser:
    network = SmallHeadsUNet(image_channels=IMAGE_SHAPE[0], num_classes=classes, channels=channels)
    return HeadsDenoiser(network, image_shape=IMAGE_SHAPE, num_classes=classes).eval()


@torch.inference_mode()
def pass_seconds(denoiser: HeadsDenoiser, rows: int) -> float:
    """Processor time, which other work on the machine adds to only through caches and clocks."""
    z, sigma = torch.zeros(rows, *IMAGE_SHAPE), torch.ones(rows)
    started = time.process_time()
    (denoiser.every_class(z, sigma) - z[:, None]).square().sum(dim=(2, 3, 4))
    return time.process_time() - started


@click.command()
@click.option("--pairs", default=7, show_default=True)
def main(pairs: int) -> None:
    keep_freed_memory()
    torch.set_num_threads(1)
    click.echo(f"time with {MANY:,} heads over time with {FEW}: median of {pairs} pairs, and range")
    click.echo("| channels | rows per pass | times as long |\n| --- | --- | --- |")
    for channels, rows in CASES:
        few, many = (with_heads(classes, channels) for classes in (FEW, MANY))
        for denoiser in (few, many):
            pass_seconds(denoiser, rows)  # the first one is slower
        ratios = [pass_seconds(many, rows) / pass_seconds(few, rows) for _ in range(pairs)]
        click.echo(f"| {channels} | {rows} | {median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f}) |")


if __name__ == "__main__":
    main()
