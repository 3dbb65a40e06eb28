"""What the machine gives: the pipeline's evaluations per second against a loop over one class at a time, and its own cost.

    .venv/bin/python -m tests.bench.machine [--pairs 3] [--channels 128]

Random weights of the embedded network at 128 channels, 8x8 images, ten classes, one thread. The loop evaluates in float32
what a vote of a research script does: for each class, all steps of its grid in one batch. The pipeline gathers rows of
many draws into passes of the size that the search finds, in bfloat16 and channels last. They take turns; ratios are
taken within a turn. `host` is the share of the pipeline's time that is not spent in the network: noise, losses,
bookkeeping. The last line says how many rows of the passes were padding while classes dropped out.
"""

import statistics
import time
from dataclasses import dataclass, field

import click
import numpy as np
import torch

from ndc_core.classifiers import DiffusionClassifier
from ndc_core.denoiser import EDMDenoiser
from ndc_core.execution import DTYPES, Execution
from ndc_core.grid import GridSpec, build_grid
from ndc_core.networks.small import SmallUNet
from ndc_core.race import RaceSpec
from ndc_core.rows import fastest_rows
from ndc_core.voting import Poll, hold_polls
from pipeline.memory import keep_freed_memory

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
        found = self.denoiser(z, sigma_model, label)
        self.seconds += time.perf_counter() - begin
        self.rows += len(z)
        return found


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
    waiting = [(0, Poll(image, "x", (SIGMA,), "integer", 0, "estimation", range(votes)))]
    started = time.perf_counter()
    ((_, found),) = hold_polls(classifier, lambda: waiting.pop() if waiting else None)
    seconds = time.perf_counter() - started
    if isinstance(found, Exception):
        raise found
    evaluations = found[0].evaluations
    return evaluations / seconds, 1 - timed.seconds / seconds, 1 - evaluations / timed.rows


@click.command()
@click.option("--pairs", default=3, show_default=True)
@click.option("--channels", default=128, show_default=True)
@click.option("--votes", default=60, show_default=True, help="Votes of the pipeline in a turn; the loop takes a fifth.")
def main(pairs: int, channels: int, votes: int) -> None:
    keep_freed_memory()
    torch.set_num_threads(1)
    plain, fast = network(channels, Execution()), network(channels, Execution("bfloat16", channels_last=True))
    rows = {name: fastest_rows(one, device="cpu").rows for name, one in (("float32", plain), ("bfloat16", fast))}
    ratios: dict[str, list[float]] = {"gathered, float32": [], "gathered, bfloat16, channels last": []}
    hosts, padding = [], []
    for pair in range(pairs):
        before = loop_rate(plain, max(1, votes // 5))
        gathered, _, _ = pipeline_rate(plain, votes, rows=rows["float32"], race=None)
        best, host, _ = pipeline_rate(fast, votes, rows=rows["bfloat16"], race=None)
        loop = (before + loop_rate(plain, max(1, votes // 5))) / 2
        _, _, padded = pipeline_rate(fast, 4 * votes, rows=rows["bfloat16"], race=RaceSpec(1.5))
        ratios["gathered, float32"].append(gathered / loop)
        ratios["gathered, bfloat16, channels last"].append(best / loop)
        hosts.append(host)
        padding.append(padded)
        click.echo(f"{pair + 1}: loop {loop:,.0f}/s, gathered {gathered:,.0f}/s, in bfloat16 {best:,.0f}/s")
    for name, found in ratios.items():
        click.echo(f"{name}: {statistics.median(found):.2f} times the loop, {min(found):.2f} to {max(found):.2f}")
    click.echo(f"rows a pass: {rows}")
    click.echo(f"host: {100 * statistics.median(hosts):.1f} % of the time, at most {100 * max(hosts):.1f} %")
    click.echo(f"padding in a race: {100 * statistics.median(padding):.1f} % of the rows")


if __name__ == "__main__":
    main()
