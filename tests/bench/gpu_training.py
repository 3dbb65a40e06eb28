"""Training on a GPU: images per second by way of running the network, and what a vote is worth after some seconds.

    python -m tests.bench.gpu_training --data slice.parquet --seconds 40 --out training.json [--compiled]
    python -m tests.bench.gpu_training --device cpu --tiny --data slice.parquet --seconds 10 --out training.json

Trains the preset cifar10-small through `train_denoiser`, as `ndc train` does. The last 300 images of the data are held
out; DC (no noise, 26 levels) and APNDC-ensemble at sigma 0.25 vote once for each. A slice of 12,000 images of a
Parquet file, some 4 MB (q is pyarrow.parquet):

    q.write_table(q.read_table('train.parquet').slice(0, 12000), 'slice.parquet')

Results are written after each part, so that a run which is cut off leaves those before. Compiling takes two minutes
when nothing is cached: --compiled asks for it, last.
"""

import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor

from ndc_core.classifiers.diffusion import DiffusionClassifier
from ndc_core.models.denoiser import EDMDenoiser
from ndc_core.models.forward_passes import in_turn
from ndc_core.noise.grid import GridSpec
from ndc_core.training.denoiser import TrainingSpec, train_denoiser
from ndc_core.training.fitting import Machine, TrainingProgress
from ndc_core.vote_requests import VoteRequest
from ndc_core.voting import stream_votes
from pipeline.data.datasets import DatasetSpec, Example, examples_of, source_of
from pipeline.model_tools.training_presets import PRESETS

HELD_OUT = 300
PRESET = PRESETS["cifar10-small"]
RATE_SECONDS = 12.0
GRID = GridSpec(points=26, sigma_model_min=0.4, sigma_model_max=2.0, spacing="log")
VOTES = (("dc", 0.0), ("apndc-ensemble", 0.25))


def images_of(data: str) -> list[Example]:
    spec = DatasetSpec(data, split="train")
    return list(examples_of(spec, source_of(spec), channels=3, corrupt=[]))


def trained(
    examples: list[Example], spec: TrainingSpec, options: dict[str, Any], machine: Machine
) -> tuple[EDMDenoiser, dict[str, Any]]:
    """A denoiser, and figures of its training."""
    seen: list[TrainingProgress] = []
    images: Tensor = torch.from_numpy(np.stack([example.image for example in examples])).to(machine.device)
    labels = torch.tensor([example.label for example in examples], device=machine.device)
    denoiser = train_denoiser(
        images,
        labels,
        num_classes=int(labels.max()) + 1,
        spec=spec,
        network=PRESET.network,
        options=options,
        machine=machine,
        on_step=seen.append,
    )
    if machine.device == "cuda":
        click.echo(f"peak memory {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")
    last = seen[-1]
    halfway = seen[len(seen) // 2]
    rate = spec.batch * (last.step - halfway.step) / max(1e-9, last.seconds - halfway.seconds)
    return denoiser, {
        "images_per_second": last.images_per_second,
        "images_per_second_of_the_second_half": rate,
        "first_report_after_seconds": seen[0].seconds,
        "losses": [round(progress.loss, 4) for progress in seen[:: max(1, len(seen) // 20)]],
        **asdict(last),
    }


def accuracy(
    denoiser: EDMDenoiser, held_out: list[Example], name: str, sigma: float, *, grid: GridSpec, device: str
) -> float:
    """Share of right votes, one for each image."""
    rows = 2048 if device == "cuda" else 16
    classifier = DiffusionClassifier(
        denoiser.to(device), name, grid=grid, weight="edm", rows_per_pass=rows, device=device
    )
    noise = "none" if sigma == 0 else "integer"
    requests: list[tuple[int, VoteRequest]] = [
        (index, VoteRequest(example.image, example.image_id, (sigma,), noise, 0, "estimation", range(1)))
        for index, example in enumerate(held_out)
    ]
    right = 0
    for index, counts in stream_votes(classifier, in_turn(requests)):
        if isinstance(counts, Exception):
            raise counts
        right += int(counts[0].votes[held_out[index].label])
    return right / len(held_out)


@click.command()
@click.option("--data", required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--seconds", default=40.0, show_default=True, help="Of the training whose votes are counted.")
@click.option("--device", default="cuda", type=click.Choice(["cuda", "cpu"]), show_default=True)
@click.option("--tiny", is_flag=True, help="Few channels, images and rows, to try this script out.")
@click.option("--compiled", is_flag=True, help="Also measure the compiled network, last.")
def main(data: str, out: Path, seconds: float, device: str, tiny: bool, compiled: bool) -> None:
    began, results = time.monotonic(), {}
    settings, options, rate_seconds = dict(PRESET.settings), dict(PRESET.options), RATE_SECONDS
    held, grid = HELD_OUT, GRID
    if tiny:
        torch.set_num_threads(1)
        settings |= {"channels": 8, "batch": 8}
        options |= {"num_blocks": 1}
        rate_seconds, held, grid = 3.0, 2, replace(GRID, points=4)
    spec = TrainingSpec(**settings | {"max_seconds": seconds})
    examples = images_of(data)
    train, held_out = examples[:-held], examples[-held:]

    def note(part: str, values: Any) -> None:
        results[part] = values
        results["seconds_in_all"] = time.monotonic() - began
        out.write_text(json.dumps(results, indent=1) + "\n")
        click.echo(f"{results['seconds_in_all']:.0f} s: {part}: {values}")

    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    note("setting", {"device": name, "torch": torch.__version__, "images": len(train), "spec": asdict(spec)})
    short = replace(spec, max_seconds=rate_seconds)
    ways = {"eager": Machine(device), "eager, channels last": Machine(device, channels_last=True)}
    rates = {}
    for way, machine in ways.items():
        _, values = trained(train, short, options, machine)
        rates[way] = values["images_per_second_of_the_second_half"]
        note(way, values)
    best = max(rates, key=rates.__getitem__)
    denoiser, values = trained(train, spec, options, ways[best])
    note(f"trained, {best}", values)
    for classifier, sigma in VOTES:
        share = accuracy(denoiser, held_out, classifier, sigma, grid=grid, device=device)
        note(f"votes right: {classifier} at {sigma}", f"{100 * share:.1f} % of {len(held_out)}")
    if compiled:
        machine = replace(ways[best], compile=True)
        note("compiled", trained(train, replace(spec, max_seconds=3.0 if tiny else 150.0), options, machine)[1])


if __name__ == "__main__":
    main()
