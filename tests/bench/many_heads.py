"""How much longer 100 and 1,000 classes take than 10, with class heads: images of 3 x 32 x 32, one thread.

    .venv/bin/python -m tests.bench.many_heads [--pairs 5]

Two kinds of heads, with random weights; times do not depend on them. For heads on a network of EDM's (`edm-song`, one
block a level), the time of whole votes: APNDC, four levels, all classes, 16 draws in passes of 16 rows. For the small
network's heads, which make an image for each class, the time of a pass and of its squared distances. Measurements come
in rounds of 10, 100 and 1,000, so that other work on the machine affects all alike. Only ratios are stated: medians of
the rounds, and their range.
"""

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import click
import numpy as np
import torch

from ndc_core.classifiers.diffusion import DiffusionClassifier
from ndc_core.models.class_heads import HeadsDenoiser
from ndc_core.models.linear_heads import LinearHeadsDenoiser
from ndc_core.models.networks.linear_heads import LinearHeadsNetwork
from ndc_core.models.networks.small import SmallHeadsUNet
from ndc_core.noise.grid import GridSpec
from ndc_core.voting import count_votes
from pipeline.workers.memory import keep_freed_memory

SIDE = 32
IMAGE_SHAPE = (3, SIDE, SIDE)
FEW, MORE, MANY = 10, 100, 1000
ROWS = 16
Seconds = Callable[[], float]


def linear_heads(classes: int, channels: int) -> Seconds:
    """The time of a sixteenth of a vote."""
    arguments: dict[str, Any] = {
        "img_resolution": SIDE,
        "in_channels": 3,
        "out_channels": 3,
        "label_dim": classes,
        "model_channels": channels,
        "channel_mult": (1, 1),
        "num_blocks": 1,
        "attn_resolutions": (),
    }
    network = LinearHeadsNetwork(trunk="edm-song", arguments=arguments, features=channels).requires_grad_(False)
    torch.nn.init.normal_(network.heads, std=0.1)
    denoiser = LinearHeadsDenoiser(network, image_shape=IMAGE_SHAPE, num_classes=classes).eval()
    classifier = DiffusionClassifier(denoiser, "apndc", GridSpec(levels=(0.6, 0.8, 1.1, 1.5, 2.0)), rows_per_pass=ROWS)
    image = np.zeros(IMAGE_SHAPE, dtype=np.uint8)

    def vote() -> float:
        started = time.process_time()
        count_votes(
            classifier,
            image,
            sigma_pixel=0.25,
            noise="integer",
            seed=0,
            image_id="image",
            phase="estimation",
            draws=range(ROWS),
        )
        return time.process_time() - started

    return vote


def small_heads(classes: int, channels: int) -> Seconds:
    """The time of a pass and of all distances to one image: processor time, which other work hardly changes."""
    network = SmallHeadsUNet(image_channels=IMAGE_SHAPE[0], num_classes=classes, channels=channels)
    denoiser = HeadsDenoiser(network, image_shape=IMAGE_SHAPE, num_classes=classes).eval()
    z, sigma = torch.zeros(ROWS, *IMAGE_SHAPE), torch.ones(ROWS)

    @torch.inference_mode()
    def one_pass() -> float:
        started = time.process_time()
        (denoiser.every_class(z, sigma) - z[:, None]).square().sum(dim=(2, 3, 4))
        return time.process_time() - started

    return one_pass


@click.command()
@click.option("--pairs", default=5, show_default=True, help="Rounds of measurements.")
def main(pairs: int) -> None:
    keep_freed_memory()
    torch.set_num_threads(1)
    click.echo(f"time with {MORE} and {MANY:,} classes over time with {FEW}: median of {pairs} rounds, and range")
    click.echo(f"| heads | channels | {MORE} classes | {MANY:,} classes |\n| --- | --- | --- | --- |")
    for name, kind in (("linear in shared features", linear_heads), ("an image for each", small_heads)):
        for channels in (16, 32, 64):
            timed = [kind(classes, channels) for classes in (FEW, MORE, MANY)]
            for seconds in timed:
                seconds()  # the first one is slower
            rounds = [[seconds() for seconds in timed] for _ in range(pairs)]
            columns = [[times[place] / times[0] for times in rounds] for place in (1, 2)]
            cells = " | ".join(f"{median(column):.2f} ({min(column):.2f} to {max(column):.2f})" for column in columns)
            click.echo(f"| {name} | {channels} | {cells} |")


if __name__ == "__main__":
    main()
