"""What the machine gives: the pipeline's evaluations per second against a loop over one class at a time.

    .venv/bin/python -m tests.bench.machine [--pairs 3] [--channels 128]

Random weights of the embedded network at 128 channels, 8x8 images, ten classes, one thread. The loop evaluates in
float32 what a vote of a research script does: for each class, all steps of its grid in one batch. The pipeline gathers
rows of many draws into passes of the size that the search finds: in float32, in bfloat16, and in bfloat16, channels
last and compiled (compilation needs a C++ compiler). They take turns; ratios are taken within a turn. `host` is the
share of the pipeline's time that is not spent in the network: noise, losses, bookkeeping. The last line says how many
rows of the passes were padding while classes dropped out.
"""

import statistics
import time
from collections import defaultdict
from dataclasses import dataclass, field

import click
import numpy as np
import torch

from ndc_core.classifiers.diffusion import DiffusionClassifier
from ndc_core.classifiers.racing import RaceSpec
from ndc_core.models.denoiser import EDMDenoiser
from ndc_core.models.execution import DTYPES, Execution
from ndc_core.models.forward_passes import in_turn
from ndc_core.models.networks.small import SmallUNet
from ndc_core.models.rows_per_pass import fastest_rows
from ndc_core.noise.grid import GridSpec, build_grid
from ndc_core.vote_requests import VoteRequest
from ndc_core.voting import stream_votes
from pipeline.workers.memory import keep_freed_memory

SHAPE, CLASSES, SIGMA = (1, 8, 8), 10, 0.25
GRID = GridSpec(points=10, sigma_model_max=1.5, spacing="log")


@dataclass
class Timed:
    """A denoiser that adds up its own time and rows."""

    denoiser: EDMDenoiser
    image_shape: tuple[int, int, int] = SHAPE
    num_classes: int = CLASSES
    seconds: float = 0.0
    rows: int = 0
    started: float = field(default_factory=time.perf_counter)

    def __call__(self, z: torch.Tensor, sigma_model: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        begin = time.perf_counter()
        output = self.denoiser(z, sigma_model, label)
        self.seconds += time.perf_counter() - begin
        self.rows += len(z)
        return output


def network(channels: int, execution: Execution) -> EDMDenoiser:
    torch.manual_seed(0)
    small = SmallUNet(image_channels=1, num_classes=CLASSES, channels=channels)
    for parameter in small.parameters():  # zeros at the start would make every class the same
        torch.nn.init.normal_(parameter, std=0.02)
    dtype = DTYPES[execution.precision]
    return EDMDenoiser(
        execution.apply(small, device="cpu"), image_shape=SHAPE, num_classes=CLASSES, network_dtype=dtype
    )


@torch.inference_mode()
def loop_rate(denoiser: EDMDenoiser, votes: int) -> float:
    """Evaluations per second of one vote after the other, one class after the other."""
    level = torch.as_tensor(build_grid(GRID, tau_model=2 * SIGMA).level, dtype=torch.float32)
    started = time.perf_counter()
    for _ in range(votes):
        clean = torch.randn(1, *SHAPE)
        noisy = clean + level[:, None, None, None] * torch.randn(len(level), *SHAPE)
        for label in torch.eye(CLASSES):
            (denoiser(noisy, level, label.expand(len(level), CLASSES)) - clean).square().sum()
    return votes * CLASSES * len(level) / (time.perf_counter() - started)


def pipeline_rate(denoiser: EDMDenoiser, votes: int, *, rows: int, race: RaceSpec | None) -> tuple[float, float, float]:
    """Evaluations per second of votes, the share of the time outside the network, and the share of padding."""
    timed = Timed(denoiser)
    classifier = DiffusionClassifier(timed, "apndc-ensemble", grid=GRID, weight="edm", race=race, rows_per_pass=rows)
    image = np.random.default_rng(0).integers(0, 256, SHAPE, dtype=np.uint8)
    waiting = [(0, VoteRequest(image, "x", (SIGMA,), "integer", 0, "estimation", range(votes)))]
    started = time.perf_counter()
    ((_, counts),) = stream_votes(classifier, in_turn(waiting))
    seconds = time.perf_counter() - started
    if isinstance(counts, Exception):
        raise counts
    evaluations = counts[0].evaluations
    return evaluations / seconds, 1 - timed.seconds / seconds, 1 - evaluations / timed.rows


WAYS = {
    "float32": Execution(),
    "bfloat16": Execution("bfloat16"),
    "bfloat16, channels last, compiled": Execution("bfloat16", channels_last=True, compile=True),
}


@click.command()
@click.option("--pairs", default=3, show_default=True)
@click.option("--channels", default=128, show_default=True)
@click.option("--votes", default=60, show_default=True, help="Votes of the pipeline in a turn; the loop takes a fifth.")
def main(pairs: int, channels: int, votes: int) -> None:
    keep_freed_memory()
    torch.set_num_threads(1)
    networks = {way: network(channels, execution) for way, execution in WAYS.items()}
    rows = {way: fastest_rows(denoiser, device="cpu").rows for way, denoiser in networks.items()}
    loop, ratios = networks["float32"], defaultdict(list)
    hosts, padding = [], []
    for pair in range(pairs):
        before = loop_rate(loop, max(1, votes // 5))
        rates = {way: pipeline_rate(denoiser, votes, rows=rows[way], race=None) for way, denoiser in networks.items()}
        slow = (before + loop_rate(loop, max(1, votes // 5))) / 2
        for way, (rate, host, _) in rates.items():
            ratios[way].append(rate / slow)
            hosts.append(host)
        padding.append(pipeline_rate(networks["bfloat16"], 4 * votes, rows=rows["bfloat16"], race=RaceSpec(1.5))[2])
        shown = ", ".join(f"{way} {rate:,.0f}/s" for way, (rate, _, _) in rates.items())
        click.echo(f"{pair + 1}: loop {slow:,.0f}/s; gathered: {shown}")
    for way, ratios_of_way in ratios.items():
        low, high = min(ratios_of_way), max(ratios_of_way)
        click.echo(f"{way}: {statistics.median(ratios_of_way):.2f} times the loop, {low:.2f} to {high:.2f}")
    click.echo(f"rows a pass: {rows}")
    click.echo(f"host: {100 * statistics.median(hosts):.1f} % of the time, at most {100 * max(hosts):.1f} %")
    click.echo(f"padding in a race: {100 * statistics.median(padding):.1f} % of the rows")


if __name__ == "__main__":
    main()
